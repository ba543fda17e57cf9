"""A bunch through a MAD-X sequence by PTC: openPMD coordinates in and out.

MAD-X's coordinates are (x, px/p0, y, py/p0, -c (t - t_ref), (E - E0)/(p0 c)): an early particle has a positive fifth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.codes.plain_bunches import SPEED_OF_LIGHT, check_mass, living, momentum, on_plane, outgoing
from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.errors import SimulatorError

if TYPE_CHECKING:
    from beamphysics import ParticleGroup

TABLE = "trackone"
_COLUMNS = ("x", "px", "y", "py", "t", "pt")
_LAYOUT = "ptc_create_layout, model=2, method=6, nst=5, exact=true, time=true"
#: PTC loses what is beyond 0.1 m, 0.01 rad or 1 m of path if it is not told other limits.
_TRACK = (
    "ptc_track, icase=6, turns=1, dump=true, onetable=true, element_by_element=true, recloss=true, "
    "maxaper={1, 1, 1, 1, 1e6, 1}"
)
_START = "ptc_start, x={!r}, px={!r}, y={!r}, py={!r}, t={!r}, pt={!r}"


def check_species(session: MADXSession, mass: float) -> None:
    """Raise where the deck's beam is not what is tracked.

    Raises:
        ValidationError: for particles of another mass.
    """
    beam = session.beam
    check_mass(mass, 1e9 * float(beam.mass), str(beam.particle), "the deck's BEAM")


class PTCTracker:
    """Track a bunch once through the sequence.

    Args:
        session: with the sequence in use.
        group: the incoming bunch, on any plane; it is not changed.
        reference_time: when the reference particle starts [s].
    """

    def __init__(self, session: MADXSession, group: ParticleGroup, reference_time: float) -> None:
        self._session = session
        self._group = on_plane(group)
        self._mass = float(group.mass)
        self._energy = 1e9 * float(session.beam.energy)
        self._p0 = float(momentum(self._energy, self._mass))
        self._reference_time = reference_time
        self._alive = living(group)

    def run(self, places: Mapping[str, int], s: np.ndarray) -> dict[str, ParticleGroup]:
        """Return the bunch at places along the sequence; lost particles stay, with status 0, on the reference orbit.

        Args:
            places: name -> node behind which the bunch is wanted.
            s: path length behind every node [m].

        Raises:
            SimulatorError: if PTC fails.
        """
        passed = self._passed(sorted(set(places.values())), s)
        return {name: self._bunch(*passed[node], float(s[node])) for name, node in places.items()}

    def _incoming(self) -> np.ndarray:
        group, p0 = self._group, self._p0
        total = np.sqrt(group.px**2 + group.py**2 + group.pz**2 + self._mass**2)
        early = -SPEED_OF_LIGHT * (group.t - self._reference_time)
        rows = (group.x, group.px / p0, group.y, group.py / p0, early, (total - self._energy) / p0)
        return np.stack(rows, axis=-1)[self._alive]

    def _passed(self, nodes: list[int], s: np.ndarray) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Return, for every node, which particles came through, and their rows."""
        session, rows = self._session, self._incoming()
        everyone = np.arange(len(rows))
        if not len(rows):
            return dict.fromkeys(nodes, (everyone, rows))
        names = session.madx.sequence[session.sequence].expanded_element_names()
        observed = [f"ptc_observe, place={names[node]}" for node in nodes if 0 < node < len(names) - 1]
        starts = [_START.format(*row) for row in rows.tolist()]
        session.command("ptc_create_universe", _LAYOUT, "ptc_align", *observed, *starts)
        try:
            session.command(_TRACK)
            table = session.madx.table[TABLE]
            turn, number, at = (np.array(table[name]) for name in ("turn", "number", "s"))
            columns = np.stack([np.array(table[name]) for name in _COLUMNS], axis=-1)
        finally:
            session.command("ptc_track_end", "ptc_end")
        found = {}
        for node in nodes:
            here = (turn > 0) & (np.abs(at - s[node]) < 1e-9 * max(1.0, abs(s[node])))
            if node == 0:
                found[node] = everyone, rows
            else:
                found[node] = np.round(number[here]).astype(int) - 1, columns[here]
            if len(np.unique(found[node][0])) != len(found[node][0]):
                raise SimulatorError(f"PTC gave particles twice behind {names[node]!r}: {session.tail()}")
        return found

    def _bunch(self, index: np.ndarray, rows: np.ndarray, s: float) -> ParticleGroup:
        p0, mass = self._p0, self._mass
        due = self._reference_time + s * self._energy / (p0 * SPEED_OF_LIGHT)
        total = self._energy + p0 * rows[:, 5]
        with np.errstate(invalid="ignore"):
            forward = np.sqrt((total - mass) * (total + mass) - (p0 * rows[:, 1]) ** 2 - (p0 * rows[:, 3]) ** 2)
            through = np.isfinite(rows).all(axis=-1) & (forward > 0.0)
        values = {
            "x": rows[:, 0],
            "px": p0 * rows[:, 1],
            "y": rows[:, 2],
            "py": p0 * rows[:, 3],
            "pz": forward,
            "t": due - rows[:, 4] / SPEED_OF_LIGHT,
        }
        return outgoing(
            self._group,
            self._alive[index[through]],
            {name: value[through] for name, value in values.items()},
            float(self._group.z[0]) + s,
            {"pz": p0, "t": due},
        )
