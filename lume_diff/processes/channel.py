"""Channel: whole Python objects over a socket between two processes of one machine, large arrays without a copy."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

import cloudpickle
import numpy as np

_HEAD = struct.Struct("=QI")  # length of the pickle, number of buffers that follow it
_JOIN_BELOW = 1 << 16  # [bytes] one copy and one system call are cheaper up to here
_IN_BAND_BELOW = 1 << 12  # [bytes] smaller arrays travel inside the pickle
_SIMPLE = frozenset({type(None), bool, int, float, complex, str, bytes, np.float64, np.int64, np.bool_})


class Channel:
    """Send and receive objects.

    Functions and classes travel by value where the other side could not import them (cloudpickle), so lambdas, local
    classes and what a script defines itself work.

    Args:
        link: a connected stream socket, which the channel owns from then on.
        stall: how long one transfer may stand still [s], None for ever.
    """

    def __init__(self, link: socket.socket, stall: float | None = None) -> None:
        self._link = link
        link.settimeout(stall)

    def fileno(self) -> int:
        """Return the file descriptor to wait on, -1 once closed."""
        return self._link.fileno()

    def send(self, value: Any, most: int | None = None) -> bool:
        """Send an object.

        Args:
            value: what to send.
            most: how large it may be [bytes], None for any size.

        Returns:
            Whether it was sent; False if it is too large.

        Raises:
            OSError: if the other side is gone or takes nothing.
            Exception: if the object cannot be pickled; nothing has been sent then.
        """
        buffers: list[memoryview] = []

        def in_band(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _IN_BAND_BELOW:
                return True
            buffers.append(raw)
            return False

        dumps = pickle.dumps if _simple(value) else cloudpickle.dumps
        body = dumps(value, protocol=5, buffer_callback=in_band)
        sizes = [buffer.nbytes for buffer in buffers]
        head = _HEAD.pack(len(body), len(sizes)) + struct.pack(f"={len(sizes)}Q", *sizes)
        size = len(body) + sum(sizes)
        if most is not None and size > most:
            return False
        for part in (b"".join([head, body, *buffers]),) if size < _JOIN_BELOW else (head, body, *buffers):
            self._link.sendall(part)
        return True

    def receive(self) -> Any:
        """Wait for an object and return it; its arrays can be written.

        Raises:
            EOFError: if the other side is gone.
            OSError: if it stops in the middle.
        """
        length, count = _HEAD.unpack(self._take(_HEAD.size))
        sizes = struct.unpack(f"={count}Q", self._take(8 * count)) if count else ()
        body = self._take(length)
        return pickle.loads(body, buffers=[self._take(size) for size in sizes])

    def _take(self, size: int) -> bytearray:
        data = bytearray(size)
        view, start = memoryview(data), 0
        while start < size:
            count = self._link.recv_into(view[start:])
            if not count:
                raise EOFError("the other side has closed the channel")
            start += count
        return data

    def close(self) -> None:
        """Close the socket."""
        self._link.close()


def _simple(value: Any) -> bool:
    """Tell whether plain pickle, which is several times faster, does as well."""
    kind = type(value)
    if kind is np.ndarray:
        return value.dtype.kind in "biufcSU"
    if kind is dict:
        return all(map(_simple, value)) and all(map(_simple, value.values()))
    return kind in _SIMPLE or (kind in (list, tuple) and all(map(_simple, value)))
