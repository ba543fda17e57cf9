"""Files of lume-torch and lume-model, read into models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lume_diff.errors import ValidationError
from lume_diff.models.surrogates.description import Description, read_description
from lume_diff.models.surrogates.modules import Allowed, load_module
from lume_diff.models.surrogates.networks import build_network, build_transformer
from lume_diff.models.surrogates.stacks import Stacks
from lume_diff.models.surrogates.transformers import UndoneLinear
from lume_diff.variables import TorchNDVariable

if TYPE_CHECKING:
    from lume_diff.models.torch_model import TorchModel


def read_network(
    path: Path,
    allow: Iterable[Allowed] = (),
    allow_torchscript: bool = False,
    validation: Mapping[str, str] | None = None,
    device: torch.device | str | None = None,
) -> TorchModel:
    """Read a network; see ``TorchModel.from_file``."""
    described = read_description(path)
    if described.kind != "TorchModel":
        raise described.error(f"is an {described.kind}: read it with EnsembleModel.from_file")
    return _network(described, tuple(allow), allow_torchscript, validation, device)


def read_members(path: Path, allow: Iterable[Allowed] = (), allow_torchscript: bool = False) -> list[TorchModel]:
    """Read the members of an ensemble; see ``EnsembleModel.from_file``."""
    described = read_description(path)
    if described.kind != "NNEnsemble":
        raise described.error(f"is a {described.kind}: read it with TorchModel.from_file")
    own = [name.removesuffix(".jit").removesuffix(".pt").removesuffix("_model") + ".yml" for name in described.members]
    return [read_network(described.beside(name), allow, allow_torchscript) for name in own]


def _network(
    described: Description,
    allow: tuple[Allowed, ...],
    allow_torchscript: bool,
    validation: Mapping[str, str] | None,
    device: torch.device | str | None,
) -> TorchModel:
    from lume_diff.models.torch_model import TorchModel

    def loaded(part: Any) -> nn.Module:
        if isinstance(part, str):
            return load_module(described.beside(part), allow, allow_torchscript)
        try:
            if "layers" in part:
                return build_network(described.beside(str(part["weights"])), part["layers"])
            return build_transformer(part)
        except ValidationError as error:
            raise described.error(str(error)) from None

    module = loaded(described.module)
    before = [loaded(name) for name in described.input_transformers]
    after: list[nn.Module] = [loaded(name) for name in described.output_transformers]
    after = [UndoneLinear(step) if type(step) is nn.Linear else step for step in after]
    dtype = torch.float32 if described.single else torch.float64
    shapes = _stacked_shapes(described)
    if shapes is not None:
        module, before, after = Stacks(module, before, after, *shapes), [], []
    parts = nn.ModuleList([module, *before, *after])
    parts.to(dtype=dtype, device=device).requires_grad_(False)
    options: dict[str, Any] = {"dtype": dtype, "device": device}
    policies = dict(described.validation) | dict(validation or {})
    return TorchModel(module, described.inputs, described.outputs, before, after, **options, validation=policies)


def _stacked_shapes(described: Description) -> tuple[tuple[int, ...], int, tuple[int, ...]] | None:
    """Return the shape of one input, and the number and shape of outputs, where lume-torch stacks arrays."""
    inputs, outputs = ({getattr(v, "shape", ()) for v in group} for group in (described.inputs, described.outputs))
    if not any(isinstance(variable, TorchNDVariable) for variable in (*described.inputs, *described.outputs)):
        return None
    for word, shapes in (("inputs", inputs), ("outputs", outputs)):
        if len(shapes) > 1:
            raise described.error(f"its {word} have the shapes {sorted(shapes)}; lume-torch stacks arrays of one shape")
    return inputs.pop(), len(described.outputs), outputs.pop()
