"""TorchModel: any PyTorch module as a model with named variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import nn

from lume_diff.errors import ShapeError, ValidationError
from lume_diff.models.base import LUMEModel
from lume_diff.models.transforms import buffers_kept
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable

if TYPE_CHECKING:
    from lume_diff.models.surrogates.modules import Allowed

Transformer = Callable[[torch.Tensor], torch.Tensor]


class TorchModel(LUMEModel):
    """Wrap a surrogate: a network, a fitted formula, any ``nn.Module`` or function of a tensor.

    The module is put into evaluation mode, so that dropout and batch normalisation neither draw numbers nor learn when
    the model is read; ``model.train()`` brings training mode back, and then two calls may differ.

    Args:
        module: maps ``(batch, n_in)`` to ``(batch, n_out)`` or, for one output, ``(batch,)``; or a dictionary of
            tensors to one, see ``layout``. Whatever the batch dimensions of the inputs, it is called once.
        input_variables: its inputs, in the order of the columns; arrays take as many columns as they have entries. One
            that is read-only is a constant: it stays at its default value, and can be read but not written.
        output_variables: its outputs, likewise.
        input_transformers: applied to the inputs one after the other: callables, or BoTorch input transforms.
        output_transformers: applied to what the module returns; a BoTorch input transform is undone
            (``untransform``), so that the one fitted to the training data fits here.
        layout: ``"tensor"``, or ``"dict"`` for a module that takes and gives ``{name: tensor}``, each
            ``(*batch, *shape)``, and may take integers, truth values and strings too.
        dtype: by default that of the module's parameters, else ``torch.float64``.
        device: by default that of the module's parameters.
        validation: see ``LUMEModel``.

    Raises:
        ValidationError: for an unknown layout, variables that are no columns, or a dtype other than the module's.
        ShapeError: from an evaluation, if the module returns something that is not the output variables.

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
        module: nn.Module | Callable[[Any], Any],
        input_variables: Iterable[Variable],
        output_variables: Iterable[Variable],
        input_transformers: Sequence[Transformer] | Transformer = (),
        output_transformers: Sequence[Transformer] | Transformer = (),
        *,
        layout: str = "tensor",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        if layout not in ("tensor", "dict"):
            raise ValidationError(f"layout is {layout!r}; expected 'tensor' or 'dict'")
        if not callable(module):
            raise ValidationError(f"module is a {type(module).__name__}; expected an nn.Module or a function")
        module = module if isinstance(module, nn.Module) else _Function(module)
        inputs = list(input_variables)
        constants = [variable for variable in inputs if variable.read_only]
        unset = [repr(variable.name) for variable in constants if variable.default_value is None]
        if unset:
            raise ValidationError(
                f"read-only inputs are constants, and {', '.join(unset)} has no default_value: give one"
            )
        outputs = [variable.model_copy(update={"read_only": True}) for variable in output_variables]
        if len(inputs) == len(constants) or not outputs:
            raise ValidationError("a TorchModel needs at least one input variable and one output variable")
        in_shapes = _columns_of(inputs) if layout == "tensor" else {}
        out_shapes = _columns_of(outputs) if layout == "tensor" else {}
        parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
        own = torch.float64 if parameter is None else parameter.dtype
        if parameter is not None and dtype not in (None, own):
            raise ValidationError(f"dtype is {dtype}, but the module's parameters are {own}: call model.to({dtype})")
        super().__init__(
            [*inputs, *outputs],
            dtype=dtype or own,
            device=device or (None if parameter is None else parameter.device),
            validation=validation,
        )
        self.module = module
        self.layout = layout
        self.input_transformers = _Transformers(input_transformers, undo=False)
        self.output_transformers = _Transformers(output_transformers, undo=True)
        self._in_shapes, self._out_shapes = in_shapes, out_shapes
        self._constants = {variable.name: variable for variable in constants}
        self._all_scalar = not any(in_shapes.values()), not any(out_shapes.values())
        self._out_sizes = [math.prod(shape) for shape in out_shapes.values()]
        self.eval()

    @property
    def constant_names(self) -> list[str]:
        """Names of the inputs of the module that are fixed; they can be read."""
        return list(self._constants)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        *,
        allow: Iterable[Allowed] = (),
        allow_torchscript: bool = False,
        validation: Mapping[str, str] | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Read a model that lume-torch or lume-model (1.0 or later) has dumped, without running code of the file.

        It gives lume-torch's numbers. Names, units, ranges and defaults come along, constants as read-only variables;
        so does what the file says about values outside their ranges for single variables. Where it says nothing, or
        only LUME's general ``none``, they raise on a write and warn in an output, as everywhere here. Parameters are
        frozen.

        Args:
            path: the YAML file of a ``TorchModel`` or ``TorchModule``; the files that it names lie beside it.
            allow: classes of yours that the files may hold, beside PyTorch's layers and BoTorch's input transforms; a
                pair ``(class, "name.in.the.file")`` for one that has moved.
            allow_torchscript: whether TorchScript, which is a program, may be loaded.
            validation: see ``LUMEModel``; comes on top of what the file says.
            device: where the model is to be.

        Raises:
            ValidationError: for a file that is missing, wrong, or holds what is not allowed; with what to ask for.

        Gradient:
            Exact.
        """
        from lume_diff.models.surrogates.reader import read_network

        return cast(Self, read_network(Path(path), allow, allow_torchscript, validation, device))

    @property
    def simulator(self) -> nn.Module:
        """The wrapped module."""
        return self.module

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        del outputs
        unset = [repr(name) for name, value in inputs.items() if value is None]
        if unset:
            raise ValidationError(
                f"{'inputs' if len(unset) > 1 else 'input'} {', '.join(unset)} without a value: give the variables a "
                "default, or set or pass a value"
            )
        fixed = {
            name: variable.validate_value(variable.default_value, dtype=self.dtype, device=self.device)
            for name, variable in self._constants.items()
        }
        inputs = {**inputs, **fixed}
        if self.layout == "dict":
            found = self.output_transformers(self.module(self.input_transformers(inputs)))
            if not isinstance(found, Mapping):
                raise ShapeError(f"the module returned a {type(found).__name__}; layout='dict' wants {{name: tensor}}")
            return {**found, **fixed}
        columns = self._columns(inputs)
        rows = self.input_transformers(columns.reshape(-1, columns.shape[-1]))
        found = self.output_transformers(self.module(rows if rows.dtype is self.dtype else rows.to(self.dtype)))
        batch = columns.shape[:-1]
        expanded = {name: value.expand((*batch, *value.shape)) for name, value in fixed.items()}
        return {**self._split(found, batch), **expanded}

    def _columns(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return all inputs side by side in the order of the variables, ``(*batch, n_in)``."""
        values = [inputs[name] for name in self._in_shapes]
        if self._all_scalar[0]:
            if any(value.shape != values[0].shape for value in values):
                values = list(torch.broadcast_tensors(*values))
            return torch.stack(values, dim=-1)
        flat = []
        for value, shape in zip(values, self._in_shapes.values(), strict=True):
            batch = value.shape[: value.dim() - len(shape)]
            flat.append(value.reshape(*batch, math.prod(shape)))
        batch = torch.broadcast_shapes(*(value.shape[:-1] for value in flat))
        return torch.cat([value.expand(*batch, value.shape[-1]) for value in flat], dim=-1)

    def _split(self, found: Any, batch: torch.Size) -> dict[str, torch.Tensor]:
        """Return the columns of the module's answer by output name."""
        width, count = sum(self._out_sizes), math.prod(batch)
        if not isinstance(found, torch.Tensor):
            raise ShapeError(f"the module returned a {type(found).__name__}; expected a tensor, or layout='dict'")
        if width == 1 and found.shape == (count,):
            found = found.unsqueeze(-1)
        if found.numel() != count * width or found.dim() == 0 or found.shape[-1] != width:
            raise ShapeError(
                f"the module returned shape {tuple(found.shape)} for {count} rows; expected ({count}, {width}) for "
                f"outputs {list(self._out_shapes)}: check the output variables or the output transformers"
            )
        found = found.reshape(*batch, width)
        if self._all_scalar[1]:
            return dict(zip(self._out_shapes, found.unbind(-1), strict=True))
        parts = found.split(self._out_sizes, dim=-1)
        return {
            name: part.reshape((*batch, *shape))
            for (name, shape), part in zip(self._out_shapes.items(), parts, strict=True)
        }


def _columns_of(variables: Iterable[Variable]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of variables that can be columns of a tensor."""
    shapes: dict[str, tuple[int, ...]] = {}
    for variable in variables:
        if isinstance(variable, TorchNDVariable):
            shapes[variable.name] = variable.shape
        elif isinstance(variable, TorchScalarVariable):
            shapes[variable.name] = ()
        else:
            raise ValidationError(
                f"{variable.name!r} is a {type(variable).__name__}, which is no column of a tensor: use a "
                "TorchScalarVariable or TorchNDVariable, or layout='dict'"
            )
    return shapes


class _Transformers(nn.Module):
    """Apply transformers in a row; with ``undo`` those that can be undone are."""

    def __init__(self, transformers: Sequence[Transformer] | Transformer, undo: bool) -> None:
        super().__init__()
        is_one = callable(transformers) and not isinstance(transformers, nn.ModuleList)
        steps: Iterable[Any] = (transformers,) if is_one else transformers  # type: ignore[assignment]
        self.steps = nn.ModuleList(step if isinstance(step, nn.Module) else _Function(step) for step in steps)
        self.undo = undo

    def forward(self, values: Any) -> Any:
        for step in self.steps:
            undone = getattr(step, "untransform", None) if self.undo else None
            with buffers_kept(step):
                values = step(values) if undone is None else undone(values)
            if isinstance(values, tuple):  # BoTorch's outcome transforms give variances as well
                values = values[0]
        return values


class _Function(nn.Module):
    """Hold a plain callable where a module is wanted."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function
        if hasattr(function, "untransform"):
            self.untransform = function.untransform

    def forward(self, values: Any) -> Any:
        return self.function(values)
