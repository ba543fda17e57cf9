"""The look at subscriptions every few seconds: what is learnt last is what stays."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from lume_diff.control import ControlClient, Reading, Subscription
from lume_diff.ioc.watchdog import Watchdog


class Silence(Subscription):
    def close(self) -> None:
        """Nothing to end."""


class Machine(ControlClient):
    """A machine whose first subscription is dead, and whose value changes just before the second."""

    def __init__(self) -> None:
        self.subscriptions = 0

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        return dict.fromkeys(names, Reading(1.0, 100.0, 0))

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        """Nothing can be written."""

    def monitor(self, names: Sequence[str], listener: Any) -> Subscription:
        self.subscriptions += 1
        if self.subscriptions == 2:
            listener(names[0], Reading(2.0, 101.0, 0))
        return Silence()

    def close(self) -> None:
        """Nothing to let go of."""


def test_what_a_new_subscription_tells_is_not_overwritten_by_the_older_read_that_asked_for_it():
    taken: list[float] = []
    looked = threading.Event()

    def take(readings: Mapping[str, Reading]) -> None:
        taken.extend(reading.value for reading in readings.values())

    def look() -> None:
        if taken:
            looked.set()

    watchdog = Watchdog(Machine(), ["PS:I"], take, look, every=0.01, timeout=1.0)
    watchdog.start()
    assert looked.wait(20.0)
    watchdog.stop()
    assert (taken[0], taken[-1], watchdog.renewed) == (1.0, 2.0, 1)
