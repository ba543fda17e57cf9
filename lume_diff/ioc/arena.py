"""Arena: memory that two processes share, for arrays too large to go through a socket."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

_SMALLEST = 1 << 14  # [bytes]; smaller arrays go with the message
_ALIGNED = 64  # [bytes]


class Arena:
    """Hold one place for each large array of fixed shape; what is there lasts until the next message.

    The memory has no name in the file system: it is gone when both processes are, however they end.

    Args:
        shapes: of the arrays by name; those too small for a place are left out.
        descriptor: of the memory as the other process made it, None to make it.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], descriptor: int | None = None) -> None:
        starts: dict[str, int] = {}
        size = 0
        for name, shape in shapes.items():
            if _size(shape) >= _SMALLEST:
                starts[name] = size
                size += -(-_size(shape) // _ALIGNED) * _ALIGNED
        self.descriptor = descriptor
        self._places: dict[str, np.ndarray] = {}
        if size:
            if self.descriptor is None:
                self.descriptor = os.memfd_create("lume_diff")
                os.ftruncate(self.descriptor, size)
            memory = mmap.mmap(self.descriptor, size)
            for name, start in starts.items():
                flat = np.frombuffer(memory, np.float64, int(np.prod(shapes[name])), start)
                self._places[name] = flat.reshape(shapes[name])

    def put(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Move large arrays into their places; returns the other values and the names of those moved."""
        moved = [name for name, value in values.items() if self._fits(name, value)]
        for name in moved:
            self._places[name][...] = values[name]
        return {name: value for name, value in values.items() if name not in moved}, moved

    def take(self, values: Mapping[str, Any], moved: list[str]) -> dict[str, Any]:
        """Return values as they were before `put`, with copies of the arrays that it moved."""
        return {**values, **{name: self._places[name].copy() for name in moved}}

    def _fits(self, name: str, value: Any) -> bool:
        if name not in self._places or not isinstance(value, np.ndarray):
            return False
        return value.dtype == np.float64 and value.shape == self._places[name].shape

    def close(self) -> None:
        """Give the descriptor up; the memory goes with its last user."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
        self._places = {}


def _size(shape: tuple[int, ...]) -> int:
    return 8 * int(np.prod(shape))
