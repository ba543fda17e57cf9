"""PVAServer: a served model on PVAccess."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any, final

from p4p import Value
from p4p.server import DynamicProvider, Server, StaticProvider
from p4p.server.raw import SharedPV

from lume_diff.control.readings import Update
from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.ioc.procedures import Procedures
from lume_diff.ioc.pva.calls import Call, JacobianTable
from lume_diff.ioc.pva.client_name import client_name
from lume_diff.ioc.pva.fields import FieldChannels
from lume_diff.ioc.pva.search import answered
from lume_diff.ioc.pva.threads import Senders
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
        self._coders: dict[str, Coder] = {name: coder(variable) for name, variable in served.variables.items()}
        self._pvs: dict[str, SharedPV] = {}
        self._fields = FieldChannels(served)
        self._providers: list[Any] = []  # p4p leaves it to us to keep them alive
        self._server: Server | None = None
        self._senders = Senders()

    def elsewhere(self, patience: float) -> set[str]:
        """Return the full names for which another server answers."""
        return answered([self.served.prefix + name for name in self._coders], self.served, patience)

    def start(self, others: Sequence[PVAServer] = ()) -> None:
        """Make every channel and go online."""
        found = [provider for one in (self, *others) for provider in one.made()]
        self._server = Server(providers=found, conf=_configuration(self.served), useenv=False)

    def made(self) -> list[Any]:
        """Make every channel; returns what answers for them."""
        served, provider = self.served, StaticProvider(f"lume_diff {self.served.prefix}")
        for name, one in self._coders.items():
            first = one.first(served.runtime.reading(name), served.limits[name])
            self._add(provider, name, SharedPV(handler=_Puts(served, name, one), initial=first))
        for name in Procedures.NAMES:
            self._add(provider, f"SERVER:{name}", Call(served, name).pv)
        if served.response is not None:
            matrix = JacobianTable(served.response.inputs)
            sens = SharedPV(initial=matrix.value())
            served.response.listen(lambda result: sens.post(matrix.value(result)))
            self._add(provider, "SERVER:SENS", sens)
        self._providers = [provider, DynamicProvider(f"lume_diff fields {served.prefix}", self._fields)]
        self._senders = Senders()
        return self._providers

    def _add(self, provider: StaticProvider, name: str, pv: SharedPV) -> None:
        self._pvs[name] = pv
        provider.add(self.served.prefix + name, pv)

    def publish(self, update: Update) -> None:
        """Post new readings."""
        with self._senders.waiting() if len(update.readings) > _MANY else contextlib.nullcontext():
            pvs, coders = self._pvs, self._coders
            for name, reading in update.readings.items():
                pvs[name].post(coders[name].update(reading))

    def limits_changed(self, name: str) -> None:
        """Post the limits of a variable."""
        one = self._coders[name]
        self._pvs[name].post(Value(one.type, one.fixed(self.served.limits[name])))
        self._fields.changed(name)

    def stop(self) -> None:
        """Go offline."""
        server, self._server = self._server, None
        if server is not None:
            server.stop()
        for pv in self._pvs.values():
            pv.close(destroy=True)
        self._pvs = {}
        self._fields.close()


class _Puts:
    """Take what clients put into one channel."""

    def __init__(self, served: Served, name: str, one: Coder) -> None:
        self._served, self._name, self._coder = served, name, one

    def put(self, pv: SharedPV, op: Any) -> None:
        """Hand a put to the runtime, which completes it when its cycle is published."""

        def done(error: Exception | None, cycle: int) -> None:
            op.done() if error is None else op.done(error=str(error))

        runtime = self._served.runtime
        try:
            value = self._received(op)
        except LumeDiffError as error:
            LOG.warning("refused %s %s: %s", client_name(op), self._name, error)
            runtime.refused([self._name], error)
            op.done(error=str(error))
            return
        try:
            runtime.write({self._name: value}, client_name(op), done)
        except LumeDiffError as error:  # the runtime has noted it
            op.done(error=str(error))

    def _received(self, op: Any) -> Any:
        value, longest = self._coder.received(op.value()), self._served.longest_text
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
