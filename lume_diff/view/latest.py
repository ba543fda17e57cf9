"""Latest: the newest readings of a source, put together from what its threads report."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from lume_diff.control.readings import Reading, Severity
from lume_diff.view.frame import Frame


class Latest:
    """Keep the newest reading of every variable, and since when those that are INVALID are not good.

    Nothing is queued: who is slow sees fewer frames, and always the newest.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readings: dict[str, Reading] = {}
        self._measured: dict[str, Reading] = {}
        self._good_until: dict[str, float] = {}
        self._measured_until: Mapping[str, float] = {}
        self._cycle, self._time, self._version = 0, 0.0, 0
        self._frame: Frame | None = None

    def take(self, readings: Mapping[str, Reading]) -> None:
        """Keep new readings; safe from any thread."""
        with self._changed:
            for name, new in readings.items():
                self._note_age(name, new)
                self._readings[name] = new
                self._cycle, self._time = new.cycle, max(self._time, new.time)
            self._tell()

    def take_measured(self, readings: Mapping[str, Reading], good_until: Mapping[str, float]) -> None:
        """Keep what instruments read, by the name of the output that it belongs to.

        Args:
            readings: all or some.
            good_until: when each that is INVALID was last good [s since 1970].
        """
        with self._changed:
            self._measured.update(readings)
            self._measured_until = good_until
            self._tell()

    def touch(self) -> None:
        """Show the same readings again, because something else is known now; what was worked out from them stays."""
        with self._changed:
            if self._frame is not None:
                self._frame = replace(self._frame)
            self._version += 1
            self._changed.notify_all()

    def _note_age(self, name: str, new: Reading) -> None:
        if new.severity is not Severity.INVALID:
            self._good_until.pop(name, None)
            return
        old = self._readings.get(name)
        if old is not None and old.severity is not Severity.INVALID:
            self._good_until[name] = max(old.time, new.time)

    def _tell(self) -> None:
        self._frame = None
        self._version += 1
        self._changed.notify_all()

    def frame(self) -> Frame:
        """Return the newest frame, the same one until something changes."""
        with self._changed:
            if self._frame is None:
                readings, good_until = dict(self._readings), dict(self._good_until)
                measured = dict(self._measured)
                self._frame = Frame(self._cycle, self._time, readings, good_until, measured, self._measured_until)
            return self._frame

    def wait(self, version: int, timeout: float) -> int:
        """Wait until there is something newer than a version; returns the version that there is then.

        Args:
            version: that the caller knows.
            timeout: how long to wait [s].
        """
        with self._changed:
            self._changed.wait_for(lambda: self._version != version, timeout)
            return self._version
