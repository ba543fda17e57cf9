"""Errand: orders taken to the workers of a foreign executor, and what carries them out there."""

from __future__ import annotations

import os
import pickle
import queue
import socket
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import CancelledError, Executor, Future
from typing import Any, NamedTuple

import cloudpickle

from lume_diff.blackbox.runners.host import Change, Host, unpacked
from lume_diff.errors import SimulatorError

_KEPT = 8  # simulators that one worker keeps for different runners
_CARRYING = 8  # factories that are under way at once

#: Host, process and thread.
WorkerName = tuple[str, int, int]


class Order(NamedTuple):
    """What a task is to do, and on which simulator.

    Attributes:
        token: of the runner.
        version: counts the times that all simulators have to be made anew.
        verb: method of ``Host``.
        changes: made through the proxy since.
        args: of the method.
    """

    token: str
    version: int
    verb: str
    changes: list[Change]
    args: tuple[Any, ...]


class Parcel(NamedTuple):
    """What a task brings back.

    Attributes:
        worker: who did it.
        known: whether it knew the runner, or had its factory with it; else there is no answer.
        answer: pickled by value.
    """

    worker: WorkerName
    known: bool
    answer: bytes


class Errand:
    """Take orders to an executor and bring the answers back.

    The factory may be large, so it goes along only where a worker has said that it does not know it.

    Args:
        executor: who does it.
        payload: the factory.
        informed: workers that have the factory; added to.
    """

    def __init__(self, executor: Executor, payload: bytes, informed: set[WorkerName]) -> None:
        self._executor = executor
        self._payload = payload
        self._informed = informed
        self._done: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._futures: dict[int, Future[Parcel]] = {}
        self._waiting: list[tuple[int, WorkerName]] = []  # for a worker that is being informed
        self._carrying: set[int] = set()
        self._refused: Counter[int] = Counter()
        self._packed: dict[int, bytes] = {}
        self._answers: dict[int, Any] = {}

    def run(self, orders: Sequence[Order]) -> list[Any]:
        """Return the answers, or exceptions in their place."""
        try:
            for index, order in enumerate(orders):
                try:
                    self._packed[index] = cloudpickle.dumps(order)
                except Exception as error:
                    self._answers[index] = error
                else:
                    self._submit(index, None)
            while len(self._answers) < len(orders):
                index = self._done.get()
                self._take(index, self._futures.pop(index))
        except BaseException:
            for future in self._futures.values():
                future.cancel()
            raise
        return [self._answers[index] for index in range(len(orders))]

    def _submit(self, index: int, payload: bytes | None) -> None:
        try:
            future = self._executor.submit(_carry_out, self._packed[index], payload)
        except Exception as error:
            self._answers[index] = error
            return
        self._futures[index] = future
        if payload is not None:
            self._carrying.add(index)
        future.add_done_callback(lambda _: self._done.put(index))

    def _take(self, index: int, future: Future[Parcel]) -> None:
        self._carrying.discard(index)
        try:
            parcel = future.result()
            if parcel.known:
                self._informed.add(parcel.worker)
                self._answers[index] = pickle.loads(parcel.answer)
            else:
                self._refused[index] += 1
                self._waiting.append((index, parcel.worker))
        except (Exception, CancelledError) as error:
            self._answers[index] = error
        self._send_on()

    def _send_on(self) -> None:
        """Send what a worker did not know again, with the factory unless it has come there meanwhile."""
        waiting, self._waiting = self._waiting, []
        for index, worker in waiting:
            if worker in self._informed and self._refused[index] == 1:
                self._submit(index, None)
            elif len(self._carrying) < _CARRYING:
                self._submit(index, self._payload)
            else:
                self._waiting.append((index, worker))


# -- in the executor's workers -----------------------------------------------------------------------------------


class _Kept(NamedTuple):
    version: int
    host: Host


_HOSTS: OrderedDict[tuple[int, str], _Kept] = OrderedDict()  # by thread and runner
_HOSTS_LOCK = threading.Lock()
_FORGOTTEN: deque[str] = deque()  # runners that are gone while somebody holds the lock


def _carry_out(packed_order: bytes, payload: bytes | None) -> Parcel:
    """Do what an order says on this worker's simulator."""
    worker = (socket.gethostname(), os.getpid(), threading.get_ident())
    answer: Any
    try:
        order: Order = pickle.loads(packed_order)
        host = _host(order, payload)
        if host is None:
            return Parcel(worker, False, b"")
        host.catch_up(order.changes)
        answer = getattr(host, order.verb)(*order.args)
    except (AttributeError, LookupError, TypeError) as error:
        answer = error
    except Exception as error:  # of a class that may not be known on the other side
        answer = SimulatorError(f"{type(error).__name__}: {error}")
    try:
        return Parcel(worker, True, cloudpickle.dumps(answer))
    except Exception as error:
        failure = SimulatorError(f"what the simulator returned cannot be sent: {type(error).__name__}: {error}")
        return Parcel(worker, True, pickle.dumps(failure))


def _host(order: Order, payload: bytes | None) -> Host | None:
    key = (threading.get_ident(), order.token)
    with _HOSTS_LOCK:
        leaving = _forgotten()
        kept = _HOSTS.pop(key, None)
        if kept is not None and kept.version != order.version:
            leaving.append(kept.host)
            kept = None
        if kept is not None:
            _HOSTS[key] = kept
        own = [other for other in _HOSTS if other[0] == key[0]]
        leaving += [_HOSTS.pop(other).host for other in own[: max(len(own) - _KEPT, 0)]]
    for host in leaving:
        host.close()
    if kept is not None:
        return kept.host
    if payload is None:
        return None
    host = Host(unpacked(payload))
    with _HOSTS_LOCK:
        _HOSTS[key] = _Kept(order.version, host)
    return host


def forget(token: str) -> None:
    """Close the simulators of a runner that live in this process.

    The garbage collector may call this at any moment, also from where the lock is held.
    """
    _FORGOTTEN.append(token)
    leaving: list[Host] = []
    if _HOSTS_LOCK.acquire(blocking=False):
        try:
            leaving = _forgotten()
        finally:
            _HOSTS_LOCK.release()
    for host in leaving:
        host.close()


def _forgotten() -> list[Host]:
    leaving = []
    while _FORGOTTEN:
        token = _FORGOTTEN.popleft()
        leaving += [_HOSTS.pop(key).host for key in list(_HOSTS) if key[1] == token]
    return leaving
