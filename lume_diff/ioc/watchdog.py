"""Watchdog: subscriptions to remote variables, and a look at each every few seconds to see whether they still live."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from lume_diff.control.client import ControlClient, Subscription
from lume_diff.control.readings import Reading
from lume_diff.ioc.plain import same

LOG = logging.getLogger("lume_diff.ioc.twin")
_GRACE = 0.5  # [s] that an event may be later than a read


class Watchdog:
    """Follow remote variables, and make those subscriptions anew that have gone dead.

    A read that shows what no event has told of means a dead subscription; one without an answer, a variable that is
    away, whatever its connection says.

    Args:
        client: for the remote variables.
        names: of them.
        take: told of what they show, in the order in which it was learnt; it must return at once.
        look: called after each round.
        every: time between rounds [s].
        timeout: for a round of reads [s].
    """

    def __init__(
        self,
        client: ControlClient,
        names: Sequence[str],
        take: Callable[[Mapping[str, Reading]], None],
        look: Callable[[], None],
        every: float,
        timeout: float,
    ) -> None:
        self._client, self._names, self._take, self._look = client, list(names), take, look
        self._every, self._timeout = every, timeout
        self._count = dict.fromkeys(self._names, 0)  # events
        self._events: dict[str, Reading] = {}  # the last of each
        self._told: dict[str, Reading] = {}  # the last that was handed on, be it an event or a read
        self._lock = threading.Lock()
        self._held: dict[str, Subscription] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._rounds, name="watchdog", daemon=True)
        self.renewed = 0  #: subscriptions that were made anew

    def start(self) -> None:
        """Subscribe to all."""
        for name in self._names:
            self._held[name] = self._client.monitor([name], self._event)
        self._thread.start()

    def stop(self) -> None:
        """Let go of all; may be called again."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        for subscription in self._held.values():
            subscription.close()
        self._held = {}

    def _event(self, name: str, reading: Reading) -> None:
        with self._lock:
            self._count[name] += 1
            self._events[name] = self._told[name] = reading
            self._take({name: reading})

    def _rounds(self) -> None:
        while not self._end.wait(self._every):
            try:
                self._round()
            except Exception:
                LOG.exception("a look at the remote variables failed")
            self._look()

    def _round(self) -> None:
        before = dict(self._count)
        read = self._client.get(self._names, timeout=self._timeout)
        doubtful = [name for name in self._names if _differ(read[name], self._told.get(name))]
        if not doubtful or self._end.wait(_GRACE):
            return
        with self._lock:
            silent = {name: read[name] for name in doubtful if self._count[name] == before[name]}
            self._told |= silent
            self._take(silent)  # under the lock, or an event that comes now would be overwritten by this older read
            dead = [name for name, reading in silent.items() if _differ(reading, self._events.get(name))]
        for name in dead:
            if read[name].value is not None:
                LOG.warning("%s has changed and its subscription has not told: it is made anew", name)
                self._held[name].close()
                self._held[name] = self._client.monitor([name], self._event)
                self.renewed += 1


def _differ(read: Reading, told: Reading | None) -> bool:
    """Tell whether a read shows what was not told; two that have no value are the same."""
    if told is None:
        return True
    if read.value is None or told.value is None:
        return (read.value is None) != (told.value is None)
    return read.time != told.time or read.severity != told.severity or not same(read.value, told.value)
