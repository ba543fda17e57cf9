"""Sender: posts many values from the thread of pvxs that sends them, so that they go out together."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence

from p4p import Value
from p4p.server import Server
from p4p.server.raw import SharedPV

from lume_diff.ioc.pva import wire

_PATIENCE = 1.0  # [s] for the server to answer itself
_IDLE = 10.0  # [s] after which a connection is used lest it be closed

#: A channel and what is to be posted to it.
Post = tuple[SharedPV, Value]


class Sender:
    """Have many values posted by the one thread that sends to all clients.

    A post by any other thread wakes that one, which then sends a packet for nearly every value: for a thousand that is
    five times the work. What it posts itself waits until it is done, and goes out in large packets. That thread runs
    what is ours only when a client asks for something, so we ask our own server for a name that only we know.
    """

    def __init__(self) -> None:
        self.name = f"lume_diff:{uuid.uuid4()}"  #: that is asked for
        self._question = wire.search([(0, self.name)])
        self._stream: socket.socket | None = None
        self._used = 0.0
        self._waiting: deque[Sequence[Post]] = deque()
        self._posted = threading.Event()

    def start(self, server: Server) -> None:
        """Connect to the server, which is to hand searches for the name to `hear`."""
        found = server.conf()
        host = found["EPICS_PVAS_INTF_ADDR_LIST"].split()[0].partition(":")[0]
        place = host.replace("0.0.0.0", "127.0.0.1"), int(found["EPICS_PVAS_SERVER_PORT"])
        with contextlib.suppress(OSError):  # then posts are made where they are asked for
            self._stream = socket.create_connection(place, _PATIENCE)
            self._stream.settimeout(None)
            self._stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._say(wire.opening())

    def post(self, posts: Sequence[Post]) -> None:
        """Post values; returns when that is done."""
        self._posted.clear()
        self._waiting.append(posts)
        if self._say(self._question) and self._posted.wait(_PATIENCE):
            return
        try:
            late = self._waiting.pop()
        except IndexError:  # the thread is at it
            self._posted.wait()
        else:
            _post(late)

    def hear(self) -> None:
        """Post what waits; called in the thread that sends."""
        try:
            posts = self._waiting.popleft()
        except IndexError:  # it took too long, and was done elsewhere
            return
        try:
            _post(posts)
        finally:
            self._posted.set()  # whoever waits would wait for ever

    def keep(self) -> None:
        """Keep the connection, if it has not been used for a while; to be called every few seconds."""
        if time.monotonic() - self._used > _IDLE:
            self._say(wire.echo())

    def stop(self) -> None:
        """Let the server go."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _say(self, message: bytes) -> bool:
        """Send a message and throw away what has been answered to others; tells whether that could be done."""
        stream = self._stream
        if stream is None:
            return False
        self._used = time.monotonic()
        try:
            stream.sendall(message)
            with contextlib.suppress(BlockingIOError):
                while stream.recv(1 << 16, socket.MSG_DONTWAIT):
                    pass
                raise ConnectionError("the server has hung up")
        except OSError:
            self.stop()
            return False
        return True


def _post(posts: Sequence[Post]) -> None:
    for pv, value in posts:
        pv.post(value)
