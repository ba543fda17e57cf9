"""PVAServer: a served model on PVAccess."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any, final

from p4p import Value
from p4p.server import DynamicProvider, Server, StaticProvider
from p4p.server.raw import SharedPV

from lume_diff.control.readings import Update, sendable
from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.ioc.procedures import Procedures
from lume_diff.ioc.pva.calls import Call, JacobianTable
from lume_diff.ioc.pva.client_name import client_name
from lume_diff.ioc.pva.fields import FieldChannels
from lume_diff.ioc.pva.search import answered
from lume_diff.ioc.pva.sender import Sender
from lume_diff.ioc.pva.values import Coder, coder
from lume_diff.ioc.served import LOOPBACK, ControlServer, Served

LOG = logging.getLogger("lume_diff.ioc.pva")
_MANY = 50  # readings of a cycle


@final
class PVAServer(ControlServer):
    """Serve every variable as a channel of its normative type, and its limits as fields of it.

    Ports are those of ``EPICS_PVAS_SERVER_PORT`` and ``EPICS_PVAS_BROADCAST_PORT`` in the settings or the environment,
    or the usual ones.

    Args:
        served: what to show.
    """

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._opening = threading.Lock()  # while it is held no channel begins to show anything
        self._channels = {name: _Channel(served, name, self._opening) for name in served.variables}
        self._calls: list[SharedPV] = []
        self._providers: list[Any] = []  # p4p leaves it to us to keep them alive
        self._server: Server | None = None
        self._sender = Sender()
        self._fields = FieldChannels(served, self._sender)

    def elsewhere(self, patience: float) -> set[str]:
        """Return the full names for which another server answers."""
        return answered([self.served.prefix + name for name in self._channels], self.served, patience)

    def start(self, others: Sequence[PVAServer] = ()) -> None:
        """Make every channel and go online."""
        found = [provider for one in (self, *others) for provider in one.made()]
        self._server = Server(providers=found, conf=_configuration(self.served), useenv=False)
        for one in (self, *others):
            if len(one._channels) > _MANY:
                one._sender.start(self._server)

    def made(self) -> list[Any]:
        """Make every channel; returns what answers for them."""
        served, provider = self.served, StaticProvider(f"lume_diff {self.served.prefix}")
        for name, channel in self._channels.items():
            provider.add(served.prefix + name, channel.pv)
        self._calls = [Call(served, name).pv for name in Procedures.NAMES]
        for name, pv in zip(Procedures.NAMES, self._calls, strict=True):
            provider.add(f"{served.prefix}SERVER:{name}", pv)
        if served.response is not None:
            matrix = JacobianTable(served.response.inputs)
            sens = SharedPV(initial=matrix.value())
            served.response.listen(lambda result: sens.post(matrix.value(result)))
            self._calls.append(sens)
            provider.add(f"{served.prefix}SERVER:SENS", sens)
        self._providers = [provider, DynamicProvider(f"lume_diff fields {served.prefix}", self._fields)]
        return self._providers

    def publish(self, update: Update) -> None:
        """Post new readings to whom it may concern."""
        channels, posts = self._channels, []
        with self._opening:
            for name, reading in update.readings.items():
                channel = channels[name]
                if channel.is_open:
                    posts.append((channel.pv, channel.coder.update(reading)))
        if len(posts) > _MANY:
            self._sender.post(posts)
        else:
            for pv, value in posts:
                pv.post(value)
            self._sender.keep()

    def limits_changed(self, name: str) -> None:
        """Post the limits of a variable."""
        self._channels[name].limits_changed()
        self._fields.changed(name)

    def stop(self) -> None:
        """Go offline."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        self._sender.stop()
        for pv in (*(channel.pv for channel in self._channels.values()), *self._calls):
            pv.close(destroy=True)
        self._fields.close()


class _Channel:
    """One variable: its value is made when the first client asks for it, and it takes what clients put."""

    def __init__(self, served: Served, name: str, opening: threading.Lock) -> None:
        self._served, self._name, self._opening = served, name, opening
        self.is_open = False
        self.pv = SharedPV(handler=self)

    @functools.cached_property
    def coder(self) -> Coder:
        """What turns readings into values."""
        return coder(self._served.variables[self._name])

    def onFirstConnect(self, pv: SharedPV) -> None:
        """Show what holds."""
        with self._opening:
            if not self.is_open:
                pv.open(self.coder.first(self._served.runtime.reading(self._name), self._served.limits[self._name]))
                self.is_open = True

    def limits_changed(self) -> None:
        """Post the limits."""
        with self._opening:
            if self.is_open:
                self.pv.post(Value(self.coder.type, self.coder.fixed(self._served.limits[self._name])))

    def put(self, pv: SharedPV, op: Any) -> None:
        """Hand a put to the runtime, which completes it when its cycle is published."""

        def done(error: Exception | None, cycle: int) -> None:
            op.done() if error is None else op.done(error=sendable(str(error)))

        runtime = self._served.runtime
        try:
            value = self._received(op)
        except LumeDiffError as error:
            LOG.warning("refused %s %s: %s", client_name(op), self._name, error)
            runtime.refused([self._name], error)
            op.done(error=sendable(str(error)))
            return
        try:
            runtime.write({self._name: value}, client_name(op), done)
        except LumeDiffError as error:  # the runtime has noted it
            op.done(error=sendable(str(error)))

    def _received(self, op: Any) -> Any:
        value, longest = self.coder.received(op.value()), self._served.longest_text
        if isinstance(value, str) and len(value.encode()) > longest:
            size = len(value.encode())
            raise ValidationError(f"{self._name!r} takes texts of at most {longest} bytes, received {size}")
        return value


def _configuration(served: Served) -> dict[str, str]:
    """Return the environment's settings and those of the server; beacons stay on this machine if its clients do."""
    found = {key: value for key, value in os.environ.items() if key.startswith(("EPICS_PVAS_", "EPICS_PVA_"))}
    found["EPICS_PVAS_INTF_ADDR_LIST"] = served.interface
    if served.interface == LOOPBACK:
        found.update(EPICS_PVAS_AUTO_BEACON_ADDR_LIST="NO", EPICS_PVAS_BEACON_ADDR_LIST=LOOPBACK)
        found.update(EPICS_PVA_AUTO_ADDR_LIST="NO", EPICS_PVA_ADDR_LIST=LOOPBACK)
    return {**found, **served.settings}
