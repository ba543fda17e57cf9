"""History: the recent past of the scalars that are drawn against time."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable

import numpy as np

from lume_diff.control.readings import Reading, Severity
from lume_diff.view.frame import Frame

POINTS = 1200  #: that are kept of each variable
SPACING = 0.5  #: [s] between them, at least


class History:
    """Keep points of chosen variables, at most so many, and not closer to each other than half a second.

    What is INVALID is NaN, so that a line is broken there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: dict[str, deque[tuple[float, float, float]]] = {}
        self._noted = 0.0

    def keep(self, names: Iterable[str]) -> None:
        """Keep points of these variables from now on."""
        with self._lock:
            for name in names:
                self._points.setdefault(name, deque(maxlen=POINTS))

    def note(self, frame: Frame, now: float) -> None:
        """Take points from a frame, if the last were taken some time ago.

        Args:
            frame: the newest.
            now: [s since 1970].
        """
        with self._lock:
            if 0.0 <= now - self._noted < SPACING:
                return
            self._noted = now
            for name, points in self._points.items():
                points.append((now, _good(frame.readings.get(name)), _good(frame.measured.get(name))))

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times [s since 1970] and values of a variable, and what was measured of it."""
        with self._lock:
            found = np.array(self._points.get(name, ()), dtype=np.float64).reshape(-1, 3)
        return found[:, 0], found[:, 1], found[:, 2]


def _good(reading: Reading | None) -> float:
    is_good = reading is not None and reading.severity is not Severity.INVALID
    return float(reading.value) if is_good and isinstance(reading.value, int | float) else math.nan
