"""Cheetah's coordinates (x, px, y, py, tau, p) of a bunch on a z-plane, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from lume_diff.particles.arrays import reference_momentum
from lume_diff.particles.bundle import Static
from lume_diff.particles.constants import c_light
from lume_diff.particles.group import TorchParticleGroup
from lume_diff.particles.weighted import safe_sqrt


def to_coordinates(bunch: TorchParticleGroup) -> Tensor:
    """Return a bunch that is on a z-plane in Cheetah's coordinates.

    Args:
        bunch: the particles, on a z-plane.

    Returns:
        x [m], px = P_x / P0, y [m], py = P_y / P0, tau = c (t - reference_time) [m],
        p = (E - reference_energy) / (P0 c); (*batch, n, 6).

    Gradient: exact, also to the reference.
    """
    reference = bunch.reference_energy.unsqueeze(-1)
    p0c = reference_momentum(reference, bunch.mass)
    tau = (bunch.t - bunch.reference_time.unsqueeze(-1)) * c_light
    p = (bunch.energy - reference) / p0c
    # One coordinate after the other in memory, as they are used.
    return torch.stack([bunch.x, bunch.px / p0c, bunch.y, bunch.py / p0c, tau, p], dim=-2).mT


def from_coordinates(
    coordinates: Tensor,
    weight: Tensor,
    alive: Tensor,
    reference_energy: Tensor,
    reference_time: Tensor,
    s: Tensor,
    static: Static,
) -> TorchParticleGroup:
    """Return the bunch of given Cheetah coordinates, at z = s; values are not checked.

    Args:
        coordinates: (*batch, n, 6) or more columns.
        weight: charge [C], (*batch, n).
        alive: survival probability, (*batch, n).
        reference_energy: total energy [eV], (*batch,).
        reference_time: [s], (*batch,).
        s: position [m], (*batch,).
        static: species and ids.

    Returns:
        The bunch, with pz > 0; shapes broadcast.

    Gradient: exact; zero for pz of a particle whose transverse momentum exceeds its total.
    """
    x, px, y, py, tau, p = (coordinates[..., i] for i in range(6))
    references = (reference_energy, reference_time, s)
    batch = torch.broadcast_shapes(
        x.shape[:-1], weight.shape[:-1], alive.shape[:-1], *(value.shape for value in references)
    )
    shape = (*batch, x.shape[-1])
    energy0, time0, z = (value.to(dtype=x.dtype, device=x.device).expand(batch) for value in references)
    mass, column = static.mass, energy0.unsqueeze(-1)
    p0c = reference_momentum(column, mass)
    px, py = px * p0c, py * p0c
    excess = p * p0c
    # (E - m)(E + m), with the excess added last: digits survive close to rest.
    square = (column - mass + excess) * (column + mass + excess)
    pz = safe_sqrt(torch.addcmul(torch.addcmul(square, px, px, value=-1.0), py, py, value=-1.0))
    t = time0.unsqueeze(-1) + tau / c_light
    fields = (x, y, z.unsqueeze(-1), px, py, pz, t, weight, alive)
    leaves = [value.to(x.dtype).expand(shape) for value in fields]
    return TorchParticleGroup._from_leaves([*leaves, energy0, time0], static)
