"""Backend ``torch``: a fully connected network, its layers in the file and its weights in another."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.machine.backend import Backend, Files
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.machine.sections import File, Section
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel, TorchModel
from lume_diff.variables import TorchScalarVariable, Variable
from lume_diff.variables.serialization import from_dict, to_dict

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
Numbers = Annotated[list[float], Field(min_length=1)]


class Affine(nn.Module):
    """Shift and scale columns: ``(x - offset) / scale``; what it undoes is ``x scale + offset``.

    Args:
        offset, scale: of each column, ``(n,)``.

    Gradient:
        Exact.

    Example:
        >>> Affine([1.0], [2.0])(torch.tensor([[5.0]]))
        tensor([[2.]], dtype=torch.float64)
    """

    def __init__(self, offset: list[float], scale: list[float], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.offset: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("offset", torch.tensor(offset, dtype=dtype))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype))

    def forward(self, columns: torch.Tensor) -> torch.Tensor:
        """Return scaled columns, ``(..., n)``."""
        return (columns - self.offset) / self.scale

    def untransform(self, columns: torch.Tensor) -> torch.Tensor:
        """Return columns as they were before, ``(..., n)``."""
        return columns * self.scale + self.offset


class ScaleSection(Section):
    """``{offset: [0.5, 10.0], scale: [0.1, 2.0]}``: the network sees (x - offset) / scale, column by column."""

    offset: Numbers
    scale: Numbers

    @model_validator(mode="after")
    def _same_length(self) -> ScaleSection:
        if len(self.offset) != len(self.scale):
            raise ValueError(
                f"'offset' has {len(self.offset)} numbers and 'scale' {len(self.scale)}: one a column each"
            )
        if not all(value > 0.0 for value in self.scale):
            raise ValueError("'scale' must be positive")
        return self


class TorchBackend(Backend):
    """``{backend: torch, inputs: {...}, outputs: {...}, hidden: [32, 32], weights: weights.pt}``.

    Attributes:
        inputs, outputs: the fields of their variables by name, in the order of the columns.
        hidden: widths of the layers in between.
        activation: between layers.
        weights: a state dictionary of the ``nn.Sequential``, written by ``torch.save``; only tensors are read from it.
        input_scale, output_scale: how columns are scaled for the network.
        dtype: of the weights.
    """

    inputs: dict[str, dict[str, Any] | None] = Field(min_length=1)
    outputs: dict[str, dict[str, Any] | None] = Field(min_length=1)
    hidden: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(default_factory=list)
    activation: Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"] = "tanh"
    weights: File
    input_scale: ScaleSection | None = None
    output_scale: ScaleSection | None = None
    dtype: Literal["float32", "float64"] = "float64"

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        dtype = getattr(torch, self.dtype)
        widths = [len(self.inputs), *self.hidden, len(self.outputs)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after, dtype=dtype), ACTIVATIONS[self.activation]()]
        network = nn.Sequential(*layers[:-1])
        network.load_state_dict(read_weights(site.path(self.weights), network))
        scales = [
            () if given is None else (Affine(given.offset, given.scale, dtype),)
            for given in (self.input_scale, self.output_scale)
        ]
        return TorchModel(network, variables(self.inputs, False), variables(self.outputs, True), *scales)

    @classmethod
    def of(cls, model: LUMEModel, files: Files) -> Backend | None:
        """Describe a network; its weights go to a file of their own."""
        if not isinstance(model, TorchModel):
            return None
        layers: list[Any] = list(model.module) if isinstance(model.module, nn.Sequential) else []
        linear, between = layers[::2], layers[1::2]
        names = [name for name, kind in ACTIVATIONS.items() if all(_is_default(layer, kind) for layer in between)]
        is_plain = len(layers) % 2 == 1 and (bool(names) or not between)
        if not is_plain or not all(isinstance(layer, nn.Linear) and layer.bias is not None for layer in linear):
            raise ValidationError(
                "a TorchModel is written if its module is an nn.Sequential of nn.Linear layers with one kind of "
                f"activation in between ({', '.join(ACTIVATIONS)}, as torch makes it without arguments); write other "
                "networks by their own means"
            )
        if model.constant_names:
            raise ValidationError(f"a TorchModel with constants ({', '.join(model.constant_names)}) is not written")
        chosen: dict[str, Any] = {"dtype": str(model.dtype).removeprefix("torch.")}
        chosen |= {"activation": names[0]} if between else {}
        sides: Any = (("input_scale", model.input_transformers), ("output_scale", model.output_transformers))
        for field, steps in sides:
            if len(steps.steps) > 1 or not all(isinstance(step, Affine) for step in steps.steps):
                raise ValidationError("a TorchModel is written with one Affine transformer on each side, or none")
            for step in steps.steps:
                chosen[field] = {"offset": step.offset.tolist(), "scale": step.scale.tolist()}
        path, weights = files.new("weights.pt")
        torch.save(model.module.state_dict(), path)
        return cls(
            backend="torch",
            inputs=_fields(model, model.input_names),
            outputs=_fields(model, model.output_names),
            hidden=[layer.out_features for layer in linear[:-1]],
            weights=weights,
            **chosen,
        )

    def stand_in(self, site: Site) -> LUMEModel | None:
        """Return a model with the variables, which stand in the file, and without weights."""
        return stand_in_of(variables(self.inputs, False), variables(self.outputs, True))

    def mistakes(self, node: Node, where: str, site: Site) -> list[Problem]:
        """Tell scales of another length than the columns."""
        found = []
        for field, columns in (("input_scale", self.inputs), ("output_scale", self.outputs)):
            given = getattr(self, field)
            if given is not None and len(given.offset) != len(columns):
                message = f"has {len(given.offset)} columns; expected {len(columns)}, one for each variable"
                found.append(Problem(node.line_of(field), f"{where}.{field}", message))
        return found


def _is_default(layer: Any, kind: type[nn.Module]) -> bool:
    """Tell whether a layer is an activation of a class without arguments of its own, such as another slope."""
    return (
        type(layer) is kind
        and layer.extra_repr().removesuffix("inplace=True").removesuffix(", ") == kind().extra_repr()
    )


class _Placeholder(nn.Module):
    """Return numbers that nobody looks at; as a bunch's energy [eV] they are above its rest energy."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self._columns = columns

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return as many columns as there are outputs, ``(..., n)``."""
        return 1e9 * inputs.new_ones((*inputs.shape[:-1], self._columns))


def stand_in_of(inputs: Iterable[Variable], outputs: Iterable[Variable]) -> TorchModel:
    """Return a model with these variables and no network."""
    shown = list(outputs)
    return TorchModel(_Placeholder(len(shown)), list(inputs), shown)


def variables(described: dict[str, dict[str, Any] | None], read_only: bool) -> list[Variable]:
    """Return the variables that a file describes.

    Raises:
        LumeDiffError: for fields that are wrong, or an array.
    """
    found = [from_dict({**(fields or {}), "name": name, "read_only": read_only}) for name, fields in described.items()]
    for variable in found:
        if not isinstance(variable, TorchScalarVariable):
            raise LumeDiffError(f"variable {variable.name!r} is a {type(variable).__name__}; expected a number")
    return found


def _fields(model: LUMEModel, names: list[str]) -> dict[str, dict[str, Any] | None]:
    """Return what a file says about variables."""
    found: dict[str, dict[str, Any] | None] = {}
    for name in names:
        fields = to_dict(model.supported_variables[name])
        found[name] = {key: value for key, value in fields.items() if key not in ("name", "read_only")} or None
    return found


def read_weights(path: Path, network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights of a network from a file; nothing but tensors is made from it.

    Raises:
        ValidationError: for a file that is something else, or of another network.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValidationError(f"{str(path)!r} holds no weights that torch.load takes: {error}") from None
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes = (
        {name: tuple(getattr(value, "shape", ())) for name, value in found.items()} if isinstance(found, dict) else {}
    )
    if shapes != wanted:
        raise ValidationError(f"{str(path)!r} holds the weights {shapes}; the layers of the file need {wanted}")
    return dict(found)
