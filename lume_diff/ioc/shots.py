"""ShotClock: a served machine that pulses."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from lume_diff.errors import SimulatorError, ValidationError

if TYPE_CHECKING:
    from lume_diff.ioc.runtime import Runtime

LOG = logging.getLogger("lume_diff.ioc")


class ShotClock:
    """Count shots at a steady rate: noise is drawn anew, and every output is published again.

    A shot that comes while the last is still evaluated is left out.

    Args:
        runtime: of the model.
        rate_hz: shots a second [Hz].
        counter: input that counts the shots and so chooses the noise; None where the model has none.

    Raises:
        ValidationError: for a rate that is not positive, or beyond 10 kHz.
    """

    def __init__(self, runtime: Runtime, rate_hz: float, counter: str | None = None) -> None:
        if not 0.0 < rate_hz < 1e4:
            raise ValidationError(f"rate_hz={rate_hz}; expected a positive number of shots a second, below 10000")
        self._runtime, self._period, self._counter = runtime, 1.0 / rate_hz, counter
        self._end, self._free = threading.Event(), threading.Event()
        self._free.set()
        self._thread = threading.Thread(target=self._loop, name="shot clock", daemon=True)

    def start(self) -> None:
        """Begin to pulse, after the first cycle."""
        self._thread.start()

    def stop(self) -> None:
        """Pulse no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._end.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._period, time.monotonic())
            if self._free.is_set() and self._runtime.first_cycle.is_set():
                self._free.clear()
                try:
                    self._runtime.shot(self._counter, self._done)
                except SimulatorError:  # it is stopping
                    return

    def _done(self, error: Exception | None, cycle: int) -> None:
        self._free.set()
