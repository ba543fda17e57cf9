"""Several served models that share ports."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

from lume_diff.errors import ValidationError
from lume_diff.ioc.clashes import refuse_clashes
from lume_diff.ioc.served import ControlServer

if TYPE_CHECKING:
    from lume_diff.ioc.server import Server


class Servers:
    """Serve several models at once: each is evaluated by itself, and all are found at the same ports.

    Args:
        servers: not started yet, with different prefixes and the same interface and settings.

    Raises:
        ValidationError: if they cannot share ports.

    Example:
        with Servers(Server(injector, "INJ:"), Server(line, "LINE:")):
            ...
    """

    def __init__(self, *servers: Server) -> None:
        fronts = [front.served for server in servers for front in server.fronts]
        if len({(served.interface, tuple(sorted(served.settings.items()))) for served in fronts}) > 1:
            raise ValidationError("servers that are started together need the same interface and settings")
        self.servers = list(servers)

    def start(self) -> Self:
        """Go online and evaluate every model for the first time; returns when the PVs are there.

        Raises:
            ControlError: if two have the same name, or another server has it.
        """
        start_together(self.servers)
        return self

    def wait_ready(self, timeout: float | None = None) -> Self:
        """Wait until the first cycle of every model is published, each for so long [s]."""
        for server in self.servers:
            server.wait_ready(timeout)
        return self

    def stop(self) -> None:
        """Go offline; may be called again."""
        stop_together(self.servers)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()


def start_together(servers: Sequence[Server]) -> None:
    """Start servers, those of one protocol behind the same ports.

    Raises:
        SimulatorError: if one was started before.
        ControlError: if a name is there twice, or another server has it.
    """
    for server in servers:
        server.begin()
    try:
        with uncollected():
            _go_online([front for server in servers for front in server.fronts], max(one.search for one in servers))
        for server in servers:
            server.run()
    except BaseException:
        stop_together(servers)
        raise


def _go_online(fronts: Sequence[ControlServer], search: float) -> None:
    refuse_clashes(fronts, search)
    kinds: dict[type[ControlServer], list[ControlServer]] = {}
    for front in fronts:
        kinds.setdefault(type(front), []).append(front)
    for first, *others in kinds.values():
        first.start(others)
    gc.freeze()  # or the collector looks at all of torch while a client waits, for some tenths of a second


def stop_together(servers: Sequence[Server]) -> None:
    """Stop servers, which may show their PVs through each other."""
    for server in servers:
        server.halt()
    for server in servers:
        server.close()
    gc.unfreeze()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking at all of torch again and again while thousands of PVs are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
