"""Jacobians by name, and a model as a function from one tensor to one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lume_diff.errors import GradientError, ShapeError, ValidationError
from lume_diff.models.report import JacobianCost
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
    _check_names(model, inputs, outputs)
    in_shapes = {name: component_shape(model.supported_variables[name]) for name in inputs}
    out_shapes = {name: component_shape(model.supported_variables[name]) for name in outputs}
    columns = sum(math.prod(shape) for shape in in_shapes.values())
    rows = sum(math.prod(shape) for shape in out_shapes.values())
    chosen = mode if mode != "auto" else ("forward" if columns < rows else "reverse")

    point = _point(model, inputs, in_shapes, at)
    runs_before = model.runs
    if chosen == "forward":
        result = _forward_mode(model, outputs, point, in_shapes, out_shapes)
    else:
        result = _reverse_mode(model, outputs, point, in_shapes, out_shapes)
    reason = f"{columns} input components against {rows} output components" if mode == "auto" else "as asked"
    forward = chosen == "forward"
    model.gradient_report().jacobian = JacobianCost(
        mode=chosen,
        passes=columns if forward else rows,
        runs=model.runs - runs_before,
        other_mode="reverse" if forward else "forward",
        other_passes=rows if forward else columns,
        reason=reason,
    )
    return result


def _check_names(model: LUMEModel, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    for names, word in ((inputs, "inputs"), (outputs, "outputs")):
        if isinstance(names, str):
            raise ValidationError(f"{word} must be a list of names, got the string {names!r}: write [{names!r}]")
        for name in names:
            model._variable(name)
    for name in inputs:
        if name not in model.input_names:
            raise ValidationError(f"{name!r} is an output of the model; derivatives are taken with respect to inputs")


def _point(
    model: LUMEModel, inputs: Sequence[str], in_shapes: Mapping[str, tuple[int, ...]], at: Mapping[str, Any] | None
) -> dict[str, torch.Tensor]:
    """Return a value of its own for every batch member, ``(*batch, *in_shape)``, detached.

    The inputs that are not differentiated are in the result too when they were given in ``at``.
    """
    given = model._checked_inputs(at or {})
    setpoints = {name: given.get(name, model.get(name)) for name in model.input_names}
    model._check_batches(setpoints)
    batch: tuple[int, ...] = ()
    for name, value in setpoints.items():
        if value is not None:
            batch = tuple(torch.broadcast_shapes(batch, model.supported_variables[name].batch_shape(value)))
    point = {}
    for name in inputs:
        if setpoints[name] is None:
            raise ValidationError(f"input {name!r} has no value: pass it in `at` or set it")
        point[name] = setpoints[name].detach().expand((*batch, *in_shapes[name])).clone()
    return {**given, **point}


def _reverse_mode(
    model: LUMEModel,
    outputs: Sequence[str],
    point: Mapping[str, Any],
    in_shapes: Mapping[str, tuple[int, ...]],
    out_shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, torch.Tensor]]:
    with torch.enable_grad():
        leaves = {name: point[name].requires_grad_() for name in in_shapes}
        values = model({**point, **leaves}, outputs=list(outputs))
    result: dict[str, dict[str, torch.Tensor]] = {}
    for output in outputs:
        value, shape = values[output], out_shapes[output]
        batch = value.shape[: value.dim() - len(shape)]
        flat = value.reshape((*batch, -1))
        row_list = []
        for index in range(flat.shape[-1]):
            if value.requires_grad:
                found = torch.autograd.grad(
                    flat[..., index].sum(), list(leaves.values()), retain_graph=True, allow_unused=True
                )
            else:
                found = (None,) * len(leaves)
            row_list.append(
                [
                    torch.zeros_like(leaf) if gradient is None else gradient
                    for gradient, leaf in zip(found, leaves.values(), strict=True)
                ]
            )
        result[output] = {
            name: torch.stack([row[column] for row in row_list], dim=len(batch)).reshape((*batch, *shape, *in_shapes[name]))
            for column, name in enumerate(in_shapes)
        }
    return result


def _forward_mode(
    model: LUMEModel,
    outputs: Sequence[str],
    point: Mapping[str, Any],
    in_shapes: Mapping[str, tuple[int, ...]],
    out_shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, dict[str, torch.Tensor]]:
    columns: dict[str, dict[str, list[torch.Tensor]]] = {output: {name: [] for name in in_shapes} for output in outputs}

    for name, shape in in_shapes.items():

        def along(value: torch.Tensor, name: str = name) -> dict[str, Any]:
            return model({**point, name: value}, outputs=list(outputs))

        primal = point[name]
        for index in range(math.prod(shape)):
            tangent = torch.zeros_like(primal).reshape(*primal.shape[: primal.dim() - len(shape)], -1)
            tangent[..., index] = 1.0
            _, pushed = torch.func.jvp(along, (primal,), (tangent.reshape(primal.shape),))
            for output in outputs:
                columns[output][name].append(pushed[output].detach())
    return {
        output: {
            name: torch.stack(columns[output][name], dim=-1).reshape((*columns[output][name][0].shape, *in_shapes[name]))
            for name in in_shapes
        }
        for output in outputs
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
        parts = []
        for name, shape in zip(self.output_names, self._out_shapes, strict=True):
            value = found[name]
            inner = value.shape[: value.dim() - len(shape)]
            flat = value.reshape((*inner, -1)) if shape else value.unsqueeze(-1)
            parts.append(flat.expand(*torch.broadcast_shapes(inner, batch), flat.shape[-1]))
        return torch.cat(parts, dim=-1)
