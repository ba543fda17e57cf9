"""Networks described in YAML, with their weights as a state dictionary: nothing in the file is an object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.models.surrogates.modules import LAYERS
from lume_diff.models.surrogates.transformers import Affine, Log10


def build_network(path: Path, layers: Any) -> nn.Sequential:
    """Build a network from layers and load its weights.

    Args:
        path: of the weights, as ``torch.save(network.state_dict(), path)`` writes them.
        layers: names of PyTorch's layers, those with sizes as ``{Linear: [5, 32]}``.

    Raises:
        ValidationError: for an unknown layer, or weights that are missing, are something else or do not fit.

    Gradient:
        Exact.
    """
    if not isinstance(layers, list):
        raise ValidationError(f"layers is {layers!r:.60}; expected a list")
    network = nn.Sequential(*(_layer(entry) for entry in layers))
    if not path.is_file():
        raise ValidationError(f"weights {str(path)!r} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.to(next(iter(state.values())).dtype).load_state_dict(state)
    except Exception as error:
        raise ValidationError(f"weights {str(path)!r} cannot be loaded: {type(error).__name__}: {error}") from error
    return network


def _layer(entry: Any) -> nn.Module:
    name, sizes = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, [])
    if name not in LAYERS:
        raise ValidationError(f"layer {entry!r:.60} is not known{nearest_names(str(name), LAYERS)}")
    if not isinstance(sizes, list) or not all(isinstance(size, int | float) for size in sizes):
        raise ValidationError(f"sizes of {name} are {sizes!r:.60}; expected a list of numbers")
    return getattr(nn, name)(*sizes)


def build_transformer(entry: Any) -> nn.Module:
    """Build a transformer of columns.

    Args:
        entry: ``{Affine: {offset: [...], coefficient: [...]}}``, which makes ``(x - offset) / coefficient``, or
            ``{Log10: {indices: [...]}}``. Output transformers are undone.

    Raises:
        ValidationError: for anything else.
    """
    match entry:
        case {"Affine": {"offset": [*offset], "coefficient": [*coefficient]}}:
            affine = Affine()
            affine.register_buffer("_offset", torch.tensor(offset, dtype=torch.float64))
            affine.register_buffer("_coefficient", torch.tensor(coefficient, dtype=torch.float64))
            return affine
        case {"Log10": {"indices": [*indices]}}:
            logarithm = Log10()
            logarithm.register_buffer("indices", torch.tensor(indices))
            return logarithm
    raise ValidationError(
        f"transformer {entry!r:.60} is not known; expected {{Affine: {{offset: [...], coefficient: [...]}}}}, "
        "{Log10: {indices: [...]}} or the name of a file"
    )
