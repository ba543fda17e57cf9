"""CAServer: a served model on Channel Access."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, final

from lume_diff.control.readings import Reading, Update
from lume_diff.errors import SimulatorError
from lume_diff.ioc.ca.channels import channel, is_carried
from lume_diff.ioc.ca.context import CAContext, Channels
from lume_diff.ioc.ca.search import answered
from lume_diff.ioc.served import ControlServer, Served

LOG = logging.getLogger("lume_diff.ioc.ca")
_PATIENCE = 10.0  # [s] for the loop to do something


@final
class CAServer(ControlServer):
    """Serve every variable but beams as a channel, in a thread with an event loop of its own.

    Ports are those of ``EPICS_CA_SERVER_PORT`` and so on in the settings or the environment, or the usual ones.

    Args:
        served: what to show.
    """

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._names = {name for name, variable in served.variables.items() if is_carried(variable)}
        for name in served.variables.keys() - self._names:
            LOG.warning("%s is a beam, which Channel Access cannot carry: it is on PVAccess only", name)
        self._channels: dict[str, Any] = {}  # those that somebody has asked for; only the loop looks
        self._others: list[CAServer] = []
        self._loop: asyncio.AbstractEventLoop  # from the start on
        self._thread = threading.Thread(target=self._run, name="channel access", daemon=True)
        self._online = threading.Event()
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._subscriptions: Any = {}

    def elsewhere(self, patience: float) -> set[str]:
        """Return the full names for which another server answers."""
        return answered([self.served.prefix + name for name in self._names], self.served, patience)

    def start(self, others: Sequence[CAServer] = ()) -> None:
        """Go online.

        Raises:
            SimulatorError: if the ports cannot be had.
        """
        self._others = list(others)
        self._loop = asyncio.new_event_loop()
        for one in others:
            one._loop = self._loop
        self._thread.start()
        self._online.wait(_PATIENCE)
        if self._failure is not None or not self._online.is_set():
            raise SimulatorError(f"Channel Access cannot be served: {self._failure or 'the server does not start'}")

    def publish(self, update: Update) -> None:
        """Show new readings; returns when every client that asks gets them."""
        asyncio.run_coroutine_threadsafe(self._show(update.readings), self._loop).result(_PATIENCE)

    def limits_changed(self, name: str) -> None:
        """Show the limits of a variable."""
        asyncio.run_coroutine_threadsafe(self._show_limits(name), self._loop)

    def stop(self) -> None:
        """Go offline."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join(_PATIENCE)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def find(self, full: str) -> Any:
        """Return the channel with a full name, made when it is asked for first; None if it is not ours."""
        name = full.removeprefix(self.served.prefix)
        if name not in self._channels and name in self._names and full.startswith(self.served.prefix):
            self._channels[name] = channel(self.served, self.served.variables[name])
        return self._channels.get(name)

    async def _show(self, readings: Mapping[str, Reading]) -> None:
        for name in readings.keys() & self._channels.keys():
            await self._channels[name].show(readings[name], self._subscriptions)

    async def _show_limits(self, name: str) -> None:
        if name in self._channels:
            await self._channels[name].show_limits(self.served.limits[name])

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
            LOG.exception("the server has ended")
        finally:
            self._online.set()
            self._loop.close()

    async def _serve(self) -> None:
        database = Channels([one.find for one in (self, *self._others)])
        context = CAContext(database, self.served.interface, self.served.settings)
        for one in (self, *self._others):
            one._subscriptions = context.subscriptions

        async def online(library: Any) -> None:
            self._online.set()

        self._task = asyncio.current_task()
        await context.run(startup_hook=online)
