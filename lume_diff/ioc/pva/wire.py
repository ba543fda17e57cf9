"""Messages of PVAccess that p4p has no call for: searches, and what opens a connection to make them on."""

from __future__ import annotations

import struct
from collections.abc import Sequence

MAGIC, BIG_ENDIAN, CONTROL = 0xCA, 0x80, 0x01
FOUND = 4  # kind of the message that answers a search
_VERSION = 2
_VALIDATION, _ECHO, _SEARCH = 1, 2, 3
_TO_ONE = 0x80  # a search for one server, which hands it on to others on its machine
_NO_TYPE = b"\xff"


def search(names: Sequence[tuple[int, str]], port: int = 0) -> bytes:
    """Return a search.

    Args:
        names: each with a number that the answer will have.
        port: of the asker that datagrams are to be answered to.
    """
    asked = b"".join(struct.pack(">I", number) + _text(name) for number, name in names)
    head = struct.pack(">IB3x16xHB", 0, _TO_ONE, port, 1) + _text("tcp")
    return _message(_SEARCH, head + struct.pack(">H", len(names)) + asked)


def opening() -> bytes:
    """Return what a client that does not say who it is begins a connection with."""
    return _message(_VALIDATION, struct.pack(">IHH", 1 << 16, 0x7FFF, 0) + _text("anonymous") + _NO_TYPE)


def echo() -> bytes:
    """Return what keeps a connection from being closed, as unused ones are after 40 s."""
    return _message(_ECHO, b"")


def _message(kind: int, content: bytes) -> bytes:
    return struct.pack(">BBBBI", MAGIC, _VERSION, BIG_ENDIAN, kind, len(content)) + content


def _text(text: str) -> bytes:
    """Return a text with its length; those of 254 bytes and more need a longer one."""
    content = text.encode()
    size = len(content)
    return (bytes([size]) if size < 254 else b"\xfe" + struct.pack(">I", size)) + content
