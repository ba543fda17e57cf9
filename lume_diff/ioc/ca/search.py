"""Which names other servers answer for on Channel Access."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence

import caproto

from lume_diff.ioc.closed_ports import open_places
from lume_diff.ioc.served import Served

_NAMES_A_DATAGRAM = 15  # names of up to 60 characters fit into 1024 bytes
_ROUNDS = 2  # a datagram may be lost
_HEADER = struct.Struct(">HHHHII")  # caproto packs a search in forty times the time
_VERSION = bytes(caproto.VersionRequest(0, caproto.DEFAULT_PROTOCOL_VERSION))
_SEARCH, _NO_REPLY = 6, 5


def answered(names: Sequence[str], served: Served, patience: float) -> set[str]:
    """Return the names for which a server answers.

    Looked for is where a client on this machine would look, and on the interface itself.

    Args:
        names: to look for, all at once.
        served: where we are about to listen.
        patience: how long to wait [s].
    """
    port = int(served.settings.get("EPICS_CA_SERVER_PORT", caproto.get_environment_variables()["EPICS_CA_SERVER_PORT"]))
    hosts = [*caproto.get_address_list(), *([] if served.interface == "0.0.0.0" else [served.interface])]
    places = open_places([_place(host, port) for host in hosts], _VERSION)
    if not places:
        return set()
    searcher = _Searcher(names)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        channel.bind(("", 0))
        for _ in range(_ROUNDS):
            searcher.ask(channel, places)
            searcher.listen(channel, patience / _ROUNDS)
    return searcher.found


def _place(text: str, port: int) -> tuple[str, int]:
    host, _, own = text.partition(":")
    return host, int(own or port)


class _Searcher:
    """Look for names, and remember which were found."""

    def __init__(self, names: Sequence[str]) -> None:
        self._broadcaster = caproto.Broadcaster(our_role=caproto.CLIENT)
        self._names = dict(enumerate(names))
        self.found: set[str] = set()

    def ask(self, channel: socket.socket, places: Iterable[tuple[str, int]]) -> None:
        """Send what has not been found yet to every place, and read answers in between."""
        wanted = [(i, name) for i, name in self._names.items() if name not in self.found]
        for start in range(0, len(wanted), _NAMES_A_DATAGRAM):
            searches = [_search(i, name) for i, name in wanted[start : start + _NAMES_A_DATAGRAM]]
            content = _VERSION + b"".join(searches)
            for place in places:
                with contextlib.suppress(OSError):  # a network that cannot be reached has no servers
                    channel.sendto(content, place)
            self.listen(channel, 0.0)

    def listen(self, channel: socket.socket, patience: float) -> None:
        """Take answers until nothing has come for so long [s] as is left."""
        end = time.monotonic() + patience
        while select.select([channel], [], [], max(0.0, end - time.monotonic()))[0]:
            content, sender = channel.recvfrom(65536)
            try:
                commands = self._broadcaster.recv(content, sender)
            except caproto.CaprotoError:
                continue
            for command in commands:
                if isinstance(command, caproto.SearchResponse) and command.cid in self._names:
                    self.found.add(self._names[command.cid])


def _search(number: int, name: str) -> bytes:
    """Return a message that asks for a name; who does not have it is not to answer."""
    text = name.encode() + b"\0"
    text += bytes(-len(text) % 8)
    return _HEADER.pack(_SEARCH, len(text), _NO_REPLY, caproto.DEFAULT_PROTOCOL_VERSION, number, number) + text
