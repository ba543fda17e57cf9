"""FanOut: one thread that brings the newest frame of a source to all who look."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from lume_diff.view.frame import Frame
from lume_diff.view.source import Source

LOG = logging.getLogger("lume_diff.view")
_AGES = 1.0  # [s] between frames when nothing changes, so that ages go on
_PATIENCE = 1.0  # [s] that pages are waited for at most


class Watching(Protocol):
    """What a fan-out brings frames to."""

    def prepare(self, frame: Frame) -> None:
        """Work out what will be shown; called in the fan-out's thread."""

    def show(self, frame: Frame) -> None:
        """Have a frame shown, instead of one that has not been shown yet; returns at once."""

    def wait_sent(self, timeout: float) -> None:
        """Wait until there is no frame left that the page could be sent, for a time at most [s]."""


class FanOut:
    """Follow a source for any number of viewers.

    The work for a frame is done once, and a frame that a viewer had no time for is replaced by the next: nothing is
    queued. The next frame is not worked out before the last was sent to all who were ready for it: where many look,
    that would take the time that sending needs. The thread lives while somebody looks.

    Args:
        source: that has been started.
        rate: frames a second at most.
    """

    def __init__(self, source: Source, rate: float = 10.0) -> None:
        self.source = source
        self._period = 1.0 / rate
        self._lock = threading.Lock()
        self._viewers: list[Watching] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.frames = 0  #: that were brought

    @property
    def viewers(self) -> int:
        """How many look."""
        with self._lock:
            return len(self._viewers)

    def add(self, viewer: Watching) -> None:
        """Bring frames there too."""
        with self._lock:
            self._viewers.append(viewer)
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._loop, name="view fan-out", daemon=True)
                self._thread.start()

    def remove(self, viewer: Watching) -> None:
        """Bring no more frames there; may be called again."""
        with self._lock:
            if viewer in self._viewers:
                self._viewers.remove(viewer)

    def close(self) -> None:
        """Bring no more frames; may be called again."""
        self._stopping.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _loop(self) -> None:
        version, shown, due = -1, 0.0, 0.0
        while not self._stopping.is_set():
            version = self.source.wait(version, max(0.0, shown + _AGES - time.monotonic()))
            with self._lock:
                viewers = list(self._viewers)
                if not viewers:
                    self._thread = None
                    return
            due = max(due + self._period, time.monotonic())
            self._bring(self.source.latest(), viewers)
            shown = time.monotonic()
            for viewer in viewers:
                viewer.wait_sent(max(0.0, shown + _PATIENCE - time.monotonic()))
            self._stopping.wait(max(0.0, due - time.monotonic()))

    def _bring(self, frame: Frame, viewers: list[Watching]) -> None:
        self.frames += 1
        for viewer in viewers:
            try:
                viewer.prepare(frame)
                viewer.show(frame)
            except Exception:
                LOG.exception("a viewer could not be shown a frame")
