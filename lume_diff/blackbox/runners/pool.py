"""WorkerPool: long-lived simulator processes that cannot hurt each other.

Why not pebble's ``ProcessPool``, nor ``multiprocessing``: all of pebble's workers read one shared pipe, so none of them
can be spoken to alone, as changes through ``simulator``, their replay and ``reset`` need; a simulator made in its
initializer has no time limit and no error of its own; and both start processes through ``multiprocessing``, which runs
the user's script again in each one, so that a script without ``if __name__ == "__main__"`` fails. Here a worker is a
fresh interpreter that receives the factory by cloudpickle and has a socket, a log and a process group of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import cloudpickle

from lume_diff.blackbox.runners.batch import Batch, Limits
from lume_diff.blackbox.runners.crew import Crew, Seat
from lume_diff.blackbox.runners.host import Answer, Change, Reference
from lume_diff.blackbox.runners.proxy import SimulatorProxy, identity_with
from lume_diff.blackbox.runners.runner import Factory, Inputs, Jacobian, Result, Runner
from lume_diff.errors import SimulatorError, ValidationError
from lume_diff.processes.worker_main import Reply
from lume_diff.processes.worker_process import WorkerLost, WorkerProcess, how_it_ended

#: What a read through a proxy may raise as it is, so that ``hasattr`` and iteration work.
_READ_ERRORS = {error.__name__: error for error in (AttributeError, IndexError, KeyError, LookupError, TypeError)}


class WorkerPool(Runner):
    """Run a simulator in ``workers`` processes of its own.

    Workers start when there is work for them, all at once, and live until ``close()``. A run whose worker is killed,
    exits, hangs or raises, or that returns NaN, is tried once more on a fresh simulator; if that fails as well its
    result is a ``SimulatorError`` with the exit code, the last lines that the worker printed and the inputs. What the
    simulator prints is not shown otherwise. When a run comes near its ``timeout``, one spare worker starts, so that the
    second try need not wait. All workers, and the processes that they start, end with this one, however it ends.

    Args:
        factory: makes a simulator; lambdas and local classes will do. It is sent to the workers as it is now.
        workers: how many processes there are at most.
        timeout: how long one try of a run may take [s]; None for ever. Making the simulator does not count.
        grace: how long the second try of a run that hung may take [s], starting its worker included, so that the error
            comes after ``timeout + grace``. Give codes whose runs take longer than a second more of it.
        start_timeout: how long making a simulator may take [s], None for ever.

    Raises:
        ValidationError: for a number out of range, or a factory that cannot be pickled.

    Example:
        >>> from lume_diff.blackbox.simulator import FunctionSimulator
        >>> with WorkerPool(lambda: FunctionSimulator(lambda a: {"y": a**2}, ["y"]), workers=2) as pool:
        ...     pool.run_many([{"a": 2.0}, {"a": 3.0}], ["y"])
        [{'y': 4.0}, {'y': 9.0}]
    """

    def __init__(
        self,
        factory: Factory,
        workers: int = 1,
        timeout: float | None = None,
        *,
        grace: float = 1.5,
        start_timeout: float | None = 120.0,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise ValidationError(f"workers is {workers!r}; expected a whole number of processes, 1 or more")
        for name, value in (("timeout", timeout), ("grace", grace), ("start_timeout", start_timeout)):
            if value is None and name != "grace":
                continue
            if value is None or not value > 0:
                raise ValidationError(f"{name} is {value!r}; expected a time in seconds greater than 0")
        self._set_up(packed(factory), workers, Limits(timeout, grace, start_timeout), [])

    def _set_up(self, payload: bytes, workers: int, limits: Limits, changes: list[Change]) -> None:
        self._limits = limits
        self._lock = threading.RLock()
        self._serials = itertools.count(1 + max((change.serial for change in changes), default=0))
        self._crew = Crew(payload, workers, changes)
        self._finalizer = weakref.finalize(self, self._crew.end, os.getpid())

    # -- running ---------------------------------------------------------------------------------------------

    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Run all points, each on the next worker that is free.

        Raises:
            SimulatorError: if the pool is closed meanwhile or no process can be started.
            KeyboardInterrupt: on Ctrl-C; what was running is killed, the pool can be used on.
        """
        with self._lock:
            batch = Batch(self._crew, points, outputs, self._limits)
            try:
                return batch.run()
            finally:
                self.runs_made += batch.runs

    def jacobians(
        self, points: Sequence[Inputs], outputs: Sequence[str], wrt: Sequence[str]
    ) -> list[Jacobian | SimulatorError]:
        """Ask at all points, each on the next worker that is free, with the same time limit as for a run."""
        with self._lock:
            return Batch(self._crew, points, outputs, self._limits, wrt).run()

    def start(self) -> None:
        """Start all workers now and wait until they have made their simulators; otherwise they start when wanted."""
        with self._lock:
            for seat in self._crew.seats:
                if seat.worker is None or not seat.worker.alive():
                    self._crew.vacate(seat)
                    self._crew.fill(seat)
            for seat in self._crew.seats:
                self._made_ready(seat)

    # -- one or all workers ----------------------------------------------------------------------------------

    def identity(self) -> str:
        """Return the simulator's identity, with what was changed through the proxy."""
        with self._lock:
            return identity_with(self._ask(*self._any(), "identity"), self.changes)

    def reset(self) -> None:
        """Bring every simulator back to its start; what was changed through the proxy is undone."""
        with self._lock:
            self._crew.changes.clear()
            self._crew.drop_spare()
            self._tell_all("reset")

    def close(self) -> None:
        """End all workers, also those that run in another thread; the next run starts new ones."""
        if not self._lock.acquire(blocking=False):
            self._crew.interrupt()
            self._lock.acquire()
        try:
            self._crew.close()
        finally:
            self._lock.release()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pids(self) -> list[int]:
        """Return the process numbers of the workers that live now."""
        return [seat.worker.pid for seat in self._crew.seats if seat.worker is not None and seat.worker.alive()]

    def logs(self) -> list[str]:
        """Return what each worker printed last."""
        return [seat.worker.tail() for seat in self._crew.seats if seat.worker is not None]

    # -- the proxy -------------------------------------------------------------------------------------------

    @property
    def simulator(self) -> SimulatorProxy:
        """What stands for the simulators of all workers."""
        return SimulatorProxy(self)

    @property
    def changes(self) -> list[Change]:
        """What was changed through the proxy."""
        return self._crew.changes

    def read(self, kind: str, reference: Reference, *args: Any) -> Any:
        """Ask one worker; see ``Host.read``."""
        with self._lock:
            return self._ask(*self._any(), "read", kind, reference, *args)

    def change(self, on: Reference, do: str, *args: Any, **kwargs: Any) -> Answer:
        """Change all simulators, those to come too, and remember it; a change that fails is made nowhere.

        Args:
            on: the object inside the simulator that is changed.
            do: what is done to it, such as ``"setattr"``; further arguments are those of it.
        """
        with self._lock:
            seat, worker = self._any()
            change = Change(next(self._serials), on, do, args, kwargs)
            try:
                answer = self._ask(seat, worker, "change", change)
            except BaseException:
                self._crew.vacate(seat)  # it may be half made
                raise
            self._crew.changes.append(change)
            self._crew.drop_spare()
            self._tell_all("change", change, but=seat)
            return answer

    # -- talking to single workers ---------------------------------------------------------------------------

    def _any(self) -> tuple[Seat, WorkerProcess]:
        """Return a worker that is ready and its seat, and start one if there is none."""
        for seat in self._crew.seats:
            if seat.worker is not None and seat.usable():
                return seat, seat.worker
        seat = next((seat for seat in self._crew.seats if seat.worker is not None), self._crew.seats[0])
        with contextlib.suppress(SimulatorError):
            return seat, self._made_ready(seat)
        return seat, self._made_ready(seat)

    def _made_ready(self, seat: Seat) -> WorkerProcess:
        """Wait until the worker in a seat has made its simulator, and start one if there is none.

        Raises:
            SimulatorError: if it fails; the seat is empty then.
        """
        worker = seat.worker
        if worker is None or not worker.alive():
            self._crew.vacate(seat)
            worker = self._crew.fill(seat)
        if worker.ready:
            return worker
        limit = self._limits.start
        left = None if limit is None else max(limit - (time.monotonic() - worker.started), 0.0)
        try:
            reply = self._receive(seat, worker, left)
        except SimulatorError as error:
            reply = Reply(False, str(error), "", 0)  # with its log
        if reply.well:
            self._crew.welcome(worker)
            return worker
        self._crew.vacate(seat)
        raise SimulatorError(f"a worker could not make the simulator: {reply.value}{_shown(reply.log)}")

    def _ask(self, seat: Seat, worker: WorkerProcess, verb: str, *args: Any) -> Any:
        """Ask one worker something and return what it says; one that does not answer in time is killed."""
        try:
            self._send(worker, verb, *args)
            reply = self._receive(seat, worker, self._limits.start)
        except BaseException:
            self._crew.vacate(seat)
            raise
        if reply.well:
            return reply.value
        if verb == "read" and reply.kind in _READ_ERRORS:
            raise _READ_ERRORS[reply.kind](reply.value.removeprefix(f"{reply.kind}: "))
        raise SimulatorError(f"{_WISHES[verb]} failed in a worker: {reply.value}{_shown(reply.log)}")

    def _tell_all(self, verb: str, *args: Any, but: Seat | None = None) -> None:
        """Tell all workers that live, at once; one that fails is replaced by a fresh one, which comes out the same."""
        told: dict[Seat, WorkerProcess] = {}
        try:
            for seat in self._crew.seats:
                worker = seat.worker
                if seat is but or worker is None:
                    continue
                with contextlib.suppress(SimulatorError):
                    if self._made_ready(seat) is worker:  # and not one that started meanwhile
                        told[seat] = worker
                        self._send(worker, verb, *args)
            while told:
                seat, worker = next(iter(told.items()))
                with contextlib.suppress(SimulatorError):
                    if not self._receive(seat, worker, self._limits.start).well:
                        self._crew.vacate(seat)
                del told[seat]
        finally:
            for seat in told:
                self._crew.vacate(seat)

    def _send(self, worker: WorkerProcess, verb: str, *args: Any) -> None:
        worker.trim()
        with contextlib.suppress(WorkerLost):  # which the reply will tell
            worker.send((verb, *args))

    def _receive(self, seat: Seat, worker: WorkerProcess, limit: float | None) -> Reply:
        try:
            return worker.receive(limit)
        except WorkerLost as error:
            code, log = self._crew.vacate(seat)
            raise SimulatorError(f"the worker {str(error) or how_it_ended(code)}{_shown(log)}") from None
        except BaseException:
            self._crew.vacate(seat)
            raise

    # -- copies ----------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        crew = self._crew
        changes = cloudpickle.dumps(crew.changes)
        return {
            "payload": crew.payload,
            "workers": len(crew.seats),
            "limits": self._limits,
            "changes": changes,
            "runs_made": self.runs_made,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set_up(state["payload"], state["workers"], state["limits"], pickle.loads(state["changes"]))
        self.runs_made = state["runs_made"]


_WISHES = {"read": "a read", "change": "a change", "identity": "identity()", "reset": "reset()"}


def packed(factory: Factory) -> bytes:
    """Return a factory as bytes that another process can make simulators from."""
    try:
        return cloudpickle.dumps(factory)
    except Exception as error:
        raise ValidationError(
            f"the factory {factory!r} cannot be sent to another process ({type(error).__name__}: {error}); make what "
            "cannot be copied, such as open files, locks and native objects, inside it"
        ) from error


def _shown(log: str) -> str:
    return "; last lines of its log:\n" + "\n".join(f"  | {line}" for line in log.splitlines()) if log else ""
