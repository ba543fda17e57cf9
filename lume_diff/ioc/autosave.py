"""Autosave: set-points kept in a file, so that a server which was killed comes back with them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

from lume_diff.control.readings import Update
from lume_diff.errors import ValidationError
from lume_diff.ioc.publisher import Publisher

LOG = logging.getLogger("lume_diff.ioc")
_FORMAT = "lume_diff set-points 1"


@final
class Autosave(Publisher):
    """Keep the set-points in a JSON file.

    A change is on the disk within ``interval`` seconds, and the file is written no more often. It is replaced as a
    whole after its content has reached the disk, so that a kill or a power cut leaves the last good one.

    Args:
        path: of the file; its folder is made.
        setpoints: returns plain values by name.
        interval: shortest time between two writes of the file [s].
    """

    def __init__(self, path: Path, setpoints: Callable[[], Mapping[str, Any]], interval: float = 1.0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._setpoints, self._interval = setpoints, interval
        self._changed, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="autosave", daemon=True)
        self._saved: Mapping[str, Any] | None = None
        self._is_restored = False

    def begin(self) -> None:
        """Save from now on; what the file holds has been restored."""
        self._is_restored = True
        self._changed.set()
        self._thread.start()

    def publish(self, update: Update) -> None:
        """Save soon."""
        if self._is_restored:
            self._changed.set()

    def stop(self) -> None:
        """Save a last time if need be, and no more; may be called again."""
        self._end.set()
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        while not self._end.is_set():
            self._changed.wait()
            self._changed.clear()
            self._save()
            self._end.wait(self._interval)
        self._save()

    def _save(self) -> None:
        values = self._setpoints()
        if values == self._saved:
            return
        try:
            save_setpoints(self._path, values)
        except OSError as error:
            LOG.error("set-points are not saved: %s", error)
            self._changed.set()
        else:
            self._saved = values


def save_setpoints(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a file of set-points, durably.

    Args:
        path: of the file.
        values: plain values by name.

    Raises:
        OSError: if it cannot be written; the file is then as it was.
    """
    now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
    text = json.dumps({"format": _FORMAT, "time": now, "values": values}, indent=1) + "\n"
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def saved_setpoints(path: Path) -> dict[str, Any]:
    """Return the set-points of a file; none where there is no file yet.

    Raises:
        ValidationError: if it is not what ``save_setpoints`` writes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValidationError(f"{path} holds no saved set-points ({error}): move it away") from None
    if not isinstance(found, dict) or found.get("format") != _FORMAT or not isinstance(found.get("values"), dict):
        raise ValidationError(f"{path} holds no saved set-points ({_FORMAT!r} is not in it): move it away")
    return dict(found["values"])
