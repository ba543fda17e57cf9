"""Values as plain data for snapshots, and back."""

from __future__ import annotations

from typing import Any

import torch

from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, Variable

_GROUP_FIELDS = ("x", "y", "z", "px", "py", "pz", "t", "weight", "alive", "reference_energy", "reference_time")
_MOMENT_FIELDS = ("mean", "cov", "charge", "reference_energy", "reference_time", "s")


def to_plain(value: Any) -> Any:
    """Return a value as numbers, lists, strings and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, TorchParticleGroup):
        plain = {field: to_plain(getattr(value, field)) for field in _GROUP_FIELDS}
        return {**plain, "species": value.species, "id": to_plain(value.id)}
    if isinstance(value, TorchMoments):
        return {**{field: to_plain(getattr(value, field)) for field in _MOMENT_FIELDS}, "species": value.species}
    return value


def from_plain(variable: Variable, value: Any, dtype: torch.dtype) -> Any:
    """Return what ``to_plain`` was given, for a variable that knows what it is."""
    if isinstance(variable, ParticleGroupVariable) and isinstance(value, dict):
        fields = {field: torch.tensor(value[field], dtype=dtype) for field in _GROUP_FIELDS}
        identity = None if value.get("id") is None else torch.tensor(value["id"])
        return TorchParticleGroup(**fields, species=value["species"], id=identity)
    if isinstance(variable, MomentsVariable) and isinstance(value, dict):
        fields = {field: torch.tensor(value[field], dtype=dtype) for field in _MOMENT_FIELDS}
        return TorchMoments(**fields, species=value["species"])
    if isinstance(value, list):
        return torch.tensor(value, dtype=dtype if variable.is_differentiable else None)
    return value
