"""Straight drifts of a bunch to a plane of constant z."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import PhysicsWarning, ShapeError
from lume_diff.particles.checks import broadcast_batch, check_finite, is_concrete
from lume_diff.particles.constants import c_light
from lume_diff.particles.weighted import living_mean, safe_divide

if TYPE_CHECKING:
    from lume_diff.particles.group import TorchParticleGroup


def is_common(values: Tensor) -> bool:
    """Return whether the values of each bunch are all the same."""
    values = values.detach()
    if values.stride(-1) == 0:
        return not bool(values[..., 0].isnan().any())
    return bool((values == values[..., :1]).all())


def is_known_on_plane(bunch: TorchParticleGroup) -> bool:
    """Return whether a bunch is on a z-plane, and stays there under any derivative that is being taken."""
    z = bunch.z
    if not is_concrete(z) or z.requires_grad or torch.autograd.forward_ad._current_level >= 0:
        return False
    return is_common(z)


def drift_to_z(bunch: TorchParticleGroup, z: Any = None) -> TorchParticleGroup:
    """Drift each particle along its momentum to a plane of constant z, and note it.

    Args:
        bunch: the particles.
        z: where [m], (*batch,). Default: the charge-weighted mean z of the living particles.

    Returns:
        The bunch on the plane, each particle at its own time.

    Raises:
        ShapeError: more planes than bunches.
        ValidationError: a z that is not finite.

    Warns:
        PhysicsWarning: particles that do not move forward; those with pz = 0 stay where they are and only their
            z is set.

    Gradient: exact, also to z.
    """
    target = living_mean(bunch.z, bunch.weight * bunch.alive) if z is None else z
    target = torch.as_tensor(target, dtype=bunch.dtype, device=bunch.device)
    check_finite({"z": target}, "drift_to_z")
    if broadcast_batch({"the bunch's batch": bunch.batch_shape, "z": target.shape}, "drift_to_z") != bunch.batch_shape:
        raise ShapeError(
            f"drift_to_z: z has shape {tuple(target.shape)} and the bunch the batch {tuple(bunch.batch_shape)}; "
            "expected one plane for each bunch: stack the bunch with itself for several"
        )
    target = target.expand(bunch.batch_shape)
    distance = target.unsqueeze(-1) - bunch.z
    _warn_of_backward_motion(bunch.pz, distance)
    per_pz = safe_divide(distance, bunch.pz, 0.0)
    notes = (*bunch.notes, _drift_note(bunch.t, target))
    return bunch._with(
        static=bunch._static.replace(notes=notes),
        x=bunch.x + per_pz * bunch.px,
        y=bunch.y + per_pz * bunch.py,
        z=target.unsqueeze(-1).expand(bunch.x.shape),
        t=bunch.t + per_pz * bunch.energy / c_light,
    )


def _warn_of_backward_motion(pz: Tensor, distance: Tensor) -> None:
    if not (is_concrete(pz) and is_concrete(distance)):
        return
    backward = ((pz.detach() <= 0.0) & (distance.detach() != 0.0)).sum().item()
    if backward:
        warnings.warn(
            f"{backward} particles with pz <= 0 are drifted to a z-plane: they pass it in the other direction, and "
            "those with pz = 0, which never do, only take its z",
            PhysicsWarning,
            stacklevel=4,
        )


def _drift_note(t: Tensor, target: Tensor) -> str:
    if not is_concrete(target):
        return "drifted to a z-plane inside a transform"
    kind = "a t-snapshot" if is_concrete(t) and is_common(t) else "its own positions"
    if target.dim() == 0:
        return f"drifted from {kind} to z = {target.item():.9g} m"
    return f"drifted from {kind} to z-planes, one for each of {target.numel()} bunches"
