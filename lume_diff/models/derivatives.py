"""Jacobians by name, and a model as a function from one tensor to one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lume_diff.errors import GradientError, ShapeError, SimulatorError, ValidationError
from lume_diff.models.evaluation import check_batches
from lume_diff.models.report import JacobianCost, counted
from lume_diff.models.transforms import in_transform
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
    if mode not in ("auto", "forward", "reverse"):
        raise ValidationError(f"mode is {mode!r}; expected 'auto', 'forward' or 'reverse'")
    if in_transform():
        raise GradientError(
            "jacobian was called inside a torch.func transform, which it would cut: call torch.func.jacrev or jacfwd "
            "on model.tensor_function(inputs, outputs) there"
        )
    _check_names(model, inputs, outputs)
    with torch.inference_mode(False):
        point = _Point(model, inputs, outputs, at)
        columns = sum(math.prod(shape) for shape in point.in_shapes.values())
        rows = sum(math.prod(shape) for shape in point.out_shapes.values())
        chosen, reason = mode, "as asked"
        if mode == "auto":
            chosen = "forward" if columns < rows else "reverse"
            reason = f"{counted(columns, 'input component')} against {counted(rows, 'output component')}"
        runs_before = model.runs
        if chosen == "reverse":
            result = _reverse_mode(point)
        else:
            try:
                result = _forward_mode(point)
            except (GradientError, SimulatorError) as error:
                if mode == "forward":
                    raise
                chosen, reason = "reverse", f"forward mode does not work here: {_first_sentence(error)}"
                result = _reverse_mode(point)
    passes = {"forward": columns, "reverse": rows}
    other = "reverse" if chosen == "forward" else "forward"
    model.gradient_report().jacobian = JacobianCost(
        mode=chosen,
        passes=passes[chosen],
        runs=model.runs - runs_before,
        other_mode=other,
        other_passes=passes[other],
        reason=reason,
    )
    return result


def _first_sentence(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 160 else text[:157] + "..."


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

    def outputs(self, changed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the outputs, each ``(*batch, *out_shape)``."""
        values = self.model._compute({**self.inputs, **changed}, list(self.out_shapes))
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
    columns: dict[str, dict[str, list[torch.Tensor]]] = {output: {} for output in point.out_shapes}
    for name, shape in point.in_shapes.items():

        def along(value: torch.Tensor, name: str = name) -> dict[str, Any]:
            return point.outputs({**point.leaves, name: value})

        primal = point.leaves[name].detach()
        for unit in torch.eye(math.prod(shape), dtype=primal.dtype, device=primal.device):
            tangent_in = unit.reshape(shape).expand(primal.shape)
            pushed = torch.func.jvp(along, (primal,), (tangent_in,))[1]
            for output, tangent in pushed.items():
                columns[output].setdefault(name, []).append(tangent.detach())
    return {
        output: {
            name: torch.stack(found, dim=-1).reshape((*point.batch, *shape, *point.in_shapes[name]))
            for name, found in columns[output].items()
        }
        for output, shape in point.out_shapes.items()
    }


class TensorFunction(nn.Module):
    """Map one tensor of inputs to one tensor of outputs, ``(..., n_in) -> (..., n_out)``.

    Attributes:
        input_names, output_names: the variables, in the order of the columns; arrays are flattened.
        n_in, n_out: how many columns.
    """

    def __init__(self, model: LUMEModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        super().__init__()
        _check_names(model, inputs, outputs)
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
        values, start = {}, 0
        for name, shape in zip(self.input_names, self._in_shapes, strict=True):
            size = math.prod(shape)
            values[name] = x[..., start : start + size].reshape((*batch, *shape))
            start += size
        found = self.model(values, outputs=self.output_names)
        shapes = zip(self.output_names, self._out_shapes, strict=True)
        flat = [found[name].reshape(*_batch_of(found[name], shape), math.prod(shape)) for name, shape in shapes]
        batch = torch.broadcast_shapes(batch, *(part.shape[:-1] for part in flat))
        return torch.cat([part.expand(*batch, part.shape[-1]) for part in flat], dim=-1)


def _batch_of(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Size:
    return value.shape[: value.dim() - len(shape)]
