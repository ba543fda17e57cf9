"""The fields of a bunch: names, shapes, checks and default references."""

from __future__ import annotations

from torch import Tensor

from lume_diff.errors import ShapeError, ValidationError
from lume_diff.particles import arrays
from lume_diff.particles.checks import broadcast_batch, check_bounds, check_finite, is_concrete
from lume_diff.particles.weighted import living_mean

FIELDS = ("x", "y", "z", "px", "py", "pz", "t", "weight", "alive")
REFERENCES = ("reference_energy", "reference_time")


def expand_fields(tensors: dict[str, Tensor], owner: str) -> dict[str, Tensor]:
    """Expand all fields to one shape (*batch, n) and the references to (*batch,)."""
    fields = {name: tensor for name, tensor in tensors.items() if name in FIELDS}
    shape = broadcast_batch({name: tensor.shape for name, tensor in fields.items()}, owner)
    if len(shape) == 0:
        raise ShapeError(f"{owner}: all fields are single numbers; give at least one as a tensor (*batch, n)")
    references = {name: tensor.shape for name, tensor in tensors.items() if name in REFERENCES}
    batch = broadcast_batch({"the fields' batch": shape[:-1]} | references, owner)
    if shape[-1] == 0:
        raise ShapeError(f"{owner}: the bunch is empty, shape {tuple(shape)}; expected at least one particle")
    return {
        name: tensor.expand(batch if name in REFERENCES else (*batch, shape[-1])) for name, tensor in tensors.items()
    }


def check_fields(leaves: dict[str, Tensor], mass: float, owner: str) -> None:
    """Raise for values that no bunch has."""
    check_finite(leaves, owner)
    check_bounds("weight", leaves["weight"], 0.0, None, owner, "charge in C, taken positive for every species")
    check_bounds("alive", leaves["alive"], 0.0, 1.0, owner, "a survival probability")
    weight = leaves["weight"]
    if is_concrete(weight) and not bool((weight.detach().sum(-1) > 0.0).all()):
        raise ValidationError(f"{owner}: the weights of a bunch add up to 0 C; expected a positive charge")
    if "reference_energy" in leaves:
        check_reference_energy(leaves["reference_energy"], mass, owner)


def check_reference_energy(energy: Tensor, mass: float, owner: str) -> None:
    """Raise for a reference energy at or below the rest energy."""
    if is_concrete(energy) and not bool((energy.detach() > mass).all()):
        raise ValidationError(
            f"{owner}: reference_energy is {energy.detach().min().item():g} eV; expected a total energy above the "
            f"rest energy {mass:g} eV"
        )


def with_references(leaves: dict[str, Tensor], mass: float) -> dict[str, Tensor]:
    """Add the references that were not given: the living particles' means, as constants."""
    weight = (leaves["weight"] * leaves["alive"]).detach()
    added = dict(leaves)
    if "reference_energy" not in leaves:
        value = arrays.energy(leaves["px"].detach(), leaves["py"].detach(), leaves["pz"].detach(), mass)
        added["reference_energy"] = living_mean(value, weight)
    if "reference_time" not in leaves:
        added["reference_time"] = living_mean(leaves["t"].detach(), weight)
    return {name: added[name] for name in (*FIELDS, *REFERENCES)}
