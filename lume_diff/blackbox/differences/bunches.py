"""A bunch through a black box: its value, and one block of derivatives a particle."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.differences.bunch_rows import COORDINATES_OUT, N_IN, N_OUT
from lume_diff.blackbox.differences.memory import BlackBoxMemory, Column
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.differences.native import SHARE, warn_of
from lume_diff.blackbox.differences.noise import calibrate
from lume_diff.blackbox.differences.second import within_limits
from lume_diff.blackbox.differences.stencil import STENCILS, exact_step, fitted
from lume_diff.blackbox.differences.steps import StepCalibration, StepClass
from lume_diff.errors import GradientError, PhysicsWarning, SimulatorError
from lume_diff.models import GradientEntry

Array = np.ndarray

#: Shift of a coordinate as a share of its spread; a linear code does not care, a bent one wants it small.
_SHARE = 1e-3
#: Least shifts of a cold bunch: of x, y [m], of t [s], and of momenta as a share of the mean momentum.
_FLOOR_X, _FLOOR_T, _FLOOR_P = 1e-8, 1e-16, 1e-8
#: Discrepancy of the per-particle form above which a warning is due.
TOLERANCE = 1e-4
#: Particles that tell the noise of all.
_SAMPLE = 64


#: Runs bunches of rows ``(n, 6)`` and numbers ``(p,)``; gives rows ``(n, 7)`` and who lives, or an error.
EvaluateBunch = Callable[[Sequence[tuple[Array, Array]], Sequence[int]], list[tuple[Array, Array] | SimulatorError]]
#: Asks the simulator for derivatives of its own at such a bunch: ``(n, 7, 6 + p)``, NaN for what it does not cover.
NativeBunch = Callable[[tuple[Array, Array], int], Array]


def typical_step(known: StepCalibration, scale: float) -> float:
    """Return the step of a machine's number that suits most coordinates."""
    steps = known.steps(scale)[known.third > 0]
    return float(np.exp(np.median(np.log(steps)))) if len(steps) else scale


class BunchBox:
    """The map of every particle of a bunch, as the node wants it: ``(N, 6 + p) -> (N, 7)``.

    The rows of a bunch stand one below the other; the last ``p`` columns, the machine's numbers, are the same in all
    of them.

    Args:
        name, incoming: of the bunch that comes out and of the one that goes in.
        bunches: all that come out of the same runs; they share noise, curvature and steps, so that they share the runs.
        evaluate: runs the simulator.
        n_particles: rows of one bunch.
        columns: the machine's numbers that are differentiated.
        method: how derivatives are taken.
        memory: what the model remembers.
        keys: what else the results depend on, for each bunch of the batch.
        report: takes an entry for every derivative with respect to a machine's number.
        is_active: whether a gradient reaches the particles themselves; without, only the machine's numbers are moved.
        native: asks for derivatives that the simulator has itself.
    """

    def __init__(
        self,
        name: str,
        incoming: str,
        bunches: Sequence[str],
        evaluate: EvaluateBunch,
        n_particles: int,
        columns: Sequence[Column],
        method: FiniteDifference | None,
        memory: BlackBoxMemory,
        keys: Sequence[Any],
        report: Callable[[GradientEntry], None],
        is_active: bool = True,
        native: NativeBunch | None = None,
    ) -> None:
        self.name, self._incoming = name, incoming
        self._evaluate = evaluate
        self._n = n_particles
        self.columns = list(columns)
        self.n_in, self.n_out = N_IN + len(self.columns), N_OUT
        self.method = method
        self.memory = memory
        self._keys = list(keys)
        self._held: dict[Any, dict[Any, Any]] = {}  # for as long as the graph, even where the memory is too small
        self._report = report
        self._is_active = is_active
        self._native = native
        self._bunches_out = tuple(bunches)

    # -- as the node wants it --------------------------------------------------------------------------------

    def derivative(self, points: Tensor, order: int) -> Tensor:
        """Return rows, their Jacobians or their Hessians; see ``node.Derivatives``."""
        bunches = self.plain_bunches(points)
        if order > 0:
            self._refuse_where_there_is_none()
        take = {0: self.value_at, 1: self._jacobian, 2: self._hessian}[order]
        found = np.concatenate([take(bunch, index) for index, bunch in enumerate(bunches)])
        return torch.from_numpy(found).to(points.device)

    def plain_bunches(self, rows: Tensor) -> Array:
        """Return rows ``(N, 6 + p)`` as plain bunches, ``(bunches, n, 6 + p)``."""
        return rows.detach().cpu().double().numpy().reshape(-1, self._n, self.n_in)

    def _refuse_where_there_is_none(self) -> None:
        """Raise a ``GradientError`` where there is no gradient."""
        if self.method is None or (self.method.particles == "stop" and self._is_active):
            raise GradientError(
                "particles stop here: this black box gives them no gradient; build it with "
                "gradient=FiniteDifference(particles='per_particle') or 'collective'"
            )

    def notes_on(self, bunch: Array, index: int) -> dict[Any, Any]:
        """Return what is known at a bunch, ``"alive"`` among it once the value is; more may be written in."""
        labels = tuple(column.label for column in self.columns)
        key = (self._keys[index % len(self._keys)], labels, self._is_active, hash(bunch.tobytes()))
        if key not in self._held:
            self._held[key] = self.memory.at(key, 8 * self._n * N_OUT * (1 + self.n_in))
        return self._held[key]

    def alive(self, points: Tensor) -> Tensor:
        """Return who lives at the end, ``(bunches, n)``."""
        bunches = self.plain_bunches(points)
        for index, bunch in enumerate(bunches):
            self.value_at(bunch, index)
        lives = np.stack([self.notes_on(bunch, index)["alive"] for index, bunch in enumerate(bunches)])
        return torch.from_numpy(lives.astype(float))

    def _run(self, bunches: Sequence[Array], index: int) -> list[tuple[Array, Array] | SimulatorError]:
        points = [(bunch[:, :N_IN], bunch[0, N_IN:]) for bunch in bunches]
        return self._evaluate(points, [index] * len(points))

    def value_at(self, bunch: Array, index: int) -> Array:
        """Return the rows of the bunch that comes out, ``(n, 7)``."""
        notes = self.notes_on(bunch, index)
        if "value" not in notes:
            (found,) = self._run([bunch], index)
            if isinstance(found, SimulatorError):
                raise found
            notes["value"], notes["alive"] = found
        return notes["value"]

    # -- one block a particle --------------------------------------------------------------------------------

    def shifts(self, bunch: Array, index: int, columns: Sequence[int] | None = None) -> Array:
        """Return the shift of every column, or of some, from the spread of a coordinate or the scale of a number."""
        momentum = np.sqrt(np.mean(np.sum(np.square(bunch[:, [1, 3, 5]]), axis=1)))
        floors = (_FLOOR_X, _FLOOR_P * momentum, _FLOOR_X, _FLOOR_P * momentum, _FLOOR_T, _FLOOR_P * momentum)
        spread = np.maximum(_SHARE * bunch[:, :N_IN].std(axis=0), floors)
        wanted = range(self.n_in) if columns is None else columns
        return np.array([spread[c] if c < N_IN else self._step(bunch, index, c - N_IN) for c in wanted])

    def _step(self, bunch: Array, index: int, column: int) -> float:
        """Return the step of a machine's number that suits most coordinates of a sample of the particles."""
        c = self.columns[column]
        fixed = None if self.method is None else self.method.fixed_step(c.name, c.scale)
        if fixed is not None:
            return fixed
        sample = np.linspace(0, self._n - 1, min(self._n, _SAMPLE)).astype(int)

        def probe(offsets: Array) -> Array:
            moved = [bunch + offset * np.eye(self.n_in)[N_IN + column] for offset in offsets]
            found = self._run(moved, index)
            lost = np.full(len(sample) * N_OUT, np.nan)
            return np.stack([lost if isinstance(r, SimulatorError) else r[0][sample].ravel() for r in found])

        def measure() -> StepCalibration:
            return calibrate(probe, c.scale, c.room(bunch[0, N_IN + column]))

        return typical_step(self.memory.calibration(c, self._bunches_out, measure), c.scale)

    def _jacobian(self, bunch: Array, index: int) -> Array:
        notes = self.notes_on(bunch, index)
        value = self.value_at(bunch, index)
        lives = notes["alive"]
        if not lives.any():
            return np.zeros((self._n, N_OUT, self.n_in))
        if "jacobian" not in notes:
            jacobian = self._own_derivatives(bunch, index, lives)
            wanted = range(0 if self._is_active else N_IN, self.n_in)
            open_ = [c for c in wanted if np.isnan(jacobian[lives, :, c]).any()]
            parts = self._parts(bunch, index, open_)
            moves = [
                offset * np.eye(self.n_in)[c] for c, part in zip(open_, parts, strict=True) for offset in part.offsets
            ]
            with self.memory.spending("jacobian"):
                before = self.memory.spent["jacobian"]
                found = iter(self.good_runs([bunch + move for move in moves], index))
                self.memory.last = 1, self.n_in, self.memory.spent["jacobian"] - before
            for c, part in zip(open_, parts, strict=True):
                seen = [next(found) for _ in part.offsets]
                slope = part.derivative(value, [rows for rows, _ in seen])
                through = lives & np.all([alive for _, alive in seen], axis=0)
                jacobian[:, :, c] = np.where(through[:, None], slope, 0.0)
            jacobian = np.where(lives[:, None, None], np.nan_to_num(jacobian), 0.0)
            notes["jacobian"] = jacobian
            own = [c for c in wanted if c not in open_]
            self._check(bunch, index, jacobian, own)
            self._tell(jacobian, dict(zip(open_, parts, strict=True)), own)
        return notes["jacobian"]

    def _own_derivatives(self, bunch: Array, index: int, lives: Array) -> Array:
        """Return what the code knows itself of the Jacobian, NaN for the rest."""
        if self._native is None:
            return np.full((self._n, N_OUT, self.n_in), np.nan)
        block, use = self._native((bunch[:, :N_IN], bunch[0, N_IN:]), index), self.memory.native
        first = 0 if self._is_active else N_IN
        covered = np.isfinite(block[lives][:, :, first:]).all(axis=(0, 1))
        use.asked += 1
        use.given += N_OUT * int(covered.sum())
        use.saved += STENCILS["central" if self.method is None else self.method.scheme].runs * int(covered.sum())
        return block

    def _parts(self, bunch: Array, index: int, columns: Sequence[int]) -> list[StepClass]:
        """Return the difference for each of some columns."""
        scheme = "central" if self.method is None else self.method.scheme
        found = []
        for c, shift in zip(columns, self.shifts(bunch, index, columns), strict=True):
            name, step, error = scheme, float(shift), np.full(N_OUT, np.nan)
            if c >= N_IN:
                column, here = self.columns[c - N_IN], float(bunch[0, c])
                name, step = fitted(scheme, step, column.room(here))
                step = exact_step(here, step)
                known = self.memory.known(column, self._bunches_out)
                if known is not None:
                    error = np.median(known.error(step, name).reshape(-1, N_OUT), axis=0)
            found.append(StepClass(name, step, np.arange(N_OUT), error))
        return found

    def _tell(self, jacobian: Array, parts: Mapping[int, StepClass], own: Sequence[int]) -> None:
        """Report the derivatives with respect to the machine's numbers, and which the code gave itself."""
        off = self.memory.native.off
        if any(c < N_IN for c in own):
            (error,) = off.get((self.name, self._incoming), [None])
            self._report(GradientEntry(self.name, self._incoming, "native", error=error))
        for c, column in enumerate(self.columns, N_IN):
            part, apart = parts.get(c), off.get((self.name, column.label))
            known = None if part is None else self.memory.known(column, self._bunches_out)
            for o, coordinate in enumerate(COORDINATES_OUT):
                error = part.error[o] if part is not None else np.nan if apart is None else apart[o]
                entry = GradientEntry(
                    output=f"{self.name}.{coordinate}",
                    input=column.label,
                    derivative=float(np.sqrt(np.mean(np.square(jacobian[:, o, c])))),
                    kind="native" if part is None else "estimated",
                    step=None if part is None else abs(part.step),
                    noise=None if known is None else float(np.median(known.noise[o::N_OUT])),
                    error=None if np.isnan(error) else float(error),
                    runs=0 if part is None else STENCILS[part.scheme].runs,
                )
                self._report(entry)

    def good_runs(self, bunches: Sequence[Array], index: int) -> list[tuple[Array, Array]]:
        """Run shifted bunches ``(n, 6 + p)``; returns rows ``(n, 7)`` and who lives, of each.

        Raises:
            GradientError: if one of the runs fails.
        """
        good = []
        for result in self._run(bunches, index):
            if isinstance(result, SimulatorError):
                raise GradientError(f"no gradient of the bunch: a perturbed run failed: {result}") from result
            good.append(result)
        return good

    # -- checks ----------------------------------------------------------------------------------------------

    def _check(self, bunch: Array, index: int, jacobian: Array, own: Sequence[int]) -> None:
        """Measure once how far the Jacobian is off: of the particles, and of each number that the code covers itself.

        Args:
            bunch, index: where.
            jacobian: of all columns.
            own: columns that the code gave itself.
        """
        if self.method is None or not self.method.check:
            return
        off = self.memory.native.off
        with self.memory.spending("check"):
            if any(c < N_IN for c in own):
                if (self.name, self._incoming) not in off:
                    discrepancy = self._discrepancy(bunch, index, jacobian)
                    if discrepancy is not None:
                        off[self.name, self._incoming] = np.array([discrepancy])
                        self._warn_of_form(discrepancy, is_own=True)
            elif self._is_active and self.memory.discrepancy is None:
                self.memory.discrepancy = discrepancy = self._discrepancy(bunch, index, jacobian)
                if discrepancy is not None:
                    self._warn_of_form(discrepancy, is_own=False)
            for c in own:
                if c >= N_IN and (self.name, self.columns[c - N_IN].label) not in off:
                    self._check_number(bunch, index, jacobian, c)

    def _discrepancy(self, bunch: Array, index: int, jacobian: Array) -> float | None:
        """Return how far the Jacobian is off in a random direction of the particles; None if all are lost there."""
        shifts = self.shifts(bunch, index, range(N_IN))
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(self._n, N_IN)) * shifts
        moved = np.concatenate([signs, np.zeros((self._n, self.n_in - N_IN))], axis=1)
        (up, alive_up), (down, alive_down) = self.good_runs([bunch + moved, bunch - moved], index)
        through = alive_up & alive_down & self.notes_on(bunch, index)["alive"]
        if not through.any():
            return None
        seen = 0.5 * (up - down)[through]
        expected = np.einsum("noi,ni->no", jacobian[through][:, :, :N_IN], signs[through])
        size = np.sqrt(np.mean(np.square(seen), axis=0))
        floor = np.finfo(float).eps * 1e3 * np.abs(up).max(axis=0, initial=0.0)
        used = size > floor
        off = np.sqrt(np.mean(np.square(seen - expected), axis=0))[used] / size[used]
        return float(off.max(initial=0.0))

    def _warn_of_form(self, discrepancy: float, is_own: bool) -> None:
        if not discrepancy > TOLERANCE:
            return
        if is_own:
            message = (
                f"the code's own Jacobian of {self.name!r} with respect to {self._incoming!r} is off by "
                f"{discrepancy:.2g} in a random direction: it is that of another orbit, of a linear map, or particles "
                "act on each other; use FiniteDifference() for the map of every particle"
            )
        else:
            message = (
                "particles act on each other in this black box: the per-particle form of its Jacobian is off by "
                f"{discrepancy:.2g} in a random direction, and so are gradients with respect to what lies upstream; "
                "use particles='collective' and forward mode"
            )
        warnings.warn(message, PhysicsWarning, stacklevel=2)

    def _check_number(self, bunch: Array, index: int, jacobian: Array, column: int) -> None:
        """Compare the code's own derivative with respect to a machine's number with a central difference, by 2 runs."""
        c, here = self.columns[column - N_IN], float(bunch[0, column])
        fixed = None if self.method is None else self.method.fixed_step(c.name, c.scale)
        scheme, step = fitted("central", SHARE * c.scale if fixed is None else fixed, c.room(here))
        part = StepClass(scheme, exact_step(here, step), np.arange(N_OUT), np.full(N_OUT, np.nan))
        value, lives = self.value_at(bunch, index), self.notes_on(bunch, index)["alive"]
        seen = self.good_runs([bunch + offset * np.eye(self.n_in)[column] for offset in part.offsets], index)
        through = lives & np.all([alive for _, alive in seen], axis=0)
        if not through.any():
            return
        slope = part.derivative(value, [rows for rows, _ in seen])[through]
        off = np.sqrt(np.mean(np.square(slope - jacobian[through, :, column]), axis=0))
        size = np.sqrt(np.mean(np.square(slope), axis=0))
        floor = np.finfo(float).eps * 1e3 * np.abs(value).max(axis=0, initial=0.0) / abs(part.step)
        self.memory.native.off[self.name, c.label] = off
        for o in np.flatnonzero(off > TOLERANCE * size + floor):
            warn_of(f"{self.name}.{COORDINATES_OUT[o]}", c.label, float(off[o]), float(size[o]))

    def _hessian(self, bunch: Array, index: int) -> Array:
        """Return the second derivatives of every particle's map, from ``m (m + 1)`` runs for m columns.

        One that is lost at a point that is needed has none.
        """
        value, shifts = self.value_at(bunch, index), 30.0 * self.shifts(bunch, index)
        for c, column in enumerate(self.columns, N_IN):
            shifts[c] = within_limits(column, float(bunch[0, c]), float(shifts[c]))
        unit = np.eye(self.n_in)
        moves = [sign * shifts[c] * unit[c] for c in range(self.n_in) for sign in (1, -1)]
        pairs = [(a, b) for a in range(self.n_in) for b in range(a)]
        for a, b in pairs:
            both = shifts[a] * unit[a] + shifts[b] * unit[b]
            moves += [both, -both]
        with self.memory.spending("hessian"):
            found = self.good_runs([bunch + move for move in moves], index)
        lives = self.notes_on(bunch, index)["alive"][:, None]
        rows = [np.where(lives & alive[:, None], values, np.nan) for values, alive in found]
        single = [rows[2 * c] + rows[2 * c + 1] for c in range(self.n_in)]
        hessian = np.zeros((self._n, N_OUT, self.n_in, self.n_in))
        for c in range(self.n_in):
            hessian[:, :, c, c] = (single[c] - 2 * value) / shifts[c] ** 2
        for k, (a, b) in enumerate(pairs):
            both = rows[2 * self.n_in + 2 * k] + rows[2 * self.n_in + 2 * k + 1]
            mixed = (both + 2 * value - single[a] - single[b]) / (2 * shifts[a] * shifts[b])
            hessian[:, :, a, b] = hessian[:, :, b, a] = mixed
        return np.where(np.isnan(hessian), 0.0, hessian)
