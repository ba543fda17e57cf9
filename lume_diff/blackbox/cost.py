"""What derivatives of a black box will take: its simulator runs by mode, counted before any is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.differences.bunch_rows import COORDINATES_OUT, N_IN
from lume_diff.blackbox.differences.bunches import TOLERANCE, typical_step
from lume_diff.blackbox.differences.memory import Column
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.differences.stencil import STENCILS, fitted
from lume_diff.blackbox.differences.steps import StepCalibration
from lume_diff.blackbox.points import columns_of
from lume_diff.errors import GradientError
from lume_diff.models.cost import MODES, DerivativeCost, Question
from lume_diff.models.derivatives import component_shape
from lume_diff.variables import ParticleGroupVariable

if TYPE_CHECKING:
    from lume_diff.blackbox.model import BlackBoxModel


def derivative_cost(model: BlackBoxModel, question: Question) -> DerivativeCost:
    """Return the runs of the value and its derivatives; see ``LUMEModel._derivative_cost``."""
    total = _in_any_mode(question.points)
    if not question.components:
        return total
    variables, method = model.supported_variables, model._gradient
    simulated, bunch = model._simulated(question.outputs), next(iter(model._bunch_inputs), None)
    bunches = [name for name in simulated if isinstance(variables[name], ParticleGroupVariable)]
    numbers = [name for name in simulated if variables[name].is_differentiable and name not in bunches]
    reaches_bunch = bunch in question.reach
    stops = method is not None and method.particles == "stop" and bool(bunches)
    stops = stops or any(model._memory.bunch_dependent.get(name, False) for name in numbers)
    if method is None or (reaches_bunch and stops):
        return DerivativeCost(dict.fromkeys(MODES))
    runs = _Runs(model, method, question, [n for n in model.input_names if n in question.reach and n != bunch])
    if numbers:
        total += _in_any_mode(runs.of_numbers(numbers))
    if bunch is None:
        return sum((_in_any_mode(runs.of_source(name)) for name in bunches), total)
    if not bunches:
        return total
    whole = 2 * len(question.components) * question.points
    if method.particles == "collective":
        return total + DerivativeCost({"reverse": None, "forward": whole, "collective": whole})
    blocks = runs.of_blocks(bunches, bunch)
    off = max([model._memory.discrepancy or 0.0, *runs.of_own_form(bunches, bunch)])
    flaw = f"particles act on each other, a block a particle is off by {off:.2g}"
    is_flawed = reaches_bunch and off > TOLERANCE
    by_mode = {"reverse": blocks, "forward": blocks, "collective": whole}
    return total + DerivativeCost(by_mode, method.particles == "per_particle", flaw if is_flawed else "")


def _in_any_mode(runs: int) -> DerivativeCost:
    return DerivativeCost(dict.fromkeys(MODES, runs))


class _Runs:
    """Count the runs of differences at the points of a question.

    Args:
        model: the black box.
        method: how its derivatives are taken.
        question: where.
        names: the inputs that are moved, the bunch apart.
    """

    def __init__(self, model: BlackBoxModel, method: FiniteDifference, question: Question, names: list[str]) -> None:
        self._variables, self._method, self._question = model.supported_variables, method, question
        self._columns = columns_of(self._variables, names)
        self._known, self._native = model._memory.calibrations, model._memory.native.off
        self._done: set[str] = set()

    def of_numbers(self, outputs: Sequence[str]) -> int:
        """Return the runs of a table of numbers, with several steps for outputs of different noise."""
        labels = tuple(n for n in outputs for _ in range(math.prod(component_shape(self._variables[n]))))
        return sum(self._of_column(column, labels) for column in self._columns)

    def of_source(self, output: str) -> int:
        """Return the runs of a bunch that the simulator makes from numbers."""
        first = f"{output}.{COORDINATES_OUT[0]}"
        labels = next((labels for _, labels in self._known if labels[0] == first), (first,))
        return sum(self._of_column(column, labels) for column in self._columns)

    def of_blocks(self, outputs: Sequence[str], incoming: str) -> int:
        """Return the runs of one block a particle, which all bunches that come out share."""
        total = 0
        if incoming in self._question.reach and not all(self._is_own(name, incoming) for name in outputs):
            total += N_IN * STENCILS[self._method.scheme].runs * self._question.points
        for column in self._columns:
            if all(self._is_own(name, column.label) for name in outputs):
                continue
            fixed = self._method.fixed_step(column.name, column.scale)
            if fixed is not None and not self._is_first(column):
                continue
            known = self._known.get((column.label, tuple(outputs)))
            step = fixed or (column.scale if known is None else typical_step(known, column.scale))
            total += sum(self._of_step(column, step, here) for here in self._places(column))
        return total

    def of_own_form(self, outputs: Sequence[str], incoming: str) -> list[float]:
        """Return how far the code's own maps of the particles are off, as far as that was measured."""
        known = [self._native[name, incoming] for name in outputs if self._is_own(name, incoming)]
        return [float(np.nan_to_num(off).max(initial=0.0)) for off in known]

    def _is_first(self, column: Column) -> bool:
        """Tell whether nobody has run an input's given steps yet, which are the same for all outputs."""
        is_first = column.label not in self._done
        self._done.add(column.label)
        return is_first

    def _is_own(self, output: str, name: str) -> bool:
        """Tell whether the code has given these derivatives of a bunch itself."""
        return self._method.native and (output, name) in self._native

    def _of_column(self, column: Column, labels: tuple[str, ...]) -> int:
        known, own = self._known.get((column.label, labels)), self._native.get((column.label, labels))
        if self._method.native and own is not None:
            rest = np.flatnonzero(np.isnan(own))
            if not len(rest):
                return 0
            known = None if known is None else known.only(rest)
        if self._method.fixed_step(column.name, column.scale) is not None and not self._is_first(column):
            return 0
        return sum(self._of_steps(column, known, here) for here in self._places(column))

    def _of_steps(self, column: Column, known: StepCalibration | None, here: float | None) -> int:
        fixed = self._method.fixed_step(column.name, column.scale)
        if fixed is not None or known is None:
            return self._of_step(column, fixed or column.scale, here)
        room, point = ((math.inf, math.inf), known.place or 0.0) if here is None else (column.room(here), here)
        try:
            plan = known.plan(column.scale, room, self._method.scheme, point=point)
        except GradientError:  # which the derivative itself will raise
            return STENCILS[self._method.scheme].runs
        return sum(STENCILS[part.scheme].runs for part in plan)

    def _of_step(self, column: Column, step: float, here: float | None) -> int:
        room = (math.inf, math.inf) if here is None else column.room(here)
        scheme, _ = fitted(self._method.scheme, step, room) if max(room) > 0 else (self._method.scheme, step)
        return STENCILS[scheme].runs

    def _places(self, column: Column) -> list[float | None]:
        """Return where an input stands at each point; None where an earlier stage will tell."""
        points, value = self._question.points, self._question.values.get(column.name)
        if value is None:
            return [None] * points
        shape = (*self._question.batch, *component_shape(self._variables[column.name]))
        return value.detach().expand(shape).reshape(points, -1)[:, column.index or 0].tolist()
