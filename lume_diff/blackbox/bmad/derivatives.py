"""Derivatives from Tao's transfer matrices: of a line's optics by its start, and of bunches by the incoming one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.bmad.optics import column, transfer_matrices
from lume_diff.blackbox.bmad.session import TaoSession, number
from lume_diff.blackbox.codes.derivatives import SMALL, Found, by_start, gathered, known_by_start
from lume_diff.blackbox.codes.optics_names import Optics
from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, living

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

Array = np.ndarray
_DEVIATION = 5
_START = ("x", "px", "y", "py", "z", "pz")


def start_derivatives(
    session: TaoSession, optics: Optics, start: Mapping[str, float], outputs: Sequence[str], wrt: Sequence[str]
) -> Found:
    """Return derivatives of a line's optics with respect to what it starts with, as far as matrices tell them.

    Optics of a coupled line are left out, and everything where the reference momentum changes.

    Args:
        session: with the line computed.
        optics: what it gives.
        start: value by name, without ``"initial."``.
        outputs, wrt: names that are wanted.
    """
    momenta = column(session, "ele.p0c", optics.count)
    if np.ptp(momenta) > SMALL * momenta[0]:
        return {}
    maps = transfer_matrices(session, optics.count)
    table = by_start(maps, start, float(momenta[0]), _DEVIATION)
    return gathered(optics, known_by_start(table, maps), outputs, wrt)


def bunch_derivatives(
    session: TaoSession, group: ParticleGroup, reference_time: float, mass: float, places: Mapping[str, int], count: int
) -> dict[str, Array]:
    """Return derivatives of bunches with respect to the incoming one, from matrices about its centroid's trajectory.

    That the map of an element changes with where a particle passes is left out; the way from momenta and time to
    Bmad's coordinates and back is exact for every particle.

    Args:
        session: with an open line computed; its start is moved to the centroid for a time.
        group: the incoming bunch, on a plane of constant z.
        reference_time: when the reference particle starts [s].
        mass: of the reference species [eV].
        places: name -> place of each, counted in elements before it.
        count: number of elements.

    Returns:
        Of x, px, y, py, z, t, pz with respect to x, px, y, py, t, pz, ``(n, 7, 6)`` each; zero for those lost before.
    """
    found = {name: np.zeros((len(group.x), 7, 6)) for name in places}
    alive = living(group)
    if not len(alive):
        return found
    p0 = column(session, "ele.p0c", count)
    momenta = np.stack([getattr(group, name)[alive] for name in ("px", "py", "pz")], axis=-1)
    p = np.sqrt((momenta**2).sum(axis=-1))
    late = group.t[alive] - reference_time
    rows = np.stack(
        [
            *(group.x[alive], momenta[:, 0] / p0[0], group.y[alive], momenta[:, 1] / p0[0]),
            *(-_beta(p, mass) * SPEED_OF_LIGHT * late, p / p0[0] - 1.0),
        ],
        axis=-1,
    )
    incoming = _incoming(momenta, p, late, float(p0[0]), mass)
    centroid = rows.mean(axis=0)
    standing = _rays(session, count)[0]
    try:
        _start_at(session, centroid)
        rays, maps = _rays(session, count), transfer_matrices(session, count)
    finally:
        _start_at(session, standing)
    for name, place in places.items():
        behind = rays[place] + (rows - centroid) @ maps[place].T
        found[name][alive] = _outgoing(behind, float(p0[place]), mass) @ maps[place] @ incoming
    return found


def _rays(session: TaoSession, count: int) -> Array:
    """Return the reference particle's coordinates at all places, ``(count + 1, 6)``."""
    return np.stack([column(session, f"orbit.vec.{index}", count) for index in range(1, 7)], axis=-1)


def _start_at(session: TaoSession, ray: Array) -> None:
    session.command(*(f"set particle_start {name} = {number(value)}" for name, value in zip(_START, ray, strict=True)))


def _beta(p: Array, mass: float) -> Array:
    return p / np.sqrt(p**2 + mass**2)


def _slope_of_beta(p: Array, mass: float) -> Array:
    return mass**2 / np.sqrt(p**2 + mass**2) ** 3


def _incoming(momenta: Array, p: Array, late: Array, p0: float, mass: float) -> Array:
    """Return derivatives of Bmad's coordinates with respect to x, px, y, py, t, pz."""
    found = np.zeros((len(p), 6, 6))
    found[:, 0, 0] = found[:, 2, 2] = 1.0
    found[:, 1, 1] = found[:, 3, 3] = 1.0 / p0
    direction = momenta / p[:, None]
    found[:, 4, 4] = -SPEED_OF_LIGHT * _beta(p, mass)
    found[:, 4, [1, 3, 5]] = -SPEED_OF_LIGHT * (late * _slope_of_beta(p, mass))[:, None] * direction
    found[:, 5, [1, 3, 5]] = direction / p0
    return found


def _outgoing(rows: Array, p0: float, mass: float) -> Array:
    """Return derivatives of x, px, y, py, z, t, pz with respect to Bmad's coordinates."""
    p, px, py = p0 * (1.0 + rows[:, 5]), p0 * rows[:, 1], p0 * rows[:, 3]
    beta = _beta(p, mass)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = p0 / np.sqrt(p**2 - px**2 - py**2)
    found = np.zeros((len(rows), 7, 6))
    found[:, 0, 0] = found[:, 2, 2] = 1.0
    found[:, 1, 1] = found[:, 3, 3] = p0
    found[:, 5, 4] = -1.0 / (beta * SPEED_OF_LIGHT)
    found[:, 5, 5] = rows[:, 4] * p0 * _slope_of_beta(p, mass) / (beta**2 * SPEED_OF_LIGHT)
    for place, value in ((1, -px), (3, -py), (5, p)):
        found[:, 6, place] = share * value
    return found
