"""Crew: the worker processes of one pool, who is there, who is missing, and how all of them end."""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass

from lume_diff.blackbox.runners.host import Change, packed_host
from lume_diff.errors import SimulatorError
from lume_diff.processes.worker_process import WorkerProcess

_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(eq=False)
class Seat:
    """A place for one worker, empty until it is wanted."""

    worker: WorkerProcess | None = None

    def usable(self) -> bool:
        """Tell whether a worker sits here, alive, with its simulator made."""
        return self.worker is not None and self.worker.ready and self.worker.alive()


class Crew:
    """Hold the workers of one pool.

    Args:
        payload: pickled factory of the simulator.
        count: how many workers there are at most, a spare one not counted.
        changes: made to every simulator.
    """

    def __init__(self, payload: bytes, count: int, changes: list[Change]) -> None:
        self.payload = payload
        self.seats = [Seat() for _ in range(count)]
        self.changes = changes
        self._folder = os.getcwd()  # where the factory's relative paths begin, for workers that start later too
        self.closures = 0  # times that all workers were ended; a run that is under way sees it and stops
        self.ended = False  # no worker starts any more
        self.start_time = 2.0  # [s] that the last start took, a guess at first
        self._spare: WorkerProcess | None = None

    # -- coming and going ------------------------------------------------------------------------------------

    def _start(self) -> WorkerProcess:
        if self.ended:
            raise SimulatorError("no worker can be started any more: the interpreter is ending or the pool is gone")
        try:
            host = functools.partial(packed_host, self.payload, self.changes)
            return WorkerProcess(host, _environment(len(self.seats)), self._folder)
        except OSError as error:
            raise SimulatorError(f"no worker process could be started: {error}") from error

    def fill(self, seat: Seat) -> WorkerProcess:
        """Put a worker in a seat, the spare one if there is one; it makes its simulator while we go on."""
        seat.worker, self._spare = self._spare, None
        if seat.worker is None:
            seat.worker = self._start()
        return seat.worker

    def welcome(self, worker: WorkerProcess) -> None:
        """Note that a worker has made its simulator."""
        worker.ready = True
        self.start_time = time.monotonic() - worker.started

    def vacate(self, seat: Seat) -> tuple[int | None, str]:
        """Kill the worker in a seat, if there is one; returns its exit code and the tail of its log."""
        worker, seat.worker = seat.worker, None
        return (None, "") if worker is None else worker.bury()

    def keep_spare(self) -> None:
        """Start a worker that waits for a seat, unless one waits already."""
        if self._spare is None:
            self._spare = self._start()

    def drop_spare(self) -> None:
        """Let the spare worker go."""
        worker, self._spare = self._spare, None
        if worker is not None:
            worker.bury()

    # -- the end ---------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Make a run that is under way in another thread stop."""
        self.closures += 1
        for seat in self.seats:
            worker = seat.worker
            if worker is not None:
                worker.kill_group()

    def close(self, patience: float = 2.0) -> None:
        """End all workers; those that wait for work may close their simulators first.

        Args:
            patience: how long that may take [s].
        """
        self.closures += 1
        self.drop_spare()
        polite = [seat for seat in self.seats if seat.usable()]
        for seat in polite:
            if seat.worker is not None:
                seat.worker.ask_to_close()
        end = time.monotonic() + patience
        for seat in polite:
            if seat.worker is not None:
                seat.worker.wait_closed(max(end - time.monotonic(), 0.0))
        for seat in self.seats:
            self.vacate(seat)

    def end(self, owner: int) -> None:
        """End all workers for good, unless this is a forked child of the process that owns them."""
        self.ended = True
        if os.getpid() == owner:
            self.close(1.0)


def _environment(count: int) -> dict[str, str]:
    """Return the environment of a worker: numerical libraries share the cores, Fortran prints line by line."""
    environment = dict(os.environ)
    environment.setdefault("GFORTRAN_UNBUFFERED_PRECONNECTED", "y")
    if count > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        for name in _THREAD_COUNTS:
            environment.setdefault(name, str(max(1, cores // count)))
    return environment
