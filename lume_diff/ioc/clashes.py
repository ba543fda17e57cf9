"""Name clashes: a server stays offline where another one has its names."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lume_diff.errors import ControlError
from lume_diff.ioc.served import ControlServer

_MOST_NAMED = 10


def refuse_clashes(servers: Sequence[ControlServer], patience: float) -> None:
    """Look for other servers that have the same names.

    Args:
        servers: that are not online yet.
        patience: how long to look [s]; 0 for not at all.

    Raises:
        ControlError: if any answers; with the names.
    """
    if not patience or not servers:
        return
    with ThreadPoolExecutor(len(servers)) as pool:
        found = sorted(set().union(*pool.map(lambda server: server.others(patience), servers)))
    if found:
        named = ", ".join(found[:_MOST_NAMED]) + (", ..." if len(found) > _MOST_NAMED else "")
        raise ControlError(
            f"another server answers for {len(found)} of the names to be served: {named}; choose another prefix, or "
            "stop the other server"
        )
