"""Values and derivatives of a black box at batches of points: few runs, each made once, every one counted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.differences.check import check_numbers
from lume_diff.blackbox.differences.memory import BlackBoxMemory, Column
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.differences.noise import calibrate
from lume_diff.blackbox.differences.second import hessian
from lume_diff.blackbox.differences.stencil import STENCILS, exact_step, fitted, one_sided
from lume_diff.blackbox.differences.steps import StepCalibration, StepClass
from lume_diff.errors import GradientError, SimulatorError
from lume_diff.models import GradientEntry

Array = np.ndarray

#: Runs rows of numbers, ``(N, n_in)``, at the fixed inputs of point ``i``; a row that fails gives an error.
Evaluate = Callable[[Array, Sequence[int]], list[Array | SimulatorError]]
#: Asks the simulator for derivatives of its own at such rows: ``(n_out, n_in)`` each, NaN for what it does not cover.
Native = Callable[[Array, Sequence[int]], list[Array]]


class DifferenceBox:
    """A black box at fixed other inputs, as the node wants it.

    Args:
        evaluate: runs the simulator.
        columns: the numbers that are differentiated.
        outputs: for each number that comes out, the variable that it belongs to.
        method: how derivatives are taken; None for a box without a gradient.
        memory: what the model remembers.
        keys: what else the results at each point depend on.
        report: takes an entry for every derivative.
        native: asks for derivatives that the simulator has itself.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        columns: Sequence[Column],
        outputs: Sequence[str],
        method: FiniteDifference | None,
        memory: BlackBoxMemory,
        keys: Sequence[Any],
        report: Callable[[GradientEntry], None],
        native: Native | None = None,
    ) -> None:
        self.evaluate = evaluate
        self.columns = list(columns)
        self.outputs = list(outputs)
        self.n_in, self.n_out = len(self.columns), len(self.outputs)
        self._method = method
        self.memory = memory
        self._keys = list(keys)
        self._labels = tuple(column.label for column in self.columns)
        self._held: dict[Any, dict[Any, Any]] = {}  # for as long as the graph, even where the memory is too small
        self._report = report
        self._native = native

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
        key = (self._keys[index % len(self._keys)], self._labels, row.tobytes())
        if key not in self._held:
            self._held[key] = self.memory.at(key, 8 * self.n_out * (1 + self.n_in))
        return self._held[key]

    def _stacked(self, what: str, rows: Array, shape: tuple[int, ...]) -> Array:
        """Return what is noted at all points, which may be none."""
        return np.array([self._notes(row, i)[what] for i, row in enumerate(rows)]).reshape(len(rows), *shape)

    # -- values ----------------------------------------------------------------------------------------------

    def _values(self, rows: Array) -> Array:
        missing = [i for i, row in enumerate(rows) if "value" not in self._notes(row, i)]
        if missing:
            for i, found in zip(missing, self.evaluate(rows[missing], missing), strict=True):
                if isinstance(found, SimulatorError):
                    raise found
                self._notes(rows[i], i)["value"] = found
        return self._stacked("value", rows, (self.n_out,))

    # -- first derivatives -----------------------------------------------------------------------------------

    def _jacobians(self, rows: Array) -> Array:
        values = self._values(rows)
        missing = [i for i, row in enumerate(rows) if "jacobian" not in self._notes(row, i)]
        if missing:
            blocks = self._own_derivatives(rows, values, missing)
            plan = [
                (i, c, part)
                for i, block in zip(missing, blocks, strict=True)
                for c in range(self.n_in)
                for part in self.parts(rows[i], i, c, np.flatnonzero(np.isnan(block[:, c])))
            ]
            jacobians = {i: np.nan_to_num(block) for i, block in zip(missing, blocks, strict=True)}
            with self.memory.spending("jacobian"):
                before = self.memory.spent["jacobian"]
                self._fill(jacobians, rows, values, plan, attempt=0)
                self.memory.last = len(missing), self.n_in, self.memory.spent["jacobian"] - before
            for i, jacobian in jacobians.items():  # only now that all of it is there: a failure leaves no zeros behind
                self._notes(rows[i], i)["jacobian"] = jacobian
        return self._stacked("jacobian", rows, (self.n_out, self.n_in))

    def parts(self, row: Array, index: int, column: int, outputs: Array, scheme: str | None = None) -> list[StepClass]:
        """Return the differences that give the derivatives of some outputs with respect to one input."""
        c, here = self.columns[column], float(row[column])
        if not len(outputs):
            return []
        with self.named(column, here):
            fixed = self.method.fixed_step(c.name, c.scale)
            if fixed is not None:
                name, step = fitted(scheme or self.method.scheme, fixed, c.room(here))
                return [StepClass(name, exact_step(here, step), outputs, np.full(len(outputs), np.nan))]
            known = self.calibration(row, index, column)
            known = known if len(outputs) == self.n_out else known.only(outputs)
            plan = known.plan(c.scale, c.room(here), scheme or self.method.scheme, point=here)
            return [dataclasses.replace(part, outputs=outputs[part.outputs]) for part in plan]

    def calibration(self, row: Array, index: int, column: int) -> StepCalibration:
        """Return noise and curvature along an input, measured when first wanted."""
        c, here = self.columns[column], float(row[column])

        def probe(offsets: Array) -> Array:
            found = self.evaluate(self.shifted(row, column, offsets), [index] * len(offsets))
            lost = np.full(self.n_out, np.nan)
            return np.stack([lost if isinstance(value, SimulatorError) else value for value in found])

        def measure() -> StepCalibration:
            return dataclasses.replace(calibrate(probe, c.scale, c.room(here)), place=here)

        with self.named(column, here):
            return self.memory.calibration(c, self.outputs, measure)

    @contextlib.contextmanager
    def named(self, column: int, here: float) -> Iterator[None]:
        """Say of which input a gradient error is."""
        c = self.columns[column]
        try:
            yield
        except GradientError as error:
            if str(error).startswith("no gradient"):
                raise
            raise GradientError(
                f"no gradient with respect to {c.label!r} at {here:.10g}: {error}; check its scale ({c.scale:g}) and "
                "its limits"
            ) from error

    def shifted(self, row: Array, column: int, offsets: Array) -> Array:
        """Return rows that are moved along one input."""
        rows = np.repeat(row[None, :], len(offsets), axis=0)
        rows[:, column] += offsets
        return rows

    def _fill(
        self,
        jacobians: Mapping[int, Array],
        rows: Array,
        values: Array,
        plan: list[tuple[int, int, StepClass]],
        attempt: int,
    ) -> None:
        """Run all differences of a plan in one batch; those with a failed run are tried again elsewhere.

        An output that is not a number at a shifted point, such as a particle that is lost there, gets a zero.
        """
        if not plan:
            return
        moved = [self.shifted(rows[i], column, part.offsets) for i, column, part in plan]
        owners = [i for (i, _, _), those in zip(plan, moved, strict=True) for _ in those]
        found = iter(self.evaluate(np.concatenate(moved), owners))
        again = []
        for (i, column, part), those in zip(plan, moved, strict=True):
            seen: list[Any] = [next(found) for _ in those]
            failures = [value for value in seen if isinstance(value, SimulatorError)]
            if failures:
                again.append((i, column, self._second_try(rows[i], column, part, attempt, failures[0])))
                continue
            slope = part.derivative(values[i], seen)
            slope = np.where(np.isnan(slope), 0.0, slope)
            jacobians[i][part.outputs, column] = slope[part.outputs]
            self.tell(part, slope, self.columns[column].label, self.columns[column])
        self._fill(jacobians, rows, values, again, attempt + 1)

    def _second_try(self, row: Array, column: int, part: StepClass, attempt: int, failure: SimulatorError) -> StepClass:
        """Return another difference: to one side, to the other one, then closer and closer to the point."""
        c, here = self.columns[column], float(row[column])
        room = c.room(here)
        if attempt >= 5:
            raise GradientError(
                f"no gradient with respect to {c.label!r} at {here:.10g}: the simulator fails at every step tried down "
                f"to {abs(part.step):.3g}; last failure: {failure}"
            ) from failure
        scheme, step = one_sided(part.step, room, other=attempt == 1)
        if attempt > 1 or step == 0.0 or (scheme, step) == (part.scheme, part.step):
            scheme, step = fitted("central", 0.1 * abs(part.step), room)
        known = self.memory.known(c, self.outputs)
        error = np.full(len(part.outputs), np.nan) if known is None else known.error(step, scheme)[part.outputs]
        with self.named(column, here):
            return StepClass(scheme, exact_step(here, step), part.outputs, error)

    def tell(self, part: StepClass, slope: Array, label: str, column: Column) -> None:
        """Report the derivatives that a difference along an input gave, the largest of each output."""
        known = self.memory.known(column, self.outputs)
        for name in dict.fromkeys(self.outputs[m] for m in part.outputs):
            own = [place for place, m in enumerate(part.outputs) if self.outputs[m] == name]
            largest = max((part.outputs[place] for place in own), key=lambda m: abs(slope[m]))
            error = max(part.error[place] for place in own)
            self.report(
                name,
                label,
                derivative=float(slope[largest]),
                step=abs(part.step),
                noise=None if known is None else float(known.noise[largest]),
                error=None if np.isnan(error) else float(error),
                runs=STENCILS[part.scheme].runs,
            )

    def report(self, output: str, name: str, kind: str = "estimated", **numbers: Any) -> None:
        """Tell the model of a derivative; see ``GradientEntry``."""
        self._report(GradientEntry(output=output, input=name, kind=kind, **numbers))

    # -- derivatives of the code's own -----------------------------------------------------------------------

    def _own_derivatives(self, rows: Array, values: Array, missing: list[int]) -> list[Array]:
        """Return what the code knows itself of the Jacobians at some points, NaN for the rest, checked once."""
        if self._native is None or not self.n_out:
            return [np.full((self.n_out, self.n_in), np.nan)] * len(missing)
        blocks, use = self._native(rows[missing], missing), self.memory.native
        use.asked += len(missing)
        for i, block in zip(missing, blocks, strict=True):
            covered = ~np.isnan(block)
            use.given += int(covered.sum())
            use.saved += STENCILS[self.method.scheme].runs * int(covered.all(axis=0).sum())
            if self.method.check and covered.any():
                check_numbers(self, rows[i], values[i], i, block)
            for c in np.flatnonzero(covered.any(axis=0)):
                self._tell_own(int(c), block[:, c])
        return blocks

    def _tell_own(self, column: int, slope: Array) -> None:
        label = self.columns[column].label
        off = self.memory.native.off.get((label, tuple(self.outputs)), np.full(self.n_out, np.nan))
        for name in dict.fromkeys(self.outputs):
            own = [m for m, output in enumerate(self.outputs) if output == name and not np.isnan(slope[m])]
            if own:
                largest, error = max(own, key=lambda m: abs(slope[m])), max(off[own])
                self.report(
                    name,
                    label,
                    kind="native",
                    derivative=float(slope[largest]),
                    error=None if np.isnan(error) else float(error),
                )

    # -- second derivatives ----------------------------------------------------------------------------------

    def _hessians(self, rows: Array) -> Array:
        values = self._values(rows)
        for i, row in enumerate(rows):
            notes = self._notes(row, i)
            if "hessian" not in notes:
                with self.memory.spending("hessian"):
                    notes["hessian"] = hessian(self, row, values[i], i)
        return self._stacked("hessian", rows, (self.n_out, self.n_in, self.n_in))
