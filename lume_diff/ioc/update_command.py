"""UpdateCommand: brings a twin up to date when a client asks for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from lume_diff.ioc.requests import Done

LOG = logging.getLogger("lume_diff.ioc.twin")


class UpdateCommand:
    """Read a machine and evaluate its twin for every write of True, in a thread of its own.

    Whoever asks while that is being done waits for the next round, and all who wait are served by one.

    Args:
        update: reads and evaluates.
        cycle: returns the number of the last cycle.
    """

    def __init__(self, update: Callable[[], object], cycle: Callable[[], int]) -> None:
        self._update, self._cycle = update, cycle
        self._waiting: list[Done] = []
        self._lock, self._is_busy = threading.Lock(), False

    def ask(self, value: Any, client: str, done: Done) -> None:
        """Begin; ``done`` is told when the twin shows what was read, or what went wrong."""
        if not value:
            done(None, self._cycle())
            return
        with self._lock:
            self._waiting.append(done)
            if self._is_busy:
                return
            self._is_busy = True
        threading.Thread(target=self._work, name="twin update", daemon=True).start()

    def _work(self) -> None:
        while asked := self._next():
            error = None
            try:
                self._update()
            except Exception as one:
                error = one
            for done in asked:
                try:
                    done(error, self._cycle())
                except Exception:  # the others and those who ask next still want to know
                    LOG.exception("a client that asked for an update cannot be answered")

    def _next(self) -> list[Done]:
        with self._lock:
            asked, self._waiting = self._waiting, []
            self._is_busy = bool(asked)
            return asked
