"""Jacobians by name, and a model as a function from one tensor to one tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lume_diff.errors import GradientError, ShapeError, SimulatorError, ValidationError, shortened
from lume_diff.models.cost import MODES, DerivativeCost, Question, whole_bunches
from lume_diff.models.evaluation import check_batches
from lume_diff.models.forward_mode import directions_at_once, pushed
from lume_diff.models.report import JacobianCost, ModeCost, counted
from lume_diff.models.transforms import in_transform, tensors_in
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable

if TYPE_CHECKING:
    from lume_diff.models.base import LUMEModel


def component_shape(variable: Variable) -> tuple[int, ...]:
    """Return the shape of one value without batch: ``()`` for a scalar.

    Raises:
        GradientError: for a variable that has no components to differentiate.
    """
    if isinstance(variable, TorchScalarVariable):
        return ()
    if isinstance(variable, TorchNDVariable):
        return tuple(variable.shape)
    raise GradientError(
        f"{variable.name!r} is a {type(variable).__name__}, which has no derivative as a table of numbers; "
        "use scalar or array variables, or backpropagate through the value itself"
    )


def jacobian(
    model: LUMEModel,
    outputs: Sequence[str],
    inputs: Sequence[str],
    at: Mapping[str, Any] | None,
    mode: str,
) -> dict[str, dict[str, torch.Tensor]]:
    """Compute ``{output: {input: (*batch, *out_shape, *in_shape)}}``; see ``LUMEModel.jacobian``."""
    if mode not in ("auto", *MODES):
        raise ValidationError(f"mode is {mode!r}; expected 'auto', {', '.join(map(repr, MODES[:-1]))} or {MODES[-1]!r}")
    if in_transform():
        raise GradientError(
            "jacobian was called inside a torch.func transform, which it would cut: call torch.func.jacrev or jacfwd "
            "on model.tensor_function(inputs, outputs) there"
        )
    _check_names(model, inputs, outputs)
    with torch.inference_mode(False):
        point = _Point(model, inputs, outputs, at)
        runs, learning = model._spent()
        if mode == "auto":
            chosen, result, reason = _cheapest(point)
        else:
            chosen, result, reason = mode, _take(point, mode), "as asked"
    all_runs, all_learning = (now - then for now, then in zip(model._spent(), (runs, learning), strict=True))
    costs = point.costs()
    model.gradient_report().jacobian = JacobianCost(
        mode=chosen,
        passes=costs[chosen].passes,
        runs=all_runs - all_learning,
        learning_runs=all_learning,
        predicted=costs[chosen],
        alternatives=tuple(cost for name, cost in costs.items() if name != chosen and point.offers(name)),
        reason=reason,
    )
    return result


def _take(point: _Point, mode: str) -> dict[str, dict[str, torch.Tensor]]:
    if mode == "reverse":
        return _reverse_mode(point)
    token = whole_bunches.set(mode == "collective")
    try:
        return _forward_mode(point)
    finally:
        whole_bunches.reset(token)


def _cheapest(point: _Point) -> tuple[str, dict[str, dict[str, torch.Tensor]], str]:
    """Return the cheapest correct mode that works, the Jacobian, and why it was taken."""
    mode, *others = point.ranking()
    tried, failed = [mode], ""
    while True:
        try:
            result = _take(point, mode)
            break
        except (GradientError, SimulatorError) as error:
            is_simulator = isinstance(error, SimulatorError) and not point.cost.is_free
            if is_simulator or not others:
                raise
            failed = failed or f"{mode} mode does not work here: {shortened(str(error), 160)}"
            mode = others.pop(0)
            tried.append(mode)
    flaw, best = point.costs()[mode].flaw, point.ranking()[0]  # which the runs just made may have shown
    if not flaw:
        return mode, result, failed or point.reason(mode)
    if best not in tried:
        try:
            return best, _take(point, best), f"{mode} mode is not correct here: {flaw}"
        except GradientError as error:
            failed = f"{best} mode does not work here: {shortened(str(error), 160)}"
    return mode, result, f"not correct: {flaw}; {failed or 'there is no other mode'}"


def _check_names(model: LUMEModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for names, word in ((inputs, "inputs"), (outputs, "outputs")):
        if isinstance(names, str):
            raise ValidationError(f"{word} must be a list of names, got the string {names!r}: write [{names!r}]")
        if not names:
            raise ValidationError(f"{word} is empty: name at least one variable")
        for name in names:
            model._variable(name)
    for name in inputs:
        if name not in model.input_names:
            raise ValidationError(f"{name!r} is an output of the model; derivatives are taken with respect to inputs")


class _Point:
    """Where a Jacobian is taken: all inputs; what is differentiated has a value for every batch member."""

    def __init__(
        self, model: LUMEModel, inputs: Sequence[str], outputs: Sequence[str], at: Mapping[str, Any] | None
    ) -> None:
        self.model = model
        self.in_shapes = {name: component_shape(model.supported_variables[name]) for name in inputs}
        self.out_shapes = {name: component_shape(model.supported_variables[name]) for name in outputs}
        self.inputs = model._merged(model._checked_inputs({} if at is None else at))
        self.batch = check_batches(model.supported_variables, self.inputs)
        self.leaves: dict[str, torch.Tensor] = {}
        for name, shape in self.in_shapes.items():
            if self.inputs[name] is None:
                raise ValidationError(f"input {name!r} has no value: pass it in `at` or set it")
            self.leaves[name] = self.inputs[name].detach().expand((*self.batch, *shape)).clone()
        self.columns = sum(math.prod(shape) for shape in self.in_shapes.values())
        self.rows = sum(math.prod(shape) for shape in self.out_shapes.values())
        self.cost = self._cost()

    # -- what it takes ---------------------------------------------------------------------------------------

    def _cost(self) -> DerivativeCost:
        reach = {name: frozenset((name, i) for i in range(math.prod(s))) for name, s in self.in_shapes.items()}
        outputs = [name for name in self.out_shapes if name not in self.inputs]
        values = {**self.inputs, **self.leaves}
        question = Question(values, reach, outputs, self.batch, self.model._evaluation)
        return self.model._derivative_cost(question)

    def offers(self, mode: str) -> bool:
        """Tell whether a mode differs from the others here."""
        return mode != "collective" or self.cost.has_blocks

    def costs(self) -> dict[str, ModeCost]:
        """Return what every mode takes, by what is known now of noise and forces."""
        self.cost = self._cost()
        found = {}
        for mode in MODES:
            flaw = self.cost.flaw if mode != "collective" else ""
            passes = self.rows if mode == "reverse" else self.columns
            found[mode] = ModeCost(mode, passes, self.cost.runs[mode], flaw)
        return found

    def ranking(self) -> list[str]:
        """Return the modes that may work: correct ones first, then by runs, then by passes."""
        costs = [cost for mode, cost in self.costs().items() if self.offers(mode)]
        costs.sort(key=lambda cost: (bool(cost.flaw), cost.runs or 0, cost.passes))
        return [cost.mode for cost in costs if cost.runs is not None] or [costs[0].mode]

    def reason(self, mode: str) -> str:
        """Return why a mode comes first."""
        costs = self.costs()
        mine = costs.pop(mode)
        others = [cost for cost in costs.values() if self.offers(cost.mode) and not cost.flaw]
        possible = [cost.runs for cost in others if cost.runs is not None]
        if not possible:
            return "no other mode works"
        if mine.runs is not None and mine.runs < min(possible):
            return f"{counted(mine.runs, 'simulator run')} against {min(possible)}"
        return f"{counted(self.columns, 'input component')} against {counted(self.rows, 'output component')}"

    @property
    def at_once(self) -> int:
        """How many directions go through the model together; one after the other through a black box."""
        if not self.cost.is_free:
            return 1
        taken = sum(tensor.numel() for value in self.inputs.values() for tensor in tensors_in(value))
        return directions_at_once(math.prod(self.batch) * (self.rows + taken))

    # -- what it gives ---------------------------------------------------------------------------------------

    def outputs(self, changed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the outputs, each ``(*batch, *out_shape)``."""
        values = self.model._compute({**self.inputs, **changed}, list(self.out_shapes))
        for name, shape in self.out_shapes.items():
            batch = _batch_of(values[name], shape)
            if torch.broadcast_shapes(batch, self.batch) != self.batch:
                raise ShapeError(
                    f"output {name!r} has the batch dimensions {tuple(batch)} and the inputs have {self.batch}: the "
                    "model has a batch in numbers that are no inputs; make them inputs, or one number each"
                )
        return {name: values[name].expand((*self.batch, *shape)) for name, shape in self.out_shapes.items()}


def _reverse_mode(point: _Point) -> dict[str, dict[str, torch.Tensor]]:
    depth = len(point.batch)
    with torch.enable_grad():
        leaves = {name: leaf.requires_grad_() for name, leaf in point.leaves.items()}
        values = point.outputs(leaves)
        result: dict[str, dict[str, torch.Tensor]] = {}
        for output, shape in point.out_shapes.items():
            flat = values[output].reshape((*point.batch, math.prod(shape)))
            rows = [
                torch.autograd.grad(row.sum(), list(leaves.values()), retain_graph=True, materialize_grads=True)
                if row.requires_grad
                else [torch.zeros_like(leaf) for leaf in leaves.values()]
                for row in flat.unbind(-1)
            ]
            result[output] = {
                name: torch.stack(column, dim=depth).reshape((*point.batch, *shape, *point.in_shapes[name]))
                for name, column in zip(leaves, zip(*rows, strict=True), strict=True)
            }
    return result


def _forward_mode(point: _Point) -> dict[str, dict[str, torch.Tensor]]:
    leaves = {name: leaf.detach() for name, leaf in point.leaves.items()}
    widths = [math.prod(shape) for shape in point.in_shapes.values()]
    units = torch.eye(point.columns).split(widths, dim=1)
    directions = [
        unit.to(leaf).reshape((-1, *[1] * len(point.batch), *shape)).expand(-1, *leaf.shape)
        for unit, leaf, shape in zip(units, leaves.values(), point.in_shapes.values(), strict=True)
    ]

    def along(*values: torch.Tensor) -> dict[str, torch.Tensor]:
        return point.outputs(dict(zip(leaves, values, strict=True)))

    _, found = pushed(along, list(leaves.values()), directions, point.at_once)
    return {
        output: {
            name: part.movedim(0, -1).reshape((*point.batch, *shape, *point.in_shapes[name]))
            for name, part in zip(leaves, found[output].split(widths), strict=True)
        }
        for output, shape in point.out_shapes.items()
    }


class TensorFunction(nn.Module):
    """Map one tensor to another, ``(..., n_in) -> (..., n_out)``; see ``LUMEModel.tensor_function``.

    Attributes:
        input_names, output_names: the variables, in the order of the columns; arrays are flattened.
        n_in, n_out: how many columns.
    """

    def __init__(self, model: LUMEModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        _check_names(model, inputs, outputs)
        twice = [name for name, count in Counter(inputs).items() if count > 1]
        if twice:
            raise ValidationError(f"input {twice[0]!r} is named twice: one column cannot be told from the other")
        self.model = model
        self.input_names, self.output_names = list(inputs), list(outputs)
        self._in_shapes = [component_shape(model.supported_variables[name]) for name in inputs]
        self._out_shapes = [component_shape(model.supported_variables[name]) for name in outputs]
        self.n_in = sum(math.prod(shape) for shape in self._in_shapes)
        self.n_out = sum(math.prod(shape) for shape in self._out_shapes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the outputs for inputs of shape ``(..., n_in)``; returns ``(..., n_out)``."""
        if x.dim() == 0 or x.shape[-1] != self.n_in:
            raise ShapeError(f"x has shape {tuple(x.shape)}; expected (..., {self.n_in}) for {self.input_names}")
        batch = x.shape[:-1]
        if any(self._in_shapes):
            columns = x.split([math.prod(shape) for shape in self._in_shapes], dim=-1)
            parts = [part.reshape((*batch, *shape)) for part, shape in zip(columns, self._in_shapes, strict=True)]
        else:
            parts = list(x.unbind(-1))
        found = self.model(dict(zip(self.input_names, parts, strict=True)), outputs=self.output_names)
        if not any(self._out_shapes):
            values = [found[name] for name in self.output_names]
            if any(value.shape != batch for value in values):
                batch = torch.broadcast_shapes(batch, *(value.shape for value in values))
                values = [value.expand(batch) for value in values]
            return torch.stack(values, dim=-1)
        shapes = zip(self.output_names, self._out_shapes, strict=True)
        flat = [found[name].reshape(*_batch_of(found[name], shape), math.prod(shape)) for name, shape in shapes]
        batch = torch.broadcast_shapes(batch, *(part.shape[:-1] for part in flat))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in flat], dim=-1)


def _batch_of(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Size:
    return value.shape[: value.dim() - len(shape)]
