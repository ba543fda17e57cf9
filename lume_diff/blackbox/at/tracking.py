"""A bunch through a pyAT lattice: openPMD coordinates in and out.

pyAT's coordinates are (x, px/p0, y, py/p0, (p - p0)/p0, ct). The sixth grows by what a particle's path is longer than
the reference one, so a late particle has a positive one; pyAT lets all particles fly at the speed of light. Here every
particle takes the time that its path takes at its own speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, check_mass, living, momentum, on_plane, outgoing
from lume_diff.errors import LatticeError, ValidationError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup


def reference_momentum(lattice: Any, mass: float | None = None) -> float:
    """Return the momentum that a lattice is set for [eV/c].

    Args:
        lattice: of pyAT; its energy is total energy.
        mass: of the particles [eV]; None for the lattice's own, which is zero unless it was told what circulates.

    Raises:
        ValidationError: for a lattice set for other particles, or too low an energy.
    """
    own = float(lattice.particle.rest_energy)
    if mass is not None and own:
        check_mass(mass, own, lattice.particle.name, "the lattice")
    mass = own if mass is None else mass
    if not lattice.energy > mass:
        raise ValidationError(f"the lattice's energy of {lattice.energy:g} eV is not above the particles' {mass:g} eV")
    return float(momentum(lattice.energy, mass))


def changes_reference(element: Any) -> bool:
    """Tell whether an element changes the reference momentum."""
    return bool(element.PassMethod == "ChangePRefPass")


def check_tracking(lattice: Any) -> None:
    """Raise where a lattice has what cannot be converted.

    Raises:
        LatticeError: for an element that changes the reference momentum.
    """
    for element in lattice:
        if changes_reference(element):
            raise LatticeError(
                f"element {element.FamName!r} changes the reference momentum, which a bunch cannot follow here: split "
                "the lattice there into two stages"
            )


class BunchTracker:
    """Track a bunch once through a lattice.

    Args:
        lattice: of pyAT.
        group: the incoming bunch, on any plane; it is not changed.
        reference_time: when the reference particle starts [s].

    Attributes:
        rows: pyAT's coordinates of the living, ``(6, m)``.
        alive: their indices in the bunch.
        p0: reference momentum [eV/c].
        mass: of the particles [eV].
    """

    def __init__(self, lattice: Any, group: ParticleGroup, reference_time: float) -> None:
        self._lattice = lattice
        self._group = group = on_plane(group)
        self.mass = float(group.mass)
        self.p0 = reference_momentum(lattice, self.mass)
        self._slowness0 = float(lattice.energy) / self.p0  # 1/beta of the reference particle
        self._reference_time = reference_time
        self.alive = alive = living(group)
        self._time = group.t[alive].copy()
        p = np.sqrt(group.px**2 + group.py**2 + group.pz**2)[alive]
        self.rows = np.zeros((6, len(alive)), order="F")
        for row, values in enumerate((group.x, group.px / self.p0, group.y, group.py / self.p0)):
            self.rows[row] = values[alive]
        self.rows[4] = (p - self.p0) / self.p0
        self._ends = np.concatenate([[0.0], np.cumsum([float(element.Length) for element in lattice])])
        self._s = 0.0

    def run(self, places: Mapping[str, int]) -> dict[str, ParticleGroup]:
        """Return the bunch at places, counted in elements before them.

        Times are kept absolute, and given to pyAT wherever it starts anew, which is before and behind every element
        that changes energies.
        """
        found = {name: self._bunch() for name, place in places.items() if place == 0}
        for start, stop in self.pieces(places.values()):
            self.set_clocks()
            self.advance(start, stop)
            found |= {name: self._bunch() for name, place in places.items() if place == stop}
        return {name: found[name] for name in places}

    def pieces(self, places: Collection[int]) -> Iterator[tuple[int, int]]:
        """Return where to stop: at places, and before and behind what changes energies."""
        last = max(places, default=0)
        edges = {0, last, *places}
        for index, element in enumerate(self._lattice):
            if element.longt_motion:
                edges |= {index, index + 1}
        return itertools.pairwise(sorted(edge for edge in edges if edge <= last))

    @property
    def _due(self) -> float:
        """When the reference particle is here [s]."""
        return self._reference_time + self._s * self._slowness0 / SPEED_OF_LIGHT

    @property
    def slowness(self) -> np.ndarray:
        """1/beta of every particle."""
        p = self.p0 * (1.0 + self.rows[4])
        return np.sqrt(p**2 + self.mass**2) / p

    @property
    def through(self) -> np.ndarray:
        """Which of the living have come here."""
        with np.errstate(invalid="ignore"):
            return np.isfinite(self.rows).all(axis=0) & np.isfinite(self._time) & (self.forward > 0.0)

    @property
    def forward(self) -> np.ndarray:
        """Momentum along the line [eV/c]."""
        rows, p0 = self.rows, self.p0
        with np.errstate(invalid="ignore"):
            return np.sqrt((p0 * (1.0 + rows[4])) ** 2 - (p0 * rows[1]) ** 2 - (p0 * rows[3]) ** 2)

    def set_clocks(self) -> None:
        """Tell pyAT how late every particle is."""
        self.rows[5] = SPEED_OF_LIGHT * (self._time - self._due)

    def advance(self, start: int, stop: int) -> np.ndarray:
        """Track through elements that do not change energies, or through one that does; returns how far they flew."""
        import at

        before, slowness = self.rows[5].copy(), self.slowness
        if self.rows.shape[1]:
            at.lattice_track(self._lattice, self.rows, refpts=None, in_place=True, start_elem=start, end_elem=stop)
        with np.errstate(invalid="ignore", divide="ignore"):
            path = self._ends[stop] - self._ends[start] + (self.rows[5] - before)
            self._time = self._time + path * 0.5 * (slowness + self.slowness) / SPEED_OF_LIGHT
        self._s = float(self._ends[stop])
        return path

    def _bunch(self) -> ParticleGroup:
        """Return the bunch where it is now; lost particles stay, with status 0, on the reference orbit."""
        rows, p0, through = self.rows, self.p0, self.through
        values = {
            "x": rows[0],
            "px": p0 * rows[1],
            "y": rows[2],
            "py": p0 * rows[3],
            "pz": self.forward,
            "t": self._time,
        }
        return outgoing(
            self._group,
            self.alive[through],
            {name: value[through] for name, value in values.items()},
            float(self._group.z[0]) + self._s,
            {"pz": p0, "t": self._due},
        )
