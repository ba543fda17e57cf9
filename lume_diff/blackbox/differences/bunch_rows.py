"""Bunches as plain rows of coordinates, on their way into a black box and out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

Array = np.ndarray

#: What a particle brings in and what comes out, in openPMD's units.
COORDINATES_IN = ("x", "px", "y", "py", "t", "pz")
COORDINATES_OUT = ("x", "px", "y", "py", "z", "t", "pz")
N_IN, N_OUT = len(COORDINATES_IN), len(COORDINATES_OUT)


def bunch_data(rows: Array, template: Mapping[str, Any]) -> ParticleGroup:
    """Return rows of ``COORDINATES_IN`` as a ParticleGroup with the weights, ids and plane of a template."""
    from beamphysics import ParticleGroup

    data = {name: rows[:, column].copy() for column, name in enumerate(COORDINATES_IN)}
    return ParticleGroup(data={**data, **template})


def bunch_rows(group: Any, ids: Array) -> tuple[Array, Array]:
    """Return a ParticleGroup as rows of ``COORDINATES_OUT`` in the order of ``ids``, and who lives.

    Particles that the code left out are dead and stand at zero.
    """
    given = np.asarray(group.id)
    rows = np.stack([np.asarray(getattr(group, name), dtype=float) for name in COORDINATES_OUT], axis=-1)
    lives = np.asarray(group.status) == 1
    if len(given) == len(ids) and np.array_equal(given, ids):
        order = np.arange(len(ids))
        present = np.ones(len(ids), dtype=bool)
    else:
        ranks = np.argsort(given)
        place = np.searchsorted(given[ranks], ids)
        place = np.minimum(place, len(given) - 1) if len(given) else np.zeros(len(ids), dtype=int)
        order = ranks[place] if len(given) else place
        present = given[order] == ids if len(given) else np.zeros(len(ids), dtype=bool)
    full = np.where(present[:, None], rows[order] if len(given) else 0.0, 0.0)
    alive = present & (lives[order] if len(given) else False) & np.isfinite(full).all(axis=1)
    return np.where(np.isfinite(full), full, 0.0), alive
