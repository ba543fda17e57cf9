"""CAServer: a served model on Channel Access."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any, final

from lume_diff.control.readings import Reading, Update
from lume_diff.errors import SimulatorError
from lume_diff.ioc.ca.channels import channel
from lume_diff.ioc.ca.context import CAContext
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
        self._channels: dict[str, Any] = {}
        for name, variable in served.variables.items():
            made = channel(served, variable)
            if made is None:
                LOG.warning("%s is a beam, which Channel Access cannot carry: it is on PVAccess only", name)
            else:
                self._channels[name] = made
        self._others: list[CAServer] = []
        self._loop: asyncio.AbstractEventLoop  # from the start on
        self._thread = threading.Thread(target=self._run, name="channel access", daemon=True)
        self._online = threading.Event()
        self._failure: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._subscriptions: Any = {}

    def elsewhere(self, patience: float) -> set[str]:
        """Return the full names for which another server answers."""
        return answered([self.served.prefix + name for name in self._channels], self.served, patience)

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
        if name in self._channels:
            shown = self._channels[name].show_limits(self.served.limits[name])
            asyncio.run_coroutine_threadsafe(shown, self._loop)

    def stop(self) -> None:
        """Go offline."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join(_PATIENCE)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _show(self, readings: Mapping[str, Reading]) -> None:
        for name, reading in readings.items():
            if name in self._channels:
                await self._channels[name].show(reading, self._subscriptions)

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
        served = self.served
        database: dict[str, Any] = {}
        for one in (self, *self._others):
            database |= {one.served.prefix + name: channel for name, channel in one._channels.items()}
        context = CAContext(database, served.interface, served.settings)
        for one in (self, *self._others):
            one._subscriptions = context.subscriptions
            await one._show({name: one.served.runtime.reading(name) for name in one._channels})

        async def online(library: Any) -> None:
            self._online.set()

        self._task = asyncio.current_task()
        await context.run(startup_hook=online)
