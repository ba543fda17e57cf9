"""Name clashes: a server stays offline where another one has its names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lume_diff.errors import ControlError
from lume_diff.ioc.served import ControlServer

_MOST_NAMED = 10  # names in a message


def refuse_clashes(servers: Sequence[ControlServer], patience: float) -> None:
    """Look for other servers that have the same names.

    Args:
        servers: that are not online yet.
        patience: how long to look [s]; 0 for not at all.

    Raises:
        ControlError: if any answers; with the names.
    """
    _refuse_doubled(servers)
    if not patience or not servers:
        return
    with ThreadPoolExecutor(len(servers)) as pool:
        taken = set().union(*pool.map(lambda server: server.elsewhere(patience), servers))
    if taken:
        names = dict.fromkeys(one.served.prefix + name for one in servers for name in one.served.variables)
        found = [name for name in names if name in taken]
        raise ControlError(
            f"another server answers for {len(found)} of the names to be served: {_listed(found)}; choose another "
            "prefix, or stop the other server"
        )


def _refuse_doubled(servers: Sequence[ControlServer]) -> None:
    """Refuse servers of one protocol that have a name in common."""
    names = Counter((type(one), one.served.prefix + name) for one in servers for name in one.served.variables)
    doubled = list(dict.fromkeys(name for (_, name), count in names.items() if count > 1))
    if doubled:
        raise ControlError(f"these names are there more than once: {_listed(doubled)}; give every model a prefix")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMED]) + (", ..." if len(names) > _MOST_NAMED else "")
