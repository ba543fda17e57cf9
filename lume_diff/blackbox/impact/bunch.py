"""A bunch before and behind IMPACT-T, which follows it in time: from a z-plane to a t-snapshot, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, check_mass, living, on_plane, outgoing
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

Array = np.ndarray
PARTICLE_FILE = "partcl.data"
_LEAST_PZ = 10.0  # [eV/c], of particles that leave a cathode
_PAD = 1e-20  # [m], so that no particle stands on the cathode
_COLUMNS = ("x", "px", "y", "py", "z", "pz")


class Incoming:
    """A bunch as IMPACT-T takes it.

    In free space all particles start at one time; each is put where it flies to its place on the plane from. At a
    cathode they start one after the other, and IMPACT-T waits for each behind it.

    Args:
        group: the bunch, on a z-plane or at one time.
        header: of the deck; the bunch's numbers are put in.
        offset: from the bunch's z to the deck's [m].
        start_time: when the run begins [s]; None for when the first particle comes to the plane.

    Raises:
        ValidationError: for a bunch that cannot start.
    """

    def __init__(
        self, group: ParticleGroup, header: dict[str, Any], offset: float, start_time: float | None = None
    ) -> None:
        self._group = group = on_plane(group)
        self._mass = mass = float(group.mass)
        self._offset = offset
        self._alive = alive = living(group)
        if not len(alive):
            raise ValidationError("no particle of the incoming bunch lives, so there is nothing to track")
        check_mass(mass, float(header["Bmass"]), "Bmass", "the deck")
        if np.sign(group.species_charge) != np.sign(header["Bcharge"]):
            raise ValidationError(f"the deck's Bcharge is {header['Bcharge']:g} and the bunch is of {group.species}s")
        values = {name: np.asarray(getattr(group, name), dtype=float)[alive] for name in (*_COLUMNS, "t", "weight")}
        if not all(np.isfinite(value).all() for value in values.values()):
            raise ValidationError("the incoming bunch has numbers that are not finite, on which IMPACT-T would hang")
        if (values["pz"] <= 0.0).any():
            raise ValidationError("particles of the incoming bunch fly backwards (pz <= 0): IMPACT-T would lose them")
        self.plane = float(group.z[0]) + offset
        self.weight = values["weight"]
        at_cathode = int(header["Flagimg"]) == 1 and self.plane == 0.0
        self.rows = (self._from_cathode if at_cathode else self._in_flight)(values, header, start_time)
        header |= {"Np": len(alive), "Bmass": mass, "Flagdist": 16}
        header |= {f"{name}scale": 1.0 for name in _COLUMNS} | {f"{axis}mu{n}": 0.0 for axis in "xyz" for n in (1, 2)}

    def _in_flight(self, values: Mapping[str, Array], header: dict[str, Any], start_time: float | None) -> Array:
        """Return the rows of particles that all start at one time."""
        t = values["t"]
        time = float(t.min()) if start_time is None else start_time
        energy = np.sqrt(values["px"] ** 2 + values["py"] ** 2 + values["pz"] ** 2 + self._mass**2)
        way = (time - t) * SPEED_OF_LIGHT / energy  # per momentum
        header |= {"Tini": time, "Flagimg": 0, "Nemission": -1}
        momenta = {name: values[name] for name in ("px", "py", "pz")}
        places = {
            "x": values["x"] + way * momenta["px"],
            "y": values["y"] + way * momenta["py"],
            "z": self.plane + way * momenta["pz"],
        }
        return self._as_rows({**places, **momenta})

    def _from_cathode(self, values: Mapping[str, Array], header: dict[str, Any], start_time: float | None) -> Array:
        """Return the rows of particles that leave the cathode at their times, as lume-impact has them."""
        if int(header["Nemission"]) < 1:
            raise ValidationError(f"a cathode start needs the deck's Nemission above 0; it is {header['Nemission']}")
        gamma = 1.0 + float(header["Bkenergy"]) / self._mass
        speed = np.sqrt(1.0 - 1.0 / gamma**2) * SPEED_OF_LIGHT
        z = -speed * values["t"]
        shift = -(z.max() + _PAD)
        header |= {"Tini": float(shift / speed), "Temission": float((np.ptp(z) + 2.0 * _PAD) / speed)}
        pz = np.where(values["pz"] < _LEAST_PZ, values["pz"] + _LEAST_PZ, values["pz"])
        return self._as_rows({**values, "z": z + shift, "pz": pz})

    def _as_rows(self, values: Mapping[str, Array]) -> Array:
        units = {"px": self._mass, "py": self._mass, "pz": self._mass}
        return np.stack([values[name] / units.get(name, 1.0) for name in _COLUMNS], axis=-1)

    @property
    def charge(self) -> float:
        """Of the living [C]."""
        return float(self.weight.sum())

    def shift(self, distance: float) -> None:
        """Move the bunch down the deck [m]."""
        self.rows[:, 4] += distance
        self.plane += distance
        self._offset += distance

    def write(self, folder: Path, header: dict[str, Any]) -> None:
        """Write the particles; with their own weights where these differ and act."""
        rows = self.rows
        if float(header["Bcurr"]) != 0.0 and np.ptp(self.weight) > 0.0:
            header["Flagdist"] = 166
            sign = np.sign(float(header["Bcharge"]))
            share = float(header["Bcurr"]) / float(header["Bfreq"]) / self.charge
            count = len(rows)
            extra = [np.full(count, float(header["Bcharge"]) / self._mass), sign * share * self.weight]
            rows = np.column_stack([rows, *extra, np.arange(1.0, count + 1.0)])
        np.savetxt(folder / PARTICLE_FILE, rows, fmt="%.17g", header=str(len(rows)), comments="")

    def behind(self, dump: Dump, plane: float) -> ParticleGroup:
        """Return the bunch on a plane, in the order in which it came in; lost particles are dead.

        Args:
            dump: what IMPACT-T wrote.
            plane: in the deck's z [m].
        """
        order, values = on_deck_plane(dump, plane, self._mass)
        rest = {"pz": float(self.rows[:, 5].mean()) * self._mass, "t": float(self._group.t[self._alive].mean())}
        return outgoing(self._group, self._alive[dump.index[order]], values, plane - self._offset, rest)


class Dump:
    """The particles in a file of IMPACT-T, at one time.

    Args:
        index: which of those that went in they are, ``(m,)``.
        rows: x, px, y, py, z, pz, momenta in units of mc, ``(m, 6)``.
        time: [s].
    """

    def __init__(self, index: Array, rows: Array, time: float) -> None:
        self.index, self.rows, self.time = index, rows, time


def read_dump(file: Path) -> tuple[Array, Array]:
    """Return the numbers of the particles in a file, from 0, and their rows.

    Raises:
        ValueError: if it is not such a file.
    """
    if not file.stat().st_size:
        return np.zeros(0, dtype=int), np.zeros((0, 6))
    found = np.loadtxt(file, ndmin=2)
    if found.shape[1] != 9:
        raise ValueError(f"{file.name} has {found.shape[1]} columns and not 9")
    return np.round(found[:, 8]).astype(int) - 1, found[:, :6]


def on_deck_plane(dump: Dump, plane: float, mass: float) -> tuple[Array, dict[str, Array]]:
    """Return which particles reach a plane, and their coordinates there, as if no field acted on the way."""
    x, px, y, py, z, pz = dump.rows.T
    good = np.isfinite(dump.rows).all(axis=1) & (pz > 0.0)
    x, px, y, py, z, pz = (value[good] for value in (x, px, y, py, z, pz))
    way = (plane - z) / pz
    values = {
        "x": x + way * px,
        "px": mass * px,
        "y": y + way * py,
        "py": mass * py,
        "pz": mass * pz,
        "t": dump.time + way * np.sqrt(1.0 + px**2 + py**2 + pz**2) / SPEED_OF_LIGHT,
    }
    return good, values
