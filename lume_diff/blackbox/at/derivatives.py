"""Derivatives from pyAT's transfer matrices: of a line's optics by its start, of orbits by correctors, of bunches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.blackbox.at.knobs import Knob
from lume_diff.blackbox.at.optics import STEP
from lume_diff.blackbox.at.tracking import BunchTracker, reference_momentum
from lume_diff.blackbox.codes.derivatives import Found, Table, by_kick, by_start, gathered
from lume_diff.blackbox.codes.optics_names import INITIAL, START, Optics
from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

Array = np.ndarray
_MOMENTUM_DEVIATION = 4


def optics_derivatives(
    lattice: Any,
    optics: Optics,
    inputs: Mapping[str, Any],
    knobs: Sequence[Knob],
    periodic: bool,
    outputs: Sequence[str],
    wrt: Sequence[str],
) -> Found:
    """Return derivatives of optics with respect to the start of a line, and of the orbit with respect to correctors.

    Args:
        lattice: of pyAT, with the knobs at their values.
        optics: what the outputs are.
        inputs: has where a line starts.
        knobs: among which correctors are found.
        periodic: whether optics is the periodic solution.
        outputs, wrt: what is wanted.
    """
    import at

    correctors = {
        knob.name: kicks for knob in knobs if knob.name in wrt for kicks in [_kicks(lattice, knob)] if kicks is not None
    }
    by_initial = not periodic and any(name.startswith(f"{INITIAL}.") for name in wrt)
    if not optics or not (correctors or by_initial):
        return {}
    start = {name: float(inputs.get(f"{INITIAL}.{name}", 0.0)) for name in START}
    p0 = reference_momentum(lattice)
    if periodic:
        orbit = at.find_orbit(lattice, **STEP)[0]
    else:
        orbit = np.array([start["x"], start["px"] / p0, start["y"], start["py"] / p0, 0.0, 0.0])
    places = range(len(lattice) + 1)
    matrices = at.find_m66(lattice, refpts=places, orbit=orbit, **STEP)[1]
    table: Table = by_start(matrices, start, p0, _MOMENTUM_DEVIATION) if by_initial else {}
    if correctors:
        rays = at.lattice_track(lattice, np.asfortranarray(orbit[:, None]), refpts=places)[0][:, 0, :, 0].T
        closed = (6 if lattice.is_6d else 4) if periodic else 0
        for name, kicks in correctors.items():
            changes = [(place + 1, kick(rays[place])) for place, kick in kicks]
            for quantity, values in by_kick(matrices, changes, p0, closed).items():
                table.setdefault(quantity, {})[name] = values
    return gathered(optics, table, outputs, wrt)


def _kicks(lattice: Any, knob: Knob) -> list[tuple[int, Any]] | None:
    """Return where a knob kicks and how; None for one that does not kick, or that kicks in the middle of a field."""
    attribute = knob.attribute.name
    if attribute not in ("hkick", "vkick"):
        return None
    for element in knob.elements:
        if element.PassMethod != "CorrectorPass" or {"T1", "T2", "R1", "R2"} & vars(element).keys():
            return None
    own = {id(element) for element in knob.elements}
    index = ("hkick", "vkick").index(attribute)
    return [(place, _Kick(element, index)) for place, element in enumerate(lattice) if id(element) in own]


class _Kick:
    """How coordinates behind a corrector change with its kick."""

    def __init__(self, element: Any, index: int) -> None:
        self._length, self._kick, self._row = float(element.Length), float(element.KickAngle[index]), 2 * index

    def __call__(self, ray: Array) -> Array:
        """Return the change, from the coordinates before the corrector."""
        length, share = self._length, 1.0 + ray[4]
        change = np.zeros(6)
        change[self._row] = 0.5 * length / share
        change[self._row + 1] = 1.0
        change[5] = 0.5 * length / share**2 * (2.0 / 3.0 * self._kick + ray[self._row + 1])
        return change


def bunch_derivatives(
    lattice: Any, group: ParticleGroup, reference_time: float, places: Mapping[str, int]
) -> dict[str, Array]:
    """Return derivatives of bunches with respect to the incoming one, from the transfer matrix about its centroid.

    Nonlinear maps have other matrices away from the centroid; that is what is left out. The way from momenta and time
    to pyAT's coordinates and back, and the time that a particle takes, are exact for every particle.

    Args:
        lattice: of pyAT.
        group: the incoming bunch, on a plane of constant z.
        reference_time: when the reference particle starts [s].
        places: name -> place of the bunches.

    Returns:
        Of x, px, y, py, z, t, pz with respect to x, px, y, py, t, pz, ``(n, 7, 6)`` each; zero for lost particles.
    """
    bunch = BunchTracker(lattice, group, reference_time)
    found = {name: np.zeros((len(group.x), 7, 6)) for name in places}
    if not len(bunch.alive):
        return found
    for place, derivative in _along(lattice, bunch, group, reference_time, list(places.values())):
        here = bunch.through
        for name in (name for name in places if places[name] == place):
            found[name][bunch.alive[here]] = (_outgoing(bunch) @ derivative)[here]
    return found


def _along(
    lattice: Any, bunch: BunchTracker, group: ParticleGroup, reference_time: float, places: Sequence[int]
) -> Iterator[tuple[int, Array]]:
    """Track, and give the derivatives of x, px/p0, y, py/p0, dp/p0 and the time, ``(m, 6, 6)``, at every stop."""
    import at

    centroid = BunchTracker(lattice, _centroid(group, bunch.alive), reference_time)
    derivative = _incoming(bunch, group)
    yield 0, derivative
    for start, stop in bunch.pieces(places):
        centroid.set_clocks()
        bunch.set_clocks()
        matrix = at.find_m66(lattice[start:stop], refpts=[stop - start], orbit=centroid.rows[:, 0].copy(), **STEP)[1][0]
        centroid.advance(start, stop)
        clocked = derivative.copy()
        clocked[:, 5] *= SPEED_OF_LIGHT
        moved = matrix @ clocked
        before, change = bunch.slowness, _slowness_change(bunch)[:, None] * derivative[:, 4]
        path = bunch.advance(start, stop)
        with np.errstate(invalid="ignore"):
            change = change + _slowness_change(bunch)[:, None] * moved[:, 4]
            flight = (moved[:, 5] - clocked[:, 5]) * (before + bunch.slowness)[:, None] + path[:, None] * change
            moved[:, 5] = derivative[:, 5] + 0.5 * flight / SPEED_OF_LIGHT
        derivative = moved
        yield stop, derivative


def _slowness_change(bunch: BunchTracker) -> Array:
    """Return the derivative of 1/beta with respect to dp/p0."""
    p = bunch.p0 * (1.0 + bunch.rows[4])
    return -bunch.p0 * bunch.mass**2 / (np.sqrt(p**2 + bunch.mass**2) * p**2)


def _incoming(bunch: BunchTracker, group: ParticleGroup) -> Array:
    """Return derivatives of x, px/p0, y, py/p0, dp/p0 and the time with respect to x, px, y, py, t, pz."""
    alive, p0 = bunch.alive, bunch.p0
    momenta = np.stack([group.px[alive], group.py[alive], group.pz[alive]], axis=-1)
    found = np.zeros((len(alive), 6, 6))
    found[:, 0, 0] = found[:, 2, 2] = found[:, 5, 4] = 1.0
    found[:, 1, 1] = found[:, 3, 3] = 1.0 / p0
    found[:, 4, [1, 3, 5]] = momenta / np.linalg.norm(momenta, axis=-1, keepdims=True) / p0
    return found


def _outgoing(bunch: BunchTracker) -> Array:
    """Return derivatives of x, px, y, py, z, t, pz with respect to x, px/p0, y, py/p0, dp/p0 and the time."""
    p0 = bunch.p0
    found = np.zeros((bunch.rows.shape[1], 7, 6))
    found[:, 0, 0] = found[:, 2, 2] = found[:, 5, 5] = 1.0
    found[:, 1, 1] = found[:, 3, 3] = p0
    with np.errstate(invalid="ignore", divide="ignore"):
        share = p0**2 / bunch.forward
        for column, momentum in ((1, -bunch.rows[1]), (3, -bunch.rows[3]), (4, 1.0 + bunch.rows[4])):
            found[:, 6, column] = share * momentum
    return found


def _centroid(group: ParticleGroup, alive: Array) -> ParticleGroup:
    """Return a bunch of one particle in the middle of the living ones."""
    from beamphysics import ParticleGroup

    names = ("x", "px", "y", "py", "z", "pz", "t")
    data: dict[str, Any] = {name: np.array([getattr(group, name)[alive].mean()]) for name in names}
    return ParticleGroup(data={**data, "weight": np.ones(1), "status": np.ones(1, dtype=int), "species": group.species})
