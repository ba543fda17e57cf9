"""Background: work that takes longer than a frame, done beside everything else."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

LOG = logging.getLogger("lume_diff.view")
_MOST_KEPT = 32


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a piece of work gave; equal to itself only.

    Attributes:
        cycle: that it was worked out for.
        value: None if it failed.
        error: what went wrong, in words.
    """

    cycle: int
    value: Any = None
    error: str = ""


class Background:
    """Do slow work in one thread, the newest request of each kind only, and keep the last result of each.

    Args:
        tell: called when there is a new result, in that thread.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._waiting: dict[Hashable, tuple[int, Callable[[], Any], float]] = {}
        self._results: dict[Hashable, Result] = {}
        self._rests: dict[Hashable, float] = {}
        self._busy: tuple[Hashable, int] | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def ask(self, key: Hashable, cycle: int, work: Callable[[], Any], rest: float = 0.0) -> Result | None:
        """Return the last result of a kind, and have it worked out anew if it is of an earlier cycle.

        Args:
            key: of the kind of work; everyone who asks for the same shares the result.
            cycle: that the work is for.
            work: returns the value; what it raises is told in ``error``.
            rest: how long work of this kind pauses when it is done, in times that it took, so that it leaves the
                processor to others while something changes all the time.

        Returns:
            The result, which may be of an earlier cycle, or None if there is none yet.
        """
        with self._changed:
            found = self._results.get(key)
            if not self._closed and (found is None or found.cycle != cycle) and self._busy != (key, cycle):
                self._waiting[key] = (cycle, work, rest)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._loop, name="view background", daemon=True)
                    self._thread.start()
                self._changed.notify()
            return found

    def close(self, patience: float = 5.0) -> None:
        """Begin nothing more, and wait for what is under way for some time [s]."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(patience)

    def _loop(self) -> None:
        while True:
            with self._changed:
                key = self._next()
                if key is None:
                    return
                cycle, work, rest = self._waiting.pop(key)
                self._busy = (key, cycle)
            began = time.monotonic()
            result = self._done(cycle, work)
            ended = time.monotonic()
            with self._changed:
                self._busy = None
                self._results.pop(key, None)
                self._results[key] = result
                self._rests = {one: until for one, until in self._rests.items() if until > ended}
                if rest:
                    self._rests[key] = ended + rest * (ended - began)
                while len(self._results) > _MOST_KEPT:
                    self._results.pop(next(iter(self._results)))
            self._tell()

    def _next(self) -> Hashable | None:
        """Wait for work that does not pause, and return its key; None at the end."""
        while not self._closed:
            now = time.monotonic()
            pauses = {key: self._rests.get(key, now) - now for key in self._waiting}
            key = min(pauses, key=pauses.__getitem__, default=None)
            if key is not None and pauses[key] <= 0.0:
                return key
            self._changed.wait(None if key is None else pauses[key])
        return None

    def _done(self, cycle: int, work: Callable[[], Any]) -> Result:
        try:
            return Result(cycle, work())
        except Exception as error:
            LOG.info("work for the view failed", exc_info=True)
            return Result(cycle, error=str(error) or type(error).__name__)
