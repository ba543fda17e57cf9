"""Sender: posts many values from the thread of pvxs that sends them, so that they go out together."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

from p4p import Value
from p4p.client.raw import Context
from p4p.nt import NTScalar
from p4p.server import Server
from p4p.server.raw import SharedPV

_PATIENCE = 1.0  # [s] for the server to answer itself

#: A channel and what is to be posted to it.
Post = tuple[SharedPV, Value]


class Sender:
    """Have many values posted by the one thread that sends to all clients.

    A post by any other thread wakes that one, which then sends a packet for nearly every value: for a thousand that is
    five times the work. What it posts itself waits until it is done, and goes out in large packets. A thread of pvxs
    runs what is ours only when a client asks for something, so we put into a channel of our own.
    """

    def __init__(self) -> None:
        self.name = f"lume_diff:{uuid.uuid4()}"  #: of the channel, which only we know
        self.pv = SharedPV(handler=self, nt=NTScalar("i"), initial=0)
        self._client: Context | None = None
        self._waiting: deque[Sequence[Post]] = deque()
        self._posted = threading.Event()
        self._is_there = False
        self._asked: Any = None

    def start(self, server: Server) -> None:
        """Connect to the server that has the channel; until that is done, posts are made where they are asked for."""
        found = server.conf()
        address = found["EPICS_PVAS_INTF_ADDR_LIST"].split()[0].split(":")[0].replace("0.0.0.0", "127.0.0.1")
        settings = {
            "EPICS_PVA_ADDR_LIST": "",
            "EPICS_PVA_AUTO_ADDR_LIST": "NO",
            "EPICS_PVA_NAME_SERVERS": f"{address}:{found['EPICS_PVAS_SERVER_PORT']}",
        }
        self._client = Context("pva", conf=settings, useenv=False, nt=False)
        self._ask()

    def post(self, posts: Sequence[Post]) -> None:
        """Post values; returns when that is done."""
        if not self._is_there:
            _post(posts)
            return
        self._posted.clear()
        self._waiting.append(posts)
        self._ask()
        if self._posted.wait(_PATIENCE):
            return
        try:
            late = self._waiting.pop()
        except IndexError:  # the thread is at it
            self._posted.wait()
        else:
            _post(late)

    def put(self, pv: SharedPV, op: Any) -> None:
        """Do what waits, in the thread that sends."""
        self._is_there = True
        try:
            _post(self._waiting.popleft())
            self._posted.set()
        except IndexError:
            pass
        op.done()

    def stop(self) -> None:
        """Let the server go."""
        self._is_there = False
        if self._client is not None:
            self._client.close()
            self._client = None
        self.pv.close(destroy=True)

    def _ask(self) -> None:
        if self._client is not None:
            self._asked = self._client.put(self.name, lambda answer: None, builder=1, get=False)


def _post(posts: Sequence[Post]) -> None:
    for pv, value in posts:
        pv.post(value)
