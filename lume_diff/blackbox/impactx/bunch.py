"""A bunch before and behind an ImpactX lattice: openPMD's coordinates in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, living, momentum, on_plane, outgoing
from lume_diff.blackbox.impactx.engine import Reference, Snapshot
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

ELEMENTARY_CHARGE = 1.602176634e-19


class Incoming:
    """A bunch before a lattice in ImpactX's coordinates, and back in openPMD's behind it.

    ImpactX has x and y [m], px and py in units of the reference momentum, c times the delay against the reference
    particle [m], and its pt, minus the energy deviation in units of the reference momentum times c.

    Args:
        group: the bunch; one that is not on a plane of constant z is drifted to one.
        energy: total, of the reference particle [eV].
        time: at which the reference particle starts [s].

    Raises:
        ValidationError: if no particle lives, one flies backwards, or the reference energy is too low.
    """

    def __init__(self, group: ParticleGroup, energy: float, time: float) -> None:
        group = on_plane(group)
        mass = float(group.mass)
        if not energy > mass:
            raise ValidationError(f"reference_energy is {energy:g} eV; expected more than the rest energy, {mass:g} eV")
        self._group, self._time = group, time
        self._alive = living(group)
        if not len(self._alive):
            raise ValidationError("no particle of the incoming bunch lives, so there is nothing to track")
        if (group.pz[self._alive] <= 0.0).any():
            raise ValidationError("particles of the incoming bunch fly backwards (pz <= 0), which ImpactX cannot track")
        charge = float(np.sign(group.species_charge)) * round(abs(float(group.species_charge)) / ELEMENTARY_CHARGE)
        self.reference = Reference(energy, mass, charge)
        p0 = momentum(energy, mass)
        own = {name: np.asarray(getattr(group, name))[self._alive] for name in ("x", "px", "y", "py", "t", "energy")}
        self.rows = np.stack(
            [
                own["x"],
                own["px"] / p0,
                own["y"],
                own["py"] / p0,
                SPEED_OF_LIGHT * (own["t"] - time),
                (energy - own["energy"]) / p0,
            ],
            axis=-1,
        )
        self.weight = np.asarray(group.weight)[self._alive] / (ELEMENTARY_CHARGE * abs(charge))

    def behind(self, seen: Snapshot) -> ParticleGroup:
        """Return the bunch behind an element, in the order in which it came in.

        Particles that are lost have a status of 0 and stand where the reference particle is.
        """
        mass = self.reference.mass
        p0, energy = mass * seen.beta_gamma, mass * seen.gamma
        x, px, y, py, t, pt = seen.rows.T
        px, py = p0 * px, p0 * py
        with np.errstate(invalid="ignore"):
            own_energy = energy - p0 * pt
            pz = np.sqrt((own_energy - mass) * (own_energy + mass) - px**2 - py**2)
        good = np.isfinite(seen.rows).all(axis=1) & np.isfinite(pz)
        due = self._time + seen.t / SPEED_OF_LIGHT
        rows = {"x": x, "px": px, "y": y, "py": py, "pz": pz, "t": due + t / SPEED_OF_LIGHT}
        survivors = self._alive[seen.index[good]]
        coming_through = {name: values[good] for name, values in rows.items()}
        return outgoing(self._group, survivors, coming_through, self._group.z[0] + seen.s, {"pz": p0, "t": due})
