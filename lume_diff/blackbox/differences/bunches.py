"""A bunch through a black box: one 6 by 6 block a particle, or a whole perturbed bunch in forward mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.difference import FiniteDifference
from lume_diff.blackbox.differences.engine import Column, Memory
from lume_diff.blackbox.differences.noise import calibrate
from lume_diff.blackbox.differences.stencil import choose
from lume_diff.errors import GradientError, PhysicsWarning, SimulatorError
from lume_diff.models import GradientEntry

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

Array = np.ndarray

#: What a particle brings in and what comes out, in openPMD's units.
COORDINATES_IN = ("x", "px", "y", "py", "t", "pz")
COORDINATES_OUT = ("x", "px", "y", "py", "z", "t", "pz")
N_IN, N_OUT = len(COORDINATES_IN), len(COORDINATES_OUT)

#: Shift of a coordinate as a share of its spread; a linear code does not care, a bent one wants it small.
_SHARE = 1e-3
#: Least shifts of a cold bunch: of x, y [m], of t [s], and of momenta as a share of the mean momentum.
_FLOOR_X, _FLOOR_T, _FLOOR_P = 1e-8, 1e-16, 1e-8
#: Discrepancy of the per-particle form above which a warning is due.
_TOLERANCE = 1e-4
#: Particles that tell the noise of all.
_SAMPLE = 64


def bunch_data(rows: Array, template: Mapping[str, Any]) -> ParticleGroup:
    """Return rows of ``COORDINATES_IN`` as a ParticleGroup with the weights, ids and plane of a template."""
    from beamphysics import ParticleGroup

    data = {name: rows[:, column].copy() for column, name in enumerate(COORDINATES_IN)}
    return ParticleGroup(data={**data, **template})


def bunch_rows(group: Any, ids: Array) -> tuple[Array, Array]:
    """Return a ParticleGroup as rows of ``COORDINATES_OUT`` in the order of ``ids``, and who lives.

    Particles that the code left out are dead and stand at zero.
    """
    given = np.asarray(group.id)
    rows = np.stack([np.asarray(getattr(group, name), dtype=float) for name in COORDINATES_OUT], axis=-1)
    lives = np.asarray(group.status) == 1
    if len(given) == len(ids) and np.array_equal(given, ids):
        order = np.arange(len(ids))
        present = np.ones(len(ids), dtype=bool)
    else:
        ranks = np.argsort(given)
        place = np.searchsorted(given[ranks], ids)
        place = np.minimum(place, len(given) - 1) if len(given) else np.zeros(len(ids), dtype=int)
        order = ranks[place] if len(given) else place
        present = given[order] == ids if len(given) else np.zeros(len(ids), dtype=bool)
    full = np.where(present[:, None], rows[order] if len(given) else 0.0, 0.0)
    alive = present & (lives[order] if len(given) else False) & np.isfinite(full).all(axis=1)
    return np.where(np.isfinite(full), full, 0.0), alive


#: Runs bunches of rows ``(n, 6)`` and numbers ``(p,)``; gives rows ``(n, 7)`` and who lives, or an error.
EvaluateBunch = Callable[[Sequence[tuple[Array, Array]], Sequence[int]], list[tuple[Array, Array] | SimulatorError]]


class BunchBox:
    """The map of every particle of a bunch, as the node wants it: ``(N, 6 + p) -> (N, 7)``.

    The rows of a bunch stand one below the other; the last ``p`` columns, the machine's numbers, are the same in all
    of them.

    Args:
        evaluate: runs the simulator.
        n_particles: rows of one bunch.
        columns: the machine's numbers that are differentiated.
        method: how derivatives are taken.
        memory: what the model remembers.
        keys: what else the results depend on, for each bunch of the batch.
        report: takes an entry for every derivative with respect to a machine's number.
        is_active: whether a gradient reaches the particles themselves; without, only the machine's numbers are moved.
    """

    def __init__(
        self,
        evaluate: EvaluateBunch,
        n_particles: int,
        columns: Sequence[Column],
        method: FiniteDifference | None,
        memory: Memory,
        keys: Sequence[Any],
        report: Callable[[GradientEntry], None],
        is_active: bool = True,
    ) -> None:
        self._evaluate = evaluate
        self._n = n_particles
        self.columns = list(columns)
        self.n_in, self.n_out = N_IN + len(self.columns), N_OUT
        self.method = method
        self._memory = memory
        self._keys = list(keys)
        self._report = report
        self._is_active = is_active

    # -- as the node wants it --------------------------------------------------------------------------------

    def derivative(self, points: Tensor, order: int) -> Tensor:
        """Return rows, their Jacobians or their Hessians; see ``node.Derivatives``."""
        bunches = self._bunches(points)
        if order > 0:
            self._refuse_where_there_is_none()
        take = {0: self._value, 1: self._jacobian, 2: self._hessian}[order]
        found = np.concatenate([take(bunch, index) for index, bunch in enumerate(bunches)])
        return torch.from_numpy(found).to(points.device)

    def _bunches(self, rows: Tensor) -> Array:
        """Return rows ``(N, 6 + p)`` as plain bunches, ``(bunches, n, 6 + p)``."""
        return rows.detach().cpu().double().numpy().reshape(-1, self._n, self.n_in)

    def _refuse_where_there_is_none(self) -> None:
        if self.method is None or (self.method.particles == "stop" and self._is_active):
            raise GradientError(
                "particles stop here: this black box gives them no gradient; build it with "
                "gradient=FiniteDifference(particles='per_particle') or 'collective'"
            )
        if self.method.particles == "collective":
            raise GradientError(
                "with collective forces the Jacobian of a bunch is no block a particle, so there is no reverse mode "
                "through it: use forward mode, torch.func.jvp or model.jacobian(mode='forward')"
            )

    def _notes(self, bunch: Array, index: int) -> dict[Any, Any]:
        labels = tuple(column.label for column in self.columns)
        return self._memory.at((self._keys[index % len(self._keys)], labels, self._is_active, hash(bunch.tobytes())))

    def alive(self, points: Tensor) -> Tensor:
        """Return who lives at the end, ``(bunches, n)``."""
        bunches = self._bunches(points)
        for index, bunch in enumerate(bunches):
            self._value(bunch, index)
        lives = np.stack([self._notes(bunch, index)["alive"] for index, bunch in enumerate(bunches)])
        return torch.from_numpy(lives.astype(float))

    def _run(self, bunches: Sequence[Array], index: int) -> list[tuple[Array, Array] | SimulatorError]:
        points = [(bunch[:, :N_IN], bunch[0, N_IN:]) for bunch in bunches]
        return self._evaluate(points, [index] * len(points))

    def _value(self, bunch: Array, index: int) -> Array:
        notes = self._notes(bunch, index)
        if "value" not in notes:
            (found,) = self._run([bunch], index)
            if isinstance(found, SimulatorError):
                raise found
            notes["value"], notes["alive"] = found
        return notes["value"]

    # -- one block a particle --------------------------------------------------------------------------------

    def shifts(self, bunch: Array, index: int) -> Array:
        """Return the shift of every column, from the spread of a coordinate or the scale of a number."""
        momentum = np.sqrt(np.mean(np.sum(np.square(bunch[:, [1, 3, 5]]), axis=1)))
        floors = (_FLOOR_X, _FLOOR_P * momentum, _FLOOR_X, _FLOOR_P * momentum, _FLOOR_T, _FLOOR_P * momentum)
        spread = np.maximum(_SHARE * bunch[:, :N_IN].std(axis=0), floors)
        return np.concatenate([spread, [self._step(bunch, index, c) for c in range(len(self.columns))]])

    def _step(self, bunch: Array, index: int, column: int) -> float:
        """Return the step of a machine's number that suits most coordinates of a sample of the particles."""
        c = self.columns[column]
        fixed = None if self.method is None else self.method.fixed_step(c.name, c.scale)
        if fixed is not None:
            return fixed
        key = (c.label, "bunch")
        if key not in self._memory.calibrations:
            sample = np.linspace(0, self._n - 1, min(self._n, _SAMPLE)).astype(int)

            def probe(offsets: Array) -> Array:
                moved = [bunch + offset * np.eye(self.n_in)[N_IN + column] for offset in offsets]
                found = self._run(moved, index)
                lost = np.full(len(sample) * N_OUT, np.nan)
                return np.stack([lost if isinstance(r, SimulatorError) else r[0][sample].ravel() for r in found])

            here = bunch[0, N_IN + column]
            room = (max(here - c.low, 0.0), max(c.high - here, 0.0))
            self._memory.calibrations[key] = calibrate(probe, c.scale, room)
        known = self._memory.calibrations[key]
        moving = known.third > 0
        steps = known.steps(c.scale)[moving]
        return float(np.exp(np.median(np.log(steps)))) if len(steps) else c.scale

    def _jacobian(self, bunch: Array, index: int) -> Array:
        notes = self._notes(bunch, index)
        if "jacobian" not in notes:
            value, lives = self._value(bunch, index), notes["alive"]
            stencils = self._stencils(bunch, self.shifts(bunch, index))
            columns = range(0 if self._is_active else N_IN, self.n_in)
            shifted = [
                bunch + offset * stencils[c].step * np.eye(self.n_in)[c]
                for c in columns
                for offset in stencils[c].offsets
                if offset != 0
            ]
            found = iter(self._good(self._run(shifted, index)))
            jacobian = np.zeros((self._n, N_OUT, self.n_in))
            for c in columns:
                stencil = stencils[c]
                seen = [(value, lives) if offset == 0 else next(found) for offset in stencil.offsets]
                slope = sum(w * rows for w, (rows, _) in zip(stencil.weights, seen, strict=True)) / stencil.step
                through = lives & np.all([alive for _, alive in seen], axis=0)
                jacobian[:, :, c] = np.where(through[:, None], slope, 0.0)
            notes["jacobian"] = jacobian
            self._tell(jacobian, stencils)
            self._check(bunch, index, jacobian)
        return notes["jacobian"]

    def _tell(self, jacobian: Array, stencils: Sequence[Any]) -> None:
        for c, column in enumerate(self.columns):
            known = self._memory.calibrations.get((column.label, "bunch"))
            step = stencils[N_IN + c].step
            for o, coordinate in enumerate(COORDINATES_OUT):
                slope = jacobian[:, o, N_IN + c]
                own = slice(o, None, N_OUT)
                entry = GradientEntry(
                    output=f"particles.{coordinate}",
                    input=column.label,
                    derivative=float(np.sqrt(np.mean(np.square(slope)))),
                    kind="estimated",
                    step=step,
                    noise=None if known is None else float(np.median(known.noise[own])),
                    error=None if known is None else float(np.median(known.error(step)[own])),
                    runs=stencils[N_IN + c].runs,
                )
                self._report(entry)

    def _stencils(self, bunch: Array, shifts: Array) -> list[Any]:
        scheme = "central" if self.method is None else self.method.scheme
        found = []
        for c, step in enumerate(shifts):
            room = (np.inf, np.inf)
            if c >= N_IN:
                column, here = self.columns[c - N_IN], bunch[0, c]
                room = (max(here - column.low, 0.0), max(column.high - here, 0.0))
            found.append(choose(scheme, float(step), room))
        return found

    @staticmethod
    def _good(found: Sequence[tuple[Array, Array] | SimulatorError]) -> list[tuple[Array, Array]]:
        good = []
        for result in found:
            if isinstance(result, SimulatorError):
                raise GradientError(f"no gradient of the bunch: a perturbed run failed: {result}") from result
            good.append(result)
        return good

    def _check(self, bunch: Array, index: int, jacobian: Array) -> None:
        """Measure once, in a random direction, how far the per-particle form is off."""
        if self.method is None or not self.method.check or self._memory.discrepancy is not None or not self._is_active:
            return
        shifts = self.shifts(bunch, index)[:N_IN]
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(self._n, N_IN)) * shifts
        moved = np.concatenate([signs, np.zeros((self._n, self.n_in - N_IN))], axis=1)
        (up, alive_up), (down, alive_down) = self._good(self._run([bunch + moved, bunch - moved], index))
        through = alive_up & alive_down & (self._notes(bunch, index)["alive"])
        seen = 0.5 * (up - down)[through]
        expected = np.einsum("noi,ni->no", jacobian[through][:, :, :N_IN], signs[through])
        size = np.sqrt(np.mean(np.square(seen), axis=0))
        floor = np.finfo(float).eps * 1e3 * np.abs(up).max(axis=0, initial=0.0)
        used = size > floor
        off = np.sqrt(np.mean(np.square(seen - expected), axis=0))[used] / size[used]
        discrepancy = float(off.max(initial=0.0))
        self._memory.discrepancy = discrepancy
        if discrepancy > _TOLERANCE:
            warnings.warn(
                f"particles act on each other in this black box: the per-particle form of its Jacobian is off by "
                f"{discrepancy:.2g} in a random direction, and so are gradients with respect to what lies upstream; "
                "use particles='collective' and forward mode",
                PhysicsWarning,
                stacklevel=2,
            )

    def _hessian(self, bunch: Array, index: int) -> Array:
        """Return the second derivatives of every particle's map, from ``m (m + 1)`` runs for m columns."""
        value, shifts = self._value(bunch, index), 30.0 * self.shifts(bunch, index)
        unit = np.eye(self.n_in)
        moves = [sign * shifts[c] * unit[c] for c in range(self.n_in) for sign in (1, -1)]
        pairs = [(a, b) for a in range(self.n_in) for b in range(a)]
        for a, b in pairs:
            both = shifts[a] * unit[a] + shifts[b] * unit[b]
            moves += [both, -both]
        rows = [found for found, _ in self._good(self._run([bunch + move for move in moves], index))]
        single = [rows[2 * c] + rows[2 * c + 1] for c in range(self.n_in)]
        hessian = np.zeros((self._n, N_OUT, self.n_in, self.n_in))
        for c in range(self.n_in):
            hessian[:, :, c, c] = (single[c] - 2 * value) / shifts[c] ** 2
        for k, (a, b) in enumerate(pairs):
            both = rows[2 * self.n_in + 2 * k] + rows[2 * self.n_in + 2 * k + 1]
            mixed = (both + 2 * value - single[a] - single[b]) / (2 * shifts[a] * shifts[b])
            hessian[:, :, a, b] = hessian[:, :, b, a] = mixed
        return hessian

    # -- a whole perturbed bunch -----------------------------------------------------------------------------

    def along(self, points: Tensor, tangents: Tensor) -> Tensor:
        """Return the derivative of all rows along one direction of the whole bunch, by 2 runs a bunch."""
        bunches = self._bunches(points)
        directions = self._bunches(tangents)
        found = []
        for index, (bunch, direction) in enumerate(zip(bunches, directions, strict=True)):
            rms = np.sqrt(np.mean(np.square(direction), axis=0))
            # Particles that cross a cell of the space-charge grid make kinks: a short way meets fewer of them.
            shifts = 0.1 * self.shifts(bunch, index)
            with np.errstate(divide="ignore"):
                step = np.where(rms > 0, shifts / rms, np.inf).min()
            if not np.isfinite(step):
                found.append(np.zeros((self._n, N_OUT)))
                continue
            (up, alive_up), (down, alive_down) = self._good(
                self._run([bunch + step * direction, bunch - step * direction], index)
            )
            through = alive_up & alive_down
            found.append(np.where(through[:, None], (up - down) / (2 * step), 0.0))
        return torch.from_numpy(np.concatenate(found)).to(points.device)


def collective_bunch(x: Tensor, box: BunchBox) -> Tensor:
    """Evaluate a bunch with collective forces, ``(*batch, n, 6 + p) -> (*batch, n, 7)``.

    Gradient:
        Forward mode only, 2 runs a direction; reverse mode raises ``GradientError``.
    """
    return _Collective.apply(x, box)


class _Collective(torch.autograd.Function):
    """The value of a bunch, whose forward mode pushes a whole perturbed bunch through."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, box: BunchBox) -> Tensor:
        found = box.derivative(x.detach().reshape(-1, x.shape[-1]), 0)
        return found.reshape((*x.shape[:-1], N_OUT)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, BunchBox], output: Tensor) -> None:
        x, ctx.box = inputs
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        ctx.box._refuse_where_there_is_none()

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return _Along.apply(x, tangent, ctx.box)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, box: BunchBox) -> Any:
        if in_dims[0] is None:
            return _Collective.apply(x, box), None
        return _Collective.apply(x.movedim(in_dims[0], 0), box), 0


class _Along(torch.autograd.Function):
    """The derivative along a direction; it has none itself."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, tangent: Tensor, box: BunchBox) -> Tensor:
        x, tangent = torch.broadcast_tensors(x, tangent)
        flat = (value.detach().reshape(-1, value.shape[-1]) for value in (x, tangent))
        return box.along(*flat).reshape((*x.shape[:-1], N_OUT)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise GradientError("a second derivative through collective forces is not available")

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, tangent: Tensor, box: BunchBox) -> Any:
        moved = [
            value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((x, tangent), in_dims[:2], strict=True)
        ]
        return _Along.apply(*moved, box), 0
