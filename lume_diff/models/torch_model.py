"""TorchModel: any PyTorch module as a model with named variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lume_diff.errors import ShapeError, ValidationError
from lume_diff.models.base import LUMEModel
from lume_diff.models.derivatives import component_shape
from lume_diff.variables import Variable

Transformer = Callable[[torch.Tensor], torch.Tensor]


class TorchModel(LUMEModel):
    """Wrap a surrogate: a network, a fitted formula, any ``nn.Module``.

    Args:
        module: maps ``(batch, n_in)`` to ``(batch, n_out)``, or a dictionary of tensors to one, see ``layout``.
        input_variables: its inputs, in the order of the columns; arrays take as many columns as they have entries.
        output_variables: its outputs, likewise.
        input_transformers: applied to the inputs one after the other: callables, or BoTorch input transforms.
        output_transformers: applied to what the module returns; a BoTorch input transform is undone
            (``untransform``), so that the one fitted to the training data fits here.
        layout: ``"tensor"``, or ``"dict"`` for a module that takes and gives ``{name: tensor}``.
        dtype: by default that of the module's parameters, else ``torch.float64``.
        device: by default that of the module's parameters.
        validation: see ``LUMEModel``.

    Gradient:
        Exact.

    Example:
        >>> from lume_diff.variables import TorchScalarVariable
        >>> model = TorchModel(
        ...     torch.nn.Linear(1, 1, dtype=torch.float64),
        ...     [TorchScalarVariable(name="k1", default_value=0.0, unit="1/m^2")],
        ...     [TorchScalarVariable(name="sigma_x", unit="m", read_only=True)],
        ... )
        >>> model({"k1": 1.0})["sigma_x"].shape
        torch.Size([])
    """

    def __init__(
        self,
        module: nn.Module,
        input_variables: Iterable[Variable],
        output_variables: Iterable[Variable],
        input_transformers: Sequence[Transformer] = (),
        output_transformers: Sequence[Transformer] = (),
        *,
        layout: str = "tensor",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        if layout not in ("tensor", "dict"):
            raise ValidationError(f"layout is {layout!r}; expected 'tensor' or 'dict'")
        inputs = [variable.model_copy(update={"read_only": False}) for variable in input_variables]
        outputs = [variable.model_copy(update={"read_only": True}) for variable in output_variables]
        parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
        super().__init__(
            [*inputs, *outputs],
            dtype=dtype or (parameter.dtype if parameter is not None else torch.float64),
            device=device or (parameter.device if parameter is not None else None),
            validation=validation,
        )
        self.module = module
        self.layout = layout
        self.input_transformers = _Transformers(input_transformers, undo=False)
        self.output_transformers = _Transformers(output_transformers, undo=True)
        self._in_shapes = {v.name: component_shape(v) for v in inputs} if layout == "tensor" else {}
        self._out_shapes = {v.name: component_shape(v) for v in outputs} if layout == "tensor" else {}
        self._all_scalar = not any(self._in_shapes.values())

    @property
    def simulator(self) -> nn.Module:
        """The wrapped module."""
        return self.module

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        del outputs
        unset = [name for name, value in inputs.items() if value is None]
        if unset:
            raise ValidationError(f"input {unset[0]!r} has no value: give the variable a default or set it")
        if self.layout == "dict":
            return self.output_transformers(self.module(self.input_transformers(dict(inputs))))
        columns = self._columns(inputs)
        batch = columns.shape[:-1]
        rows = self.input_transformers(columns.reshape(-1, columns.shape[-1]))
        found = self.output_transformers(self.module(rows))
        return self._split(found, batch)

    def _columns(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return all inputs side by side, ``(*batch, n_in)``."""
        values = list(inputs.values())
        if self._all_scalar:
            if any(value.shape != values[0].shape for value in values):
                values = list(torch.broadcast_tensors(*values))
            return torch.stack(values, dim=-1)
        flat = []
        for value, shape in zip(values, self._in_shapes.values(), strict=True):
            batch = value.shape[: value.dim() - len(shape)]
            flat.append(value.reshape(*batch, math.prod(shape)))
        batch = torch.broadcast_shapes(*(value.shape[:-1] for value in flat))
        return torch.cat([value.expand(*batch, value.shape[-1]) for value in flat], dim=-1)

    def _split(self, found: torch.Tensor, batch: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Return the columns of the module's answer by output name."""
        sizes = [math.prod(shape) for shape in self._out_shapes.values()]
        if found.dim() == 1 and len(sizes) == 1 and sizes[0] == 1:
            found = found.unsqueeze(-1)
        if found.shape[-1] != sum(sizes):
            raise ShapeError(
                f"the module returned shape {tuple(found.shape)}; expected (..., {sum(sizes)}) for outputs "
                f"{list(self._out_shapes)}: check the output variables or the output transformers"
            )
        found = found.reshape(*batch, found.shape[-1])
        if len(sizes) == found.shape[-1] and not any(self._out_shapes.values()):
            return dict(zip(self._out_shapes, found.unbind(-1), strict=True))
        parts = found.split(sizes, dim=-1)
        return {
            name: part.reshape((*batch, *shape))
            for (name, shape), part in zip(self._out_shapes.items(), parts, strict=True)
        }


class _Transformers(nn.Module):
    """Apply transformers in a row; with ``undo`` those that can be undone are."""

    def __init__(self, transformers: Sequence[Transformer], undo: bool) -> None:
        super().__init__()
        if callable(transformers):
            transformers = (transformers,)
        self.steps = nn.ModuleList(t if isinstance(t, nn.Module) else _Step(t) for t in transformers)
        self.undo = undo

    def forward(self, values: Any) -> Any:
        for step in self.steps:
            values = step.untransform(values) if self.undo and hasattr(step, "untransform") else step(values)
        return values


class _Step(nn.Module):
    """Hold a plain callable where a module is wanted."""

    def __init__(self, function: Transformer) -> None:
        super().__init__()
        self.function = function
        if hasattr(function, "untransform"):
            self.untransform = function.untransform

    def forward(self, values: Any) -> Any:
        return self.function(values)
