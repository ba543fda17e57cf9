"""Clients of the benchmark of servers: they write, read, and follow many variables at little cost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np


class Watch:
    """Follow outputs, and wait until each has a value."""

    def __init__(self, count: int) -> None:
        self._count, self._wanted = count, float("nan")
        self._seen: set[str] = set()
        self._all, self._lock = threading.Event(), threading.Lock()

    def expect(self, value: float) -> None:
        """Begin to wait for a value."""
        with self._lock:
            self._wanted, self._seen = value, set()
            self._all.clear()

    def told(self, name: str, value: float) -> None:
        """Note a value."""
        with self._lock:
            if value == self._wanted:
                self._seen.add(name)
                if len(self._seen) == self._count:
                    self._all.set()

    def wait(self) -> None:
        """Wait until every output has the value."""
        if not self._all.wait(10.0):
            raise SystemExit(f"{len(self._seen)} of {self._count} outputs have followed {self._wanted}")


class PVA:
    """Write and follow by p4p, without the queues of its threaded client, which may lose a subscription."""

    def __init__(self, settings: dict[str, str], prefix: str) -> None:
        from p4p.client.raw import Context as Raw
        from p4p.client.thread import Context

        self.context = Context("pva", conf=settings, useenv=False, nt=False)
        self.raw = Raw("pva", conf=settings, useenv=False, nt=False)
        self._prefix = prefix
        self._held: list[object] = []

    def put(self, name: str, value: float) -> None:
        """Write, and wait."""
        self.context.put(self._prefix + name, value, timeout=20.0)

    def send(self, name: str, value: float, answered: Callable[[object], None]) -> None:
        """Write, and be told."""
        full = self._prefix + name
        self._held.append(self.raw.put(full, answered, builder=value, get=False))

    def get(self, name: str) -> float:
        """Read."""
        return float(self.context.get(self._prefix + name).value)

    def follow(self, names: list[str], watch: Watch) -> None:
        """Follow numbers, or images by their first pixel."""
        for name in names:
            self._follow(name, watch)

    def _follow(self, name: str, watch: Watch) -> None:
        made = threading.Event()

        def event() -> None:
            made.wait()
            while (value := subscription.pop()) is not None:
                if not isinstance(value, Exception):
                    found = value.value
                    watch.told(name, float(found[0] if name == "image" else found))

        subscription = self.raw.monitor(self._prefix + name, event)
        made.set()
        self._held.append(subscription)

    def close(self) -> None:
        """Let go."""
        self._held = []
        self.context.close()
        self.raw.close()


class CA:
    """Write and follow by pyepics, without its PV objects, which take more time for an update than the server does."""

    def __init__(self, settings: dict[str, str], prefix: str) -> None:
        import epics

        self._epics, self._prefix = epics, prefix
        self._pvs: dict[str, Any] = {}
        self._held: list[Any] = []

    def pv(self, name: str, **options: object) -> Any:
        if name not in self._pvs:
            self._pvs[name] = self._epics.PV(self._prefix + name, **options)
            self._pvs[name].wait_for_connection(10.0)
        return self._pvs[name]

    def put(self, name: str, value: float) -> None:
        """Write, and wait."""
        self.pv(name, auto_monitor=False).put(value, wait=True, timeout=20.0)

    def send(self, name: str, value: float, answered: Callable[[object], None]) -> None:
        """Write, and be told."""
        self.pv(name, auto_monitor=False).put(value, callback=lambda **_: answered(None))

    def get(self, name: str) -> float:
        """Read from the server."""
        return float(self.pv(name, auto_monitor=False).get(use_monitor=False))

    def follow(self, names: list[str], watch: Watch) -> None:
        """Follow numbers, or images by their first pixel."""

        def told(pvname: str, value: object, **_: object) -> None:
            watch.told(pvname, float(np.ravel(value)[0]))

        ca = self._epics.ca
        for channel in [ca.create_channel(self._prefix + name) for name in names]:
            ca.connect_channel(channel, timeout=10.0)
            self._held.append(ca.create_subscription(channel, use_time=True, callback=told))

    def close(self) -> None:
        """Let go of every PV."""
        for *_, number in self._held:
            self._epics.ca.clear_subscription(number)
        for pv in self._pvs.values():
            pv.disconnect()
