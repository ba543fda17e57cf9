"""The client of the second control system, announced as an entry point of ``lume_diff.clients``."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

from lume_diff.control import Condition, ControlClient, Reading, Severity, Subscription
from lume_diff.control.client import Listener
from lume_diff.errors import ControlError


@final
class LineClient(ControlClient):
    """Talk lines of JSON; a connection that is lost is made again twice a second."""

    def __init__(self) -> None:
        self._listeners: list[tuple[frozenset[str], Listener]] = []
        self._answers: dict[int, tuple[threading.Event, list[dict[str, Any]]]] = {}
        self._number = 0
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._socket: socket.socket | None = None
        self._connected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line client", daemon=True)
        self._thread.start()

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        answer = self._ask({"get": list(names)}, timeout)
        found = {name: _reading(one) for name, one in (answer or {}).get("readings", {}).items()}
        return {name: found.get(name, _away(name)) for name in names}

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        answer = self._ask({"put": dict(values)}, timeout)
        if answer is None or answer["error"]:
            raise ControlError(f"{', '.join(values)}: {'no answer' if answer is None else answer['error']}")

    def monitor(self, names: Sequence[str], listener: Listener) -> Subscription:
        entry = (frozenset(names), listener)
        with self._lock:
            self._listeners.append(entry)
        self._follow(names)
        return _Followed(self._listeners, entry)

    def close(self) -> None:
        self._closed.set()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        finished, answers = threading.Event(), list[dict[str, Any]]()
        end = time.monotonic() + timeout
        if not self._connected.wait(timeout):
            return None
        with self._lock:
            self._number += 1
            self._answers[self._number] = finished, answers
            self._send({**request, "id": self._number})
        finished.wait(max(end - time.monotonic(), 0.0))
        return answers[0] if answers else None

    def _follow(self, names: Sequence[str]) -> None:
        with self._lock:
            self._send({"id": 0, "follow": list(names)})

    def _send(self, request: dict[str, Any]) -> None:
        if self._socket is not None:
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError:
                return  # the reading side sees it too, and connects again

    def _run(self) -> None:
        while not self._closed.wait(0.1):
            try:
                made = socket.create_connection(("127.0.0.1", int(os.environ["LINE_SERVER_PORT"])), timeout=1.0)
            except OSError:
                self._tell_all_away()
                self._closed.wait(0.5)
                continue
            made.settimeout(None)
            with made, made.makefile("rb") as lines:
                self._socket = made
                self._connected.set()
                with self._lock:
                    followed = [name for names, _ in self._listeners for name in names]
                if followed:
                    self._follow(followed)
                with contextlib.suppress(OSError):
                    for line in lines:
                        self._heard(json.loads(line))
                self._connected.clear()
                self._socket = None
            self._tell_all_away()

    def _heard(self, answer: dict[str, Any]) -> None:
        if "name" in answer:
            self._tell(answer["name"], _reading(answer["reading"]))
        elif answer["id"] == 0:
            for name, one in answer["readings"].items():
                self._tell(name, _reading(one))
        else:
            finished, answers = self._answers.pop(answer["id"])
            answers.append(answer)
            finished.set()

    def _tell(self, name: str, reading: Reading) -> None:
        with self._lock:
            listeners = [listener for names, listener in self._listeners if name in names]
        for listener in listeners:
            listener(name, reading)

    def _tell_all_away(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for names, listener in listeners:
            for name in names:
                listener(name, _away(name))


@final
class _Followed(Subscription):
    def __init__(self, listeners: list[Any], entry: Any) -> None:
        self._listeners, self._entry = listeners, entry

    def close(self) -> None:
        if self._entry in self._listeners:
            self._listeners.remove(self._entry)


def _reading(one: dict[str, Any]) -> Reading:
    severity, condition = Severity(one["severity"]), Condition(one["condition"])
    return Reading(one["value"], one["time"], 0, severity, condition, one["message"])


def _away(name: str) -> Reading:
    return Reading(None, time.time(), 0, Severity.INVALID, Condition.DISCONNECTED, f"{name}: not connected")
