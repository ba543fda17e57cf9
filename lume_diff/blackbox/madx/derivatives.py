"""Derivatives from MAD-X's R-matrix: of a line's optics by its start, of orbits by correctors, of bunches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.codes.derivatives import SMALL, Table, by_kick, by_start, known_by_start
from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, living, momentum
from lume_diff.blackbox.madx.knobs import Knob
from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.blackbox.madx.twiss import maps_along

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

Array = np.ndarray
_ENERGY_DEVIATION = 5
#: How MAD-X itself tells a ring whose momentum stays.
_STATIC = 1e-5


def start_derivatives(maps: Array, start: Mapping[str, float], p0: float) -> Table:
    """Return derivatives of a line's optics with respect to what it starts with, as far as the R-matrix tells them.

    Args:
        maps: R-matrices to all nodes.
        start: value by name.
        p0: reference momentum [eV/c].
    """
    return known_by_start(by_start(maps, start, p0, _ENERGY_DEVIATION), maps)


def kick_derivatives(
    session: MADXSession, knob: Knob, maps: Array, rays: Array, p0: float, periodic: bool
) -> dict[str, Array]:
    """Return derivatives of the orbit with respect to a corrector; empty for what is none.

    A tilted corrector is left out, and a thick one where the momentum is not the reference one.

    Args:
        session: with the knobs at their values.
        knob: what may be a corrector.
        maps: R-matrices to all nodes, about the orbit.
        rays: the orbit at all nodes.
        p0: reference momentum [eV/c].
        periodic: whether the orbit closes.
    """
    if knob.element is None or knob.attribute.name not in ("hkick", "vkick"):
        return {}
    native = session.madx.elements[knob.element]
    length = float(native["l"])
    closed = 0
    if periodic:
        closed = 4 if np.abs(maps[-1][5] - np.eye(6)[5]).max() <= _STATIC else 6
    nodes = [node for node, name in enumerate(session.node_names()) if name == knob.element]
    thick = length != 0.0 and (closed == 6 or np.abs(rays[nodes, 5]).max() > SMALL)
    if float(native["tilt"]) != 0.0 or float(session.beam.bv) != 1.0 or thick:
        return {}
    row = 0 if knob.attribute.name == "hkick" else 2
    change = np.zeros(6)
    change[row : row + 2] = 0.5 * length, 1.0
    return by_kick(maps, [(node, change) for node in nodes], p0, closed)


def bunch_derivatives(
    session: MADXSession, group: ParticleGroup, reference_time: float, places: Mapping[str, int], nodes: int
) -> dict[str, Array]:
    """Return derivatives of bunches with respect to the incoming one, from the R-matrix about its centroid.

    PTC tracks nonlinear maps, which have other matrices away from the centroid; that is what is left out. The way from
    momenta and time to MAD-X's coordinates and back is exact for every particle. Behind a cavity there is nothing: the
    R-matrix lacks the transverse part of its field, which PTC has.

    Args:
        session: with the sequence in use and the knobs at their values.
        group: the incoming bunch, on a plane of constant z.
        reference_time: when the reference particle starts [s].
        places: name -> node behind which each is.
        nodes: of the sequence.

    Returns:
        Of x, px, y, py, z, t, pz with respect to x, px, y, py, t, pz, ``(n, 7, 6)`` each; zero for those lost before.
    """
    alive = living(group)
    if not len(alive):
        return {name: np.zeros((len(group.x), 7, 6)) for name in places}
    mass, energy = float(group.mass), 1e9 * float(session.beam.energy)
    p0 = float(momentum(energy, mass))
    momenta = np.stack([getattr(group, name)[alive] for name in ("px", "py", "pz")], axis=-1)
    total = np.sqrt((momenta**2).sum(axis=-1) + mass**2)
    early = -SPEED_OF_LIGHT * (group.t[alive] - reference_time)
    rows = np.stack(
        [group.x[alive], momenta[:, 0] / p0, group.y[alive], momenta[:, 1] / p0, early, (total - energy) / p0], axis=-1
    )
    incoming = np.zeros((len(alive), 6, 6))
    incoming[:, 0, 0] = incoming[:, 2, 2] = 1.0
    incoming[:, 1, 1] = incoming[:, 3, 3] = 1.0 / p0
    incoming[:, 4, 4] = -SPEED_OF_LIGHT
    incoming[:, 5, [1, 3, 5]] = momenta / total[:, None] / p0
    centroid = rows.mean(axis=0)
    rays, maps = maps_along(session, centroid, nodes)
    found = {}
    for name, node in places.items():
        if np.abs(maps[: node + 1, 5] - np.eye(6)[5]).max() > SMALL:
            continue
        found[name] = np.zeros((len(group.x), 7, 6))
        behind = rays[node] + (rows - centroid) @ maps[node].T
        found[name][alive] = _outgoing(behind, p0, energy, mass) @ maps[node] @ incoming
    return found


def _outgoing(rows: Array, p0: float, energy: float, mass: float) -> Array:
    """Return derivatives of x, px, y, py, z, t, pz with respect to MAD-X's coordinates."""
    total, px, py = energy + p0 * rows[:, 5], p0 * rows[:, 1], p0 * rows[:, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = p0 / np.sqrt((total - mass) * (total + mass) - px**2 - py**2)
    found = np.zeros((len(rows), 7, 6))
    found[:, 0, 0] = found[:, 2, 2] = 1.0
    found[:, 1, 1] = found[:, 3, 3] = p0
    found[:, 5, 4] = -1.0 / SPEED_OF_LIGHT
    for column, value in ((1, -px), (3, -py), (5, total)):
        found[:, 6, column] = share * value
    return found
