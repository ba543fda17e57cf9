"""A bunch through Tao: openPMD coordinates in and out.

Bmad's coordinates are (x, px/p0, y, py/p0, -beta c (t - t_ref), (p - p0)/p0), beta the particle's own: an early
particle has a positive fifth.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.bmad.optics import column
from lume_diff.blackbox.bmad.session import TaoSession
from lume_diff.blackbox.bmad.survey import BRANCH
from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, on_plane, outgoing
from lume_diff.errors import SimulatorError, ValidationError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

_FILE = "bunch.h5"
_COLUMNS = ("x", "px", "y", "py", "z", "pz")
_GIVEN = ("x", "px", "y", "py", "z", "pz", "t", "weight")
_ZEROS = "0, 0, 0, 0, 0, 0"


def beam_setup(places: Mapping[str, int]) -> list[str]:
    """Return the commands after which Tao tracks bunches from a file, whole and as they are, and keeps them at places.

    Without a number of particles Tao takes all of the file; it goes on tracking when all are lost, because otherwise
    the bunches of an earlier run stay behind the place where it stops.
    """
    kept = ", ".join(f"{BRANCH}{place}" for place in sorted(set(places.values())))
    return [
        *("set beam_init n_particle = 0", "set beam_init n_bunch = 1", "set beam_init bunch_charge = 0"),
        *("set beam_init dt_bunch = 0", "set beam_init t_offset = 0", "set beam_init use_particle_start = F"),
        *(f"set beam_init center = {_ZEROS}", f"set beam_init center_jitter = {_ZEROS}"),
        *("set beam track_start = BEGINNING", "set beam track_end = END", f"set beam saved_at = {kept}"),
        *("set beam dump_at =", "set beam comb_ds_save = -1", "set global beam_dead_cutoff = 2"),
    ]


class BunchTracker:
    """Track a bunch once through the lattice.

    Args:
        session: set up for beams.
        group: the incoming bunch, on any plane; it is not changed.
        reference_time: when the reference particle starts [s].
        mass: of the reference species [eV].

    Raises:
        ValidationError: for a bunch that is not finite.
    """

    def __init__(self, session: TaoSession, group: ParticleGroup, reference_time: float, mass: float) -> None:
        self._session = session
        self._group = group = on_plane(group)
        self._reference_time, self._mass = reference_time, mass
        for name in _GIVEN:
            if not np.isfinite(getattr(group, name)).all():
                raise ValidationError(f"the bunch's {name} is not finite: Tao would track it all the same")

    @property
    def content(self) -> bytes:
        """A hash of what Tao is given."""
        digest = hashlib.blake2b(repr((self._reference_time, str(self._group.species))).encode())
        for name in (*_GIVEN, "status"):
            digest.update(np.ascontiguousarray(getattr(self._group, name)).tobytes())
        return digest.digest()

    def commands(self) -> list[str]:
        """Write the bunch to a file, and return the commands that make it Tao's."""
        shifted = self._group.copy()
        shifted.t = shifted.t - self._reference_time
        path = self._session.folder / _FILE
        shifted.write(str(path))
        return [f"set beam_init position_file = {path}"]

    def bunches(self, places: Mapping[str, int], count: int) -> dict[str, ParticleGroup]:
        """Return the bunch behind elements; lost particles stay, with status 0, on the reference orbit.

        Args:
            places: name -> place, counted in elements before it.
            count: number of elements.

        Raises:
            SimulatorError: for bunches that are not of this run or not whole.
        """
        reference = {who: column(self._session, f"ele.{who}", count) for who in ("p0c", "ref_time", "s") if places}
        return {name: self._bunch(place, reference) for name, place in places.items()}

    def _bunch(self, place: int, reference: Mapping[str, np.ndarray]) -> ParticleGroup:
        session, size = self._session, len(self._group.x)
        query = f"pipe bunch1 {BRANCH}{place}|model 1 "
        state = session.integers(query + "state", size)
        living = np.flatnonzero((state == 1) & (np.asarray(self._group.status) == 1))
        self._check_fresh(place, int(np.sum(state == 1)))
        columns = {}
        for name in _COLUMNS:
            columns[name] = session.reals(query + name, size, finite=False)[living]
        p0c = float(reference["p0c"][place])
        due = self._reference_time + float(reference["ref_time"][place] - reference["ref_time"][0])
        p = p0c * (1.0 + columns["pz"])
        px, py = p0c * columns["px"], p0c * columns["py"]
        with np.errstate(invalid="ignore", divide="ignore"):
            slowness = np.sqrt(p**2 + self._mass**2) / p
            forward = np.sqrt(p**2 - px**2 - py**2)
            late = -columns["z"] * slowness / SPEED_OF_LIGHT
            through = np.isfinite(columns["x"] + columns["y"] + late) & (forward > 0.0)
        values = {"x": columns["x"], "px": px, "y": columns["y"], "py": py, "pz": forward, "t": due + late}
        return outgoing(
            self._group,
            living[through],
            {name: value[through] for name, value in values.items()},
            float(self._group.z[0]) + float(reference["s"][place] - reference["s"][0]),
            {"pz": p0c, "t": due},
        )

    def _check_fresh(self, place: int, living: int) -> None:
        """Raise where Tao has a bunch of an earlier run: it forgets how many live at every start, not the bunch."""
        for line in self._session.text(f"pipe bunch_params {BRANCH}{place}|model"):
            if line.startswith("n_particle_live;") and int(line.rpartition(";")[2]) == living:
                return
        raise SimulatorError(f"Tao did not track the bunch to element number {place}: {self._session.tail()}")
