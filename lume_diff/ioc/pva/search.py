"""Which names other servers answer for on PVAccess; thousands are asked for without a channel for each."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence

from p4p.client.raw import Context

from lume_diff.ioc.closed_ports import open_places
from lume_diff.ioc.pva import wire
from lume_diff.ioc.served import Served

_NAMES_A_MESSAGE = 40
_ROUNDS = 2  # a datagram may be lost
_TOGETHER = 32  # datagrams that a server's socket surely holds


def answered(names: Sequence[str], served: Served, patience: float) -> set[str]:
    """Return the names for which a server answers.

    Looked for is where a client on this machine would look, and on the interface itself.

    Args:
        names: to look for, all at once.
        served: where we are about to listen.
        patience: how long to wait [s].
    """
    search = _Search(names)
    broadcast, streams = _places(served)
    broadcast = open_places(broadcast, wire.search([]))
    with contextlib.ExitStack() as held:
        channel = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        channel.bind(("", 0))
        for place in streams:
            with contextlib.suppress(OSError):
                search.ask_stream(held.enter_context(socket.create_connection(place, patience)))
        if not (broadcast or search.has_streams):
            return set()
        for _ in range(_ROUNDS):
            search.ask(channel, broadcast)
            search.listen(patience / _ROUNDS)
    return search.found


def _places(served: Served) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return where clients send datagrams, and the name servers that they have connections to."""
    env = {key: value for key, value in os.environ.items() if key.startswith(("EPICS_PVA_", "EPICS_PVAS_"))}
    settings = {**env, **served.settings}
    port = settings.get("EPICS_PVAS_BROADCAST_PORT", settings.get("EPICS_PVA_BROADCAST_PORT", ""))
    if port:
        settings["EPICS_PVA_BROADCAST_PORT"] = port
    if served.interface != "0.0.0.0":
        settings["EPICS_PVA_ADDR_LIST"] = f"{settings.get('EPICS_PVA_ADDR_LIST', '')} {served.interface}"
    servers = settings.pop("EPICS_PVA_NAME_SERVERS", "").split()
    with Context("pva", conf=settings, useenv=False) as context:  # which knows the broadcast addresses
        found = context.conf()
    default = int(found["EPICS_PVA_BROADCAST_PORT"]), int(found["EPICS_PVA_SERVER_PORT"])
    broadcast = [_place(one, default[0]) for one in found["EPICS_PVA_ADDR_LIST"].split()]
    return broadcast, [_place(one, default[1]) for one in servers]


def _place(text: str, port: int) -> tuple[str, int]:
    host, _, own = text.partition(",")[0].partition(":")
    return host, int(own or port)


class _Search:
    """Look for names, and remember which were found."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)
        self._read: dict[socket.socket, bytes] = {}  # what has come of a message that is not complete
        self.found: set[str] = set()

    @property
    def has_streams(self) -> bool:
        """Whether there is a name server that may answer."""
        return bool(self._read)

    def ask(self, channel: socket.socket, places: Sequence[tuple[str, int]]) -> None:
        """Send what has not been found yet to every place, and read answers in between."""
        self._read[channel] = b""
        for count, content in enumerate(self._questions(channel.getsockname()[1])):
            for place in places:
                with contextlib.suppress(OSError):  # a network that cannot be reached has no servers
                    channel.sendto(content, place)
            self.listen(0.0 if count % _TOGETHER else 0.002)

    def ask_stream(self, stream: socket.socket) -> None:
        """Send what has not been found yet to a name server."""
        self._read[stream] = b""
        stream.sendall(wire.opening())
        for content in self._questions(0):
            stream.sendall(content)
            self.listen(0.0)

    def listen(self, patience: float) -> None:
        """Take answers for some time [s]."""
        end = time.monotonic() + patience
        while ready := select.select(list(self._read), [], [], max(0.0, end - time.monotonic()))[0]:
            for channel in ready:
                content = b""
                with contextlib.suppress(OSError):
                    content = channel.recv(1 << 16)
                if channel.type == socket.SOCK_DGRAM:
                    self._take(content)
                elif content:
                    self._read[channel] = self._take(self._read[channel] + content)
                else:  # it has hung up
                    del self._read[channel]

    def _questions(self, port: int) -> Iterator[bytes]:
        """Return messages that ask for the answers to be sent to a port of the asker."""
        wanted = [(number, name) for number, name in enumerate(self._names) if name not in self.found]
        for start in range(0, len(wanted), _NAMES_A_MESSAGE):
            yield wire.search(wanted[start : start + _NAMES_A_MESSAGE], port)

    def _take(self, content: bytes) -> bytes:
        """Take the answers of complete messages; returns what is left."""
        while len(content) >= 8 and content[0] == wire.MAGIC:
            order = ">" if content[2] & wire.BIG_ENDIAN else "<"
            size = 0 if content[2] & wire.CONTROL else struct.unpack_from(order + "I", content, 4)[0]
            if len(content) < 8 + size:
                break
            if content[3] == wire.FOUND and not content[2] & wire.CONTROL:
                with contextlib.suppress(struct.error, IndexError):
                    self._note(content[8 : 8 + size], order)
            content = content[8 + size :]
        return content

    def _note(self, answer: bytes, order: str) -> None:
        protocol_at = 12 + 4 + 16 + 2  # after the server, the number of the search, and the address
        at = protocol_at + 1 + answer[protocol_at]
        if answer[at]:
            count = struct.unpack_from(order + "H", answer, at + 1)[0]
            for number in struct.unpack_from(f"{order}{count}I", answer, at + 3):
                if number < len(self._names):
                    self.found.add(self._names[number])
