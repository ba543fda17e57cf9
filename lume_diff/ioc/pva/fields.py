"""FieldChannels: ``X.DRVL`` and the like as channels that no list shows, made when somebody asks for one."""

from __future__ import annotations

import threading
import time
from typing import Any

from p4p.nt import NTScalar
from p4p.server import DynamicProvider
from p4p.server.raw import SharedPV

from lume_diff.errors import LumeDiffError
from lume_diff.ioc.pva.client_name import client_name
from lume_diff.ioc.pva.sender import Sender
from lume_diff.ioc.record_fields import FIELDS, read_field, write_field
from lume_diff.ioc.served import Served


class FieldChannels:
    """Serve the fields of every variable.

    Args:
        served: what is served.
        sender: is told when somebody looks for its name.
    """

    def __init__(self, served: Served, sender: Sender) -> None:
        self._served, self._sender = served, sender
        self._made: dict[str, _FieldPV] = {}
        self._lock = threading.Lock()

    def testChannel(self, channel: str) -> bool | bytes:
        """Tell p4p whether a channel is a field of ours."""
        if channel == self._sender.name:
            self._sender.hear()
            return DynamicProvider.NotYet  # ask again next time
        return self._split(channel) is not None

    def makeChannel(self, channel: str, peer: str) -> SharedPV | None:
        """Return the channel of a field."""
        found = self._split(channel)
        if found is None:
            return None
        with self._lock:
            if channel not in self._made:
                self._made[channel] = _FieldPV(self._served, *found)
            return self._made[channel].pv

    def changed(self, name: str) -> None:
        """Post the fields of a variable whose limits have changed."""
        for field in FIELDS:
            made = self._made.get(f"{self._served.prefix}{name}.{field}")
            if made is not None:
                made.refresh()

    def close(self) -> None:
        """Close every channel."""
        for made in self._made.values():
            made.pv.close(destroy=True)
        self._made = {}

    def _split(self, channel: str) -> tuple[str, str] | None:
        prefix = self._served.prefix
        if not channel.startswith(prefix):
            return None
        name, _, field = channel[len(prefix) :].rpartition(".")
        return (name, field) if field in FIELDS and name in self._served.variables else None


class _FieldPV:
    """One field of one variable."""

    def __init__(self, served: Served, name: str, field: str) -> None:
        self._served, self._name, self._field = served, name, field
        value = read_field(served, name, field)
        kind = NTScalar("s" if isinstance(value, str) else "d" if isinstance(value, float) else "i")
        self.pv = SharedPV(handler=self, nt=kind, initial=value, timestamp=time.time())

    def put(self, pv: SharedPV, op: Any) -> None:
        """Change a limit, where that is allowed."""
        try:
            write_field(self._served, self._name, self._field, float(op.value()), client_name(op))
        except (LumeDiffError, ValueError) as error:
            op.done(error=str(error))
        else:
            op.done()

    def refresh(self) -> None:
        """Post the field as it is now."""
        self.pv.post(read_field(self._served, self._name, self._field), timestamp=time.time())
