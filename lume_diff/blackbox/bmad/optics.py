"""Linear optics as Tao has computed it, read in binary."""

from __future__ import annotations

from typing import Any

import numpy as np

from lume_diff.blackbox.bmad.session import TaoSession
from lume_diff.blackbox.bmad.survey import BRANCH
from lume_diff.blackbox.codes.optics_names import MATRIX, Optics
from lume_diff.errors import SimulatorError

Array = np.ndarray
COORDINATES = "Bmad's coordinates (x, px/p0, y, py/p0, -beta c dt, dp/p0)"

_WHO = {
    **{f"beta_{plane}": f"ele.{mode}.beta" for plane, mode in ("xa", "yb")},
    **{f"alpha_{plane}": f"ele.{mode}.alpha" for plane, mode in ("xa", "yb")},
    **{f"mu_{plane}": f"ele.{mode}.phi" for plane, mode in ("xa", "yb")},
    **{f"{name}_{plane}": f"ele.{plane}.{name}" for name in ("eta", "etap") for plane in "xy"},
    **{name: f"orbit.vec.{index}" for index, name in enumerate(("x", "px", "y", "py"), start=1)},
    "s": "ele.s",
}
_MODES = "ab"


def column(session: TaoSession, who: str, count: int) -> Array:
    """Return a quantity at the exits of all elements that are tracked through, ``(count + 1,)``; first the start."""
    return session.reals(_query(who), count + 1)


def _query(who: str) -> str:
    return f"pipe lat_list -array_out -track_only -index_order {BRANCH}*|model {who}"


def read_optics(session: TaoSession, optics: Optics) -> dict[str, Any]:
    """Return optics of the lattice as it stands.

    Raises:
        SimulatorError: where there is none: no closed orbit, an unstable lattice, a reference particle that is lost.
    """
    count = optics.count
    wanted = optics.quantities
    states = session.integers(_query("orbit.state"), count + 1)
    if np.any(states != 1):
        place = int(np.flatnonzero(states != 1)[0])
        raise SimulatorError(f"the reference particle is lost at element number {place}: {session.tail()}")
    names = {name for name in wanted if name in _WHO}
    names |= {f"mu_{name[-1]}" for name in wanted if name.startswith("tune_")}
    if names - {"s"} - {"x", "px", "y", "py"}:
        names |= {"beta_x", "beta_y"}  # zero where there is no solution
    table = {name: column(session, _WHO[name], count) for name in sorted(names)}
    for name in ("beta_x", "beta_y"):
        if name in table and not np.all(table[name] > 0.0):
            raise SimulatorError(f"Tao found no optics, as where the lattice is not stable: {session.tail()}")
    for name in table:
        if name.startswith("mu_"):
            table[name] = table[name] - table[name][0]
    if {"px", "py"} & names:
        momentum = column(session, "ele.p0c", count)
        table |= {name: momentum * table[name] for name in ("px", "py") if name in table}
    if MATRIX in wanted:
        table[MATRIX] = transfer_matrices(session, count)
    return optics.gather(table, range(count + 1), _ring(session, optics, table))


def _ring(session: TaoSession, optics: Optics, table: dict[str, Array]) -> dict[str, float]:
    found = {}
    for name in optics.ring:
        kind, _, plane = name.partition("_")
        if kind == "tune":
            found[name] = float(table[f"mu_{plane}"][-1]) / (2.0 * np.pi)
        else:
            mode = _MODES["xy".index(plane)]
            found[name] = float(session.reals(f"pipe evaluate -array_out lat::chrom.{mode}", 1)[0])
    return found


def transfer_matrices(session: TaoSession, count: int) -> Array:
    """Return the transfer matrices from the start to all exits, ``(count + 1, 6, 6)``, about the orbit."""
    single = session.reals(_query("ele.mat6"), 36 * (count + 1)).reshape(-1, 6, 6)
    found = np.empty_like(single)
    found[0] = np.eye(6)
    for index in range(1, count + 1):
        found[index] = single[index] @ found[index - 1]
    return found
