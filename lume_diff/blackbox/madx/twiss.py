"""What MAD-X's TWISS gives: its table, transfer matrices and orbit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.errors import SimulatorError

Array = np.ndarray
TABLE = "lume_diff_twiss"
#: MAD-X's six coordinates, (x, px/p0, y, py/p0, -c dt, dE/(p0 c)).
CANONICAL = ("x", "px", "y", "py", "t", "pt")


def twiss_table(session: MADXSession, options: Sequence[str], nodes: int) -> Any:
    """Run TWISS and return its table.

    Args:
        session: with the sequence in use.
        options: of the command.
        nodes: how many rows it must give.

    Raises:
        SimulatorError: if it fails, or the sequence is another one by now.
    """
    if TABLE in session.madx.table:
        session.command(f"delete, table={TABLE}")
    command = ", ".join(["twiss", f"sequence={session.sequence}", f"table={TABLE}", *options])
    if not session.madx.input(command) or TABLE not in session.madx.table:
        raise SimulatorError(f"TWISS failed, as it does where the lattice is not stable: {session.tail()}")
    table = session.madx.table[TABLE]
    if len(table["s"]) != nodes:
        raise SimulatorError(
            f"TWISS gave {len(table['s'])} rows and the sequence had {nodes} nodes: it was changed; build a new model"
        )
    return table


def orbit(table: Any) -> Array:
    """Return the orbit behind every node, in MAD-X's coordinates, ``(nodes, 6)``."""
    return np.stack([np.array(table[name], dtype=float) for name in CANONICAL], axis=-1)


def maps_along(session: MADXSession, start: Array, nodes: int) -> tuple[Array, Array]:
    """Return an orbit and the R-matrices about it, from the start of the line to behind every node.

    Of a ring this is not what TWISS gives by itself: that is the matrix of a whole turn from every node.

    Args:
        session: with the sequence in use.
        start: of the orbit, in MAD-X's coordinates, ``(6,)``.
        nodes: of the sequence.

    Returns:
        Shapes ``(nodes, 6)`` and ``(nodes, 6, 6)``.
    """
    given = [f"{name}={value!r}" for name, value in zip(CANONICAL, start.tolist(), strict=True)]
    table = twiss_table(session, ["betx=1", "bety=1", "rmatrix", *given], nodes)
    entries = [np.array(table[f"re{i}{j}"], dtype=float) for i in range(1, 7) for j in range(1, 7)]
    return orbit(table), np.stack(entries, axis=-1).reshape(-1, 6, 6)
