"""Publisher: what a runtime shows its readings to."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lume_diff.control.readings import Update


class Publisher(ABC):
    """What shows readings to clients: a protocol's server, a file, a watchdog."""

    @abstractmethod
    def publish(self, update: Update) -> None:
        """Show new readings; called by the runtime's thread, once a cycle, before the writes are answered."""

    def limits_changed(self, name: str) -> None:
        """Show the limits of a variable as they are now."""
