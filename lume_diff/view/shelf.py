"""Shelf: snapshots that all viewers of a source share."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

MOST = 100  #: snapshots that are kept; the oldest goes first


class Shelf:
    """Keep snapshots in memory, by a label that has the time in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[str, dict[str, Any]] = {}

    @property
    def labels(self) -> list[str]:
        """Of all snapshots, the newest first."""
        with self._lock:
            return list(reversed(self._kept))

    def add(self, words: str, setpoints: Mapping[str, Any], now: float) -> str:
        """Keep set-points; returns their label.

        Args:
            words: to know them by.
            setpoints: plain values by name.
            now: [s since 1970].
        """
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        first = f"{stamp} {' '.join(words.split())[:80]}".rstrip()
        with self._lock:
            label, number = first, 2
            while label in self._kept:
                label, number = f"{first} ({number})", number + 1
            self._kept[label] = dict(setpoints)
            while len(self._kept) > MOST:
                self._kept.pop(next(iter(self._kept)))
        return label

    def get(self, label: str | None) -> dict[str, Any] | None:
        """Return the set-points of a label, None if there is none."""
        with self._lock:
            found = self._kept.get(label or "")
            return None if found is None else dict(found)
