"""Values and derivatives of a black box at batches of points: few runs, each made once, every one counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.difference import FiniteDifference
from lume_diff.blackbox.differences.noise import calibrate
from lume_diff.blackbox.differences.stencil import Stencil, choose, one_sided
from lume_diff.blackbox.differences.steps import Calibration, step_classes
from lume_diff.errors import GradientError, SimulatorError
from lume_diff.models import GradientEntry

Array = np.ndarray


@dataclass(frozen=True)
class Column:
    """One number among the inputs.

    Attributes:
        name: of the variable.
        index: which of its entries, None for a scalar.
        scale: typical change [unit].
        low, high: bounds [unit].
    """

    name: str
    index: int | None
    scale: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """The variable, with the entry where there are several."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"


class Memory:
    """Keep what was computed at the last points, and what was learned of noise and curvature.

    Args:
        most: how many points to keep.
    """

    def __init__(self, most: int = 256) -> None:
        self._most = most
        self._points: OrderedDict[Any, dict[Any, Any]] = OrderedDict()
        self.calibrations: dict[Any, Calibration] = {}
        self.discrepancy: float | None = None
        self.bunch_dependent: dict[str, bool] = {}

    def at(self, key: Any) -> dict[Any, Any]:
        """Return the notes on a point, which the caller may write in."""
        notes = self._points.setdefault(key, {})
        self._points.move_to_end(key)
        while len(self._points) > self._most:
            self._points.popitem(last=False)
        return notes

    def clear(self) -> None:
        """Forget points and calibrations."""
        self._points.clear()
        self.calibrations.clear()
        self.discrepancy = None
        self.bunch_dependent.clear()


#: Runs rows of numbers, ``(N, n_in)``, at the fixed inputs of point ``i``; a row that fails gives an error.
Evaluate = Callable[[Array, Sequence[int]], list[Array | SimulatorError]]


class DifferenceBox:
    """A black box at fixed other inputs, as the node wants it.

    Args:
        evaluate: runs the simulator.
        columns: the numbers that are differentiated.
        outputs: labels of the output numbers, and the variable each belongs to.
        method: how derivatives are taken; None for a box without a gradient.
        memory: what the model remembers.
        keys: what else the results at each point depend on.
        report: takes an entry for every derivative.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        columns: Sequence[Column],
        outputs: Sequence[str],
        method: FiniteDifference | None,
        memory: Memory,
        keys: Sequence[Any],
        report: Callable[[GradientEntry], None],
    ) -> None:
        self._evaluate = evaluate
        self.columns = list(columns)
        self.outputs = list(outputs)
        self.n_in, self.n_out = len(self.columns), len(self.outputs)
        self._method = method
        self.memory = memory
        self._keys = list(keys)
        self._report = report

    def derivative(self, points: Tensor, order: int) -> Tensor:
        """Return values, Jacobians or Hessians at ``(N, n_in)`` points; see ``node.Derivatives``."""
        if order > 0 and self._method is None:
            raise GradientError(
                "this black box was built without a gradient (gradient=None), so nothing can be differentiated "
                f"through it with respect to {', '.join(c.label for c in self.columns)}; give it FiniteDifference()"
            )
        rows = points.detach().cpu().double().numpy()
        take = {0: self._values, 1: self._jacobians, 2: self._hessians}[order]
        return torch.from_numpy(take(rows)).to(device=points.device)

    @property
    def method(self) -> FiniteDifference:
        """How derivatives are taken; there is one where a derivative is asked for."""
        return self._method or FiniteDifference()

    def _notes(self, row: Array, index: int) -> dict[Any, Any]:
        return self.memory.at(
            (self._keys[index % len(self._keys)], tuple(c.label for c in self.columns), row.tobytes())
        )

    # -- values ----------------------------------------------------------------------------------------------

    def _values(self, rows: Array) -> Array:
        missing = [i for i, row in enumerate(rows) if "value" not in self._notes(row, i)]
        if missing:
            for i, found in zip(missing, self._evaluate(rows[missing], missing), strict=True):
                if isinstance(found, SimulatorError):
                    raise found
                self._notes(rows[i], i)["value"] = found
        return np.stack([self._notes(row, i)["value"] for i, row in enumerate(rows)])

    # -- first derivatives -----------------------------------------------------------------------------------

    def _jacobians(self, rows: Array) -> Array:
        values = self._values(rows)
        missing = [i for i, row in enumerate(rows) if "jacobian" not in self._notes(row, i)]
        if missing:
            plan = [
                (i, c, stencil, members)
                for i in missing
                for c in range(self.n_in)
                for stencil, members in self._stencils(rows[i], i, c)
            ]
            for i in missing:
                self._notes(rows[i], i)["jacobian"] = np.zeros((self.n_out, self.n_in))
            self._fill(rows, values, plan, attempt=0)
        return np.stack([self._notes(row, i)["jacobian"] for i, row in enumerate(rows)])

    def _room(self, row: Array, column: int) -> tuple[float, float]:
        c = self.columns[column]
        return max(row[column] - c.low, 0.0), max(c.high - row[column], 0.0)

    def _stencils(self, row: Array, index: int, column: int) -> list[tuple[Stencil, Array]]:
        """Return the stencils for one input and the outputs that each serves."""
        c, room = self.columns[column], self._room(row, column)
        everything = np.arange(self.n_out)
        fixed = self.method.fixed_step(c.name, c.scale)
        if fixed is not None:
            return [(choose(self.method.scheme, fixed, room), everything)]
        known = self.calibration(row, index, column)
        steps = known.steps(c.scale, scheme=self.method.scheme)
        return [(choose(self.method.scheme, step, room), members) for step, members in step_classes(steps)]

    def calibration(self, row: Array, index: int, column: int) -> Calibration:
        """Return noise and curvature along an input, measured when first wanted."""
        c = self.columns[column]
        key = (c.label, tuple(self.outputs))
        if key not in self.memory.calibrations:

            def probe(offsets: Array) -> Array:
                shifted = np.repeat(row[None, :], len(offsets), axis=0)
                shifted[:, column] += offsets
                found = self._evaluate(shifted, [index] * len(offsets))
                lost = np.full(self.n_out, np.nan)
                return np.stack([lost if isinstance(value, SimulatorError) else value for value in found])

            try:
                self.memory.calibrations[key] = calibrate(probe, c.scale, self._room(row, column))
            except GradientError as error:
                raise GradientError(
                    f"no gradient with respect to {c.label!r} at {row[column]:.10g}: {error}; check its scale "
                    f"({c.scale:g}) and its limits"
                ) from error
        return self.memory.calibrations[key]

    def _fill(self, rows: Array, values: Array, plan: list[tuple[int, int, Stencil, Array]], attempt: int) -> None:
        """Run all stencils of a plan in one batch; those with a failed run are tried again elsewhere."""
        shifted, owners = [], []
        for i, column, stencil, _ in plan:
            for offset in stencil.offsets:
                if offset != 0:
                    row = rows[i].copy()
                    row[column] += offset * stencil.step
                    shifted.append(row)
                    owners.append(i)
        found = iter(self._evaluate(np.array(shifted), owners) if shifted else [])
        again = []
        for i, column, stencil, members in plan:
            seen: list[Any] = [values[i] if offset == 0 else next(found) for offset in stencil.offsets]
            failures = [value for value in seen if isinstance(value, SimulatorError)]
            if failures:
                again.append((i, column, self._second_try(rows[i], column, stencil, attempt, failures[0]), members))
                continue
            # The step that was really taken, after rounding.
            exact = (rows[i][column] + stencil.step) - rows[i][column] or stencil.step
            slope = np.einsum("k,ko->o", np.array(stencil.weights), np.array(seen)) / exact
            self._notes(rows[i], i)["jacobian"][members, column] = slope[members]
            self._tell(column, stencil, members, slope)
        if again:
            self._fill(rows, values, again, attempt + 1)

    def _second_try(self, row: Array, column: int, stencil: Stencil, attempt: int, failure: SimulatorError) -> Stencil:
        room = self._room(row, column)
        if attempt == 0:
            return one_sided(stencil.step, room)
        if attempt == 1:
            return one_sided(stencil.step, room, other=True)
        if attempt < 5:
            return choose("central", 0.1 * stencil.step, room)
        c = self.columns[column]
        raise GradientError(
            f"no gradient with respect to {c.label!r} at {row[column]:.10g}: the simulator fails on both sides at "
            f"every step tried down to {stencil.step:.3g}; last failure: {failure}"
        ) from failure

    def _tell(self, column: int, stencil: Stencil, members: Array, slope: Array) -> None:
        label = self.columns[column].label
        known = self.memory.calibrations.get((label, tuple(self.outputs)))
        error = None if known is None else known.error(stencil.step, stencil.scheme)
        for name in dict.fromkeys(self.outputs[m] for m in members):
            own = [m for m in members if self.outputs[m] == name]
            largest = max(own, key=lambda m: abs(slope[m]))
            self._report(
                GradientEntry(
                    output=name,
                    input=label,
                    kind="estimated",
                    derivative=float(slope[largest]),
                    step=stencil.step,
                    noise=None if known is None else float(known.noise[largest]),
                    error=None if error is None else float(max(error[m] for m in own)),
                    runs=stencil.runs,
                )
            )

    # -- second derivatives ----------------------------------------------------------------------------------

    def _hessians(self, rows: Array) -> Array:
        values = self._values(rows)
        for i, row in enumerate(rows):
            notes = self._notes(row, i)
            if "hessian" not in notes:
                notes["hessian"] = self._hessian(row, values[i], i)
        return np.stack([self._notes(row, i)["hessian"] for i, row in enumerate(rows)])

    def _hessian(self, row: Array, value: Array, index: int) -> Array:
        """Return all second derivatives from ``n (n + 1)`` runs around the point."""
        steps = np.array([self._second_step(row, index, c) for c in range(self.n_in)])
        shifts = [sign * steps[c] * np.eye(self.n_in)[c] for c in range(self.n_in) for sign in (1, -1)]
        pairs = [(a, b) for a in range(self.n_in) for b in range(a)]
        for a, b in pairs:
            both = steps[a] * np.eye(self.n_in)[a] + steps[b] * np.eye(self.n_in)[b]
            shifts += [both, -both]
        found = self._evaluate(row + np.array(shifts), [index] * len(shifts))
        for result in found:
            if isinstance(result, SimulatorError):
                raise GradientError(f"no second derivative at this point: {result}") from result
        numbers: list[Any] = list(found)
        single = [(numbers[2 * c], numbers[2 * c + 1]) for c in range(self.n_in)]
        hessian = np.zeros((self.n_out, self.n_in, self.n_in))
        for c, (up, down) in enumerate(single):
            hessian[:, c, c] = (up - 2 * value + down) / steps[c] ** 2
        for k, (a, b) in enumerate(pairs):
            up, down = numbers[2 * self.n_in + 2 * k], numbers[2 * self.n_in + 2 * k + 1]
            mixed = up + down + 2 * value - sum(single[a]) - sum(single[b])
            hessian[:, a, b] = hessian[:, b, a] = mixed / (2 * steps[a] * steps[b])
        return hessian

    def _second_step(self, row: Array, index: int, column: int) -> float:
        """Return a step for second derivatives that suits most outputs."""
        c, (left, right) = self.columns[column], self._room(row, column)
        fixed = self.method.fixed_step(c.name, c.scale)
        if fixed is None:
            steps = self.calibration(row, index, column).steps(c.scale, scheme="mixed" if self.n_in > 1 else "second")
            fixed = float(np.exp(np.median(np.log(steps))))
        room = min(left, right)
        if room < 0.1 * fixed:
            raise GradientError(
                f"no second derivative with respect to {c.label!r} at {row[column]:.10g}, which is at its limit"
            )
        return min(fixed, room)
