"""WriteBack: results of a twin that are written to remote variables."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from lume_diff.control.client import ControlClient
from lume_diff.control.readings import Severity, Update
from lume_diff.errors import LumeDiffError
from lume_diff.ioc.publisher import Publisher

LOG = logging.getLogger("lume_diff.ioc.twin")


class WriteBack(Publisher):
    """Write outputs to remote variables, the latest of each, in a thread of its own; never an INVALID one.

    Args:
        client: for the remote variables.
        targets: remote variable by the name of the output; nothing else is written.
        timeout: for one round of writes [s].
    """

    def __init__(self, client: ControlClient, targets: Mapping[str, str], timeout: float) -> None:
        self._client, self._targets, self._timeout = client, dict(targets), timeout
        self._waiting: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="write back", daemon=True)
        self.error = ""  #: of the last round; empty if it went well

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more; may be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def publish(self, update: Update) -> None:
        """Take what may be written."""
        with self._changed:
            for output, remote in self._targets.items():
                reading = update.readings.get(output)
                if reading is None:
                    continue
                if reading.severity is Severity.INVALID:
                    self._waiting.pop(remote, None)
                else:
                    self._waiting[remote] = reading.value
            self._changed.notify_all()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if self._stopping:
                    return
                values, self._waiting = self._waiting, {}
            try:
                self._client.put(values, timeout=self._timeout)
                self.error = ""
            except (LumeDiffError, OSError) as error:
                self.error = str(error)
                LOG.warning("results were not written back: %s", error)
