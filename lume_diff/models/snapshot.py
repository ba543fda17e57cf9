"""Values as plain data for snapshots, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lume_diff.errors import ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, Variable

_GROUP_FIELDS = ("x", "y", "z", "px", "py", "pz", "t", "weight", "alive", "reference_energy", "reference_time")
_MOMENT_FIELDS = ("mean", "cov", "charge", "reference_energy", "reference_time", "s")


def to_plain(value: Any) -> Any:
    """Return a value as numbers, lists, strings and dictionaries."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, TorchParticleGroup):
        return {**_plain_fields(value, _GROUP_FIELDS), "id": to_plain(value.id)}
    if isinstance(value, TorchMoments):
        return _plain_fields(value, _MOMENT_FIELDS)
    return value


def _plain_fields(beam: TorchParticleGroup | TorchMoments, fields: tuple[str, ...]) -> dict[str, Any]:
    plain = {field: to_plain(getattr(beam, field)) for field in fields}
    return {**plain, "species": beam.species, "mass": beam.mass, "species_charge": beam.charge_number}


def from_plain(variable: Variable, value: Any, dtype: torch.dtype) -> Any:
    """Return what ``to_plain`` was given, for a variable that knows what it is.

    Raises:
        ValidationError: for a beam with a field missing.
    """
    if isinstance(variable, ParticleGroupVariable) and isinstance(value, Mapping):
        fields = _beam_fields(variable, value, _GROUP_FIELDS, dtype)
        return TorchParticleGroup(**fields, id=None if value.get("id") is None else torch.tensor(value["id"]))
    if isinstance(variable, MomentsVariable) and isinstance(value, Mapping):
        return TorchMoments(**_beam_fields(variable, value, _MOMENT_FIELDS, dtype))
    return value


def _beam_fields(
    variable: Variable, value: Mapping[str, Any], fields: tuple[str, ...], dtype: torch.dtype
) -> dict[str, Any]:
    missing = [field for field in (*fields, "species") if field not in value]
    if missing:
        raise ValidationError(f"snapshot of {variable.name!r} has no {missing[0]!r}; it has {', '.join(value)}")
    found: dict[str, Any] = {field: torch.tensor(value[field], dtype=dtype) for field in fields}
    return {**found, **{key: value[key] for key in ("species", "mass", "species_charge") if key in value}}
