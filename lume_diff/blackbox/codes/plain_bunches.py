"""Bunches as codes that track them take and give them: openPMD's ParticleGroup, with no torch in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

SPEED_OF_LIGHT = 299792458.0
INCOMING, OUTGOING = "initial_particles", "final_particles"

#: How well two packages know the mass of one species.
_SAME_MASS = 1e-6


def momentum(energy: Any, mass: float) -> Any:
    """Return the momentum [eV/c] of a total energy [eV]."""
    return np.sqrt((energy - mass) * (energy + mass))


def check_mass(mass: float, own: float, name: str, whose: str) -> None:
    """Raise where a code is set for other particles than those it is given.

    Args:
        mass: of the bunch's particles [eV].
        own: of those that the code is set for [eV].
        name: of the latter.
        whose: what says so: the lattice, the deck.

    Raises:
        ValidationError: if they differ.
    """
    if abs(mass / own - 1.0) > _SAME_MASS:
        raise ValidationError(
            f"{whose} is set for {name!r} of {own:g} eV and the bunch has particles of {mass:g} eV: set it for what is "
            "tracked"
        )


def on_plane(group: ParticleGroup) -> ParticleGroup:
    """Return a bunch on a plane of constant z: itself, or a copy that has drifted there."""
    if len(group.z) == 0 or np.ptp(group.z) == 0.0:
        return group
    drifted = group.copy()
    drifted.drift_to_z()
    return drifted


def living(group: ParticleGroup) -> np.ndarray:
    """Return the indices of the particles that are alive."""
    return np.flatnonzero(np.asarray(group.status) == 1)


def outgoing(
    group: ParticleGroup, survivors: np.ndarray, rows: Mapping[str, np.ndarray], z: float, rest: Mapping[str, float]
) -> ParticleGroup:
    """Return a bunch behind a line: the incoming one's weights and ids, in its order.

    Args:
        group: the incoming bunch.
        survivors: indices in it of the particles that came through.
        rows: their ``x, px, y, py, pz, t``.
        z: the plane [m].
        rest: where the others are put, with status 0; zero for what is not named.
    """
    from beamphysics import ParticleGroup

    size = len(group.x)
    status = np.where(np.asarray(group.status) == 1, 0, np.asarray(group.status))
    status[survivors] = 1
    data: dict[str, Any] = {
        "z": np.full(size, z),
        "status": status,
        "weight": np.array(group.weight),
        "species": str(group.species),
    }
    for name, values in rows.items():
        data[name] = np.full(size, rest.get(name, 0.0))
        data[name][survivors] = values
    if "id" in group.data:
        data["id"] = np.array(group.id)
    return ParticleGroup(data=data)
