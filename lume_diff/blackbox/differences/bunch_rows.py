"""Bunches as plain rows of coordinates, on their way into a black box and out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    rows = np.stack([np.asarray(getattr(group, name), dtype=float) for name in COORDINATES_OUT], axis=-1)
    order, present = _places(np.asarray(group.id), ids)
    full = _taken(rows, order, present)
    alive = _taken(np.asarray(group.status) == 1, order, present) & np.isfinite(full).all(axis=1)
    return np.where(np.isfinite(full), full, 0.0), alive


def weighted_rows(group: Any, ids: Array) -> tuple[Array, Array]:
    """Return what ``bunch_rows`` does, with the weight [C] as an eighth column, zero for who is left out."""
    rows, alive = bunch_rows(group, ids)
    weight = _taken(np.asarray(group.weight, dtype=float), *_places(np.asarray(group.id), ids))
    return np.column_stack([rows, weight]), alive


def all_ids(groups: Sequence[Any]) -> Array:
    """Return the ids of all particles that are in any of some ParticleGroups, those of the first in its order."""
    ids = np.concatenate([np.asarray(group.id) for group in groups])
    return ids[np.sort(np.unique(ids, return_index=True)[1])] if len(groups) > 1 else ids


def _places(given: Array, ids: Array) -> tuple[Array, Array]:
    """Return where each of ``ids`` stands among the given ones, and whether it does."""
    if np.array_equal(given, ids):
        return np.arange(len(ids)), np.ones(len(ids), dtype=bool)
    if not len(given):
        return np.zeros(len(ids), dtype=int), np.zeros(len(ids), dtype=bool)
    ranks = np.argsort(given)
    order = ranks[np.minimum(np.searchsorted(given[ranks], ids), len(given) - 1)]
    return order, given[order] == ids


def _taken(values: Array, order: Array, present: Array) -> Array:
    """Return values in an order, zero for who is not present."""
    found = np.zeros((len(order), *values.shape[1:]), dtype=values.dtype)
    found[present] = values[order[present]]
    return found
