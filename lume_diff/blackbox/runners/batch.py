"""Batch: points handed out to workers as these become free, with a second try for each that fails."""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lume_diff.blackbox.runners.crew import Crew, Seat
from lume_diff.blackbox.runners.runner import Inputs, Result, run_error
from lume_diff.errors import SimulatorError
from lume_diff.processes.worker_process import WorkerLost, WorkerProcess, how_it_ended

_TICK = 0.25  # [s] between looks at the processes themselves
_TRIES = 2
# Short runs are sent before those before them have ended, which saves the way there and back.
_AHEAD = 0.05  # [s] of work that may wait in a worker
_AHEAD_RUNS = 8
_AHEAD_SIZE = 1 << 13  # [bytes] of a point, so that the socket's buffer takes them all


@dataclass(frozen=True)
class Limits:
    """How long things may take [s].

    Attributes:
        run: one try of a run, None for ever.
        grace: what the second try of a run that hung may take, the start of its worker included.
        start: making a simulator, None for ever.
    """

    run: float | None = None
    grace: float = 1.5
    start: float | None = 120.0


@dataclass(eq=False)
class _Job:
    """A point that is being run.

    Attributes:
        index: of the point.
        tries: begun so far.
        reasons: why they failed.
        log, code: what the last one printed and how its process ended.
        fresh: whether the worker has to make a fresh simulator first.
        begun: when this try began, on the monotonic clock.
        deadline: of this try.
        final: of everything, after a hang.
        doubtful: when a spare worker should begin to get ready.
    """

    index: int
    tries: int = 0
    reasons: list[str] = field(default_factory=list)
    log: str = ""
    code: int | None = None
    fresh: bool = False
    begun: float = 0.0
    deadline: float = math.inf
    final: float = math.inf
    doubtful: float = math.inf


class Batch:
    """Run points on a crew.

    A point stays in its seat until it has a result or has failed twice, so that one point that kills workers has never
    more than one of them in its hands.

    Args:
        crew: the workers; they are started here as far as there is work for them.
        points: what to run.
        outputs: what to return.
        limits: of time.
        wrt: inputs with respect to which derivatives of the simulator's own are wanted instead of values.
    """

    def __init__(
        self,
        crew: Crew,
        points: Sequence[Inputs],
        outputs: Sequence[str],
        limits: Limits,
        wrt: Sequence[str] | None = None,
    ) -> None:
        self.runs = 0
        self._crew = crew
        self._closures = crew.closures
        self._points = points
        self._outputs = list(outputs)
        self._wrt = None if wrt is None else list(wrt)
        self._limits = limits
        self._results: dict[int, Result | SimulatorError] = {}
        self._todo = deque(_Job(index) for index in range(len(points)))
        self._seats = crew.seats[: len(points)]
        self._busy: dict[Seat, _Job] = {}  # being run there now
        self._ahead: dict[Seat, deque[_Job]] = {seat: deque() for seat in self._seats}  # sent there already
        self._quick: set[Seat] = set()  # where the last run was a short one
        self._small = True  # points, as far as seen
        self._again: dict[Seat, deque[_Job]] = {seat: deque() for seat in self._seats}  # waiting for a second try
        self._bad_starts: dict[Seat, int] = {}
        self._run_time = math.inf  # [s] that the last run took
        self._looked = time.monotonic()

    def run(self) -> list[Result | SimulatorError]:
        """Run everything; an exception kills what is under way and leaves the other workers as they are."""
        try:
            while len(self._results) < len(self._points):
                if self._crew.closures != self._closures:
                    raise SimulatorError("the workers were closed during a run")
                self._hand_out()
                if len(self._results) == len(self._points):
                    break
                for seat in self._answered():
                    self._take(seat)
                self._look_at_clocks()
        except BaseException:
            for seat in self._seats:
                if seat in self._busy or (seat.worker is not None and seat.worker.broken):
                    self._crew.vacate(seat)
            raise
        return [self._results[index] for index in range(len(self._points))]

    # -- handing out -----------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        waiting = len(self._todo)
        for seat in self._seats:
            if seat in self._busy:
                self._send_ahead(seat)
                continue
            if self._bad_starts.get(seat, 0) >= _TRIES:
                continue
            pinned = self._again[seat]
            if seat.worker is not None and not seat.worker.alive() and (seat.worker.ready or seat.worker.fileno() < 0):
                self._crew.vacate(seat)  # died while it had nothing to do, or belongs to the process that forked us
            if seat.worker is None and (pinned or waiting > 0):
                self._crew.fill(seat)
            if seat.worker is None:
                continue
            if not pinned:
                waiting -= 1
            if seat.worker.ready and (pinned or self._todo):
                self._give(seat, seat.worker, pinned.popleft() if pinned else self._todo.popleft())

    def _give(self, seat: Seat, worker: WorkerProcess, job: _Job) -> None:
        worker.trim()
        self._begin(seat, job)
        try:
            worker.send(self._message(job))
        except WorkerLost:
            self._lost(seat)
        except Exception as error:
            del self._busy[seat]
            self.runs -= 1
            what = f"the inputs cannot be sent to a worker ({type(error).__name__}: {error})"
            self._results[job.index] = run_error(what, self._points[job.index])

    def _send_ahead(self, seat: Seat) -> None:
        """Send more points to a worker that is busy, if runs are quick and the others will not want for work."""
        ahead, worker = self._ahead[seat], seat.worker
        if not self._small or worker is None or seat not in self._quick or self._again[seat]:
            return
        most = min(_AHEAD_RUNS, int(_AHEAD / self._run_time))
        while len(ahead) < min(most, len(self._todo) // (2 * len(self._seats))):
            try:
                self._small = worker.send(self._message(self._todo[0]), _AHEAD_SIZE)
            except Exception:  # the reply that is waited for tells what happened, or the point's own turn does
                return
            if not self._small:
                return
            ahead.append(self._todo.popleft())

    def _message(self, job: _Job) -> tuple[Any, ...]:
        asked = dict(self._points[job.index]), self._outputs, job.fresh
        return ("run", *asked) if self._wrt is None else ("jacobian", *asked, self._wrt)

    def _begin(self, seat: Seat, job: _Job) -> None:
        """Start the clock of a try."""
        self._busy[seat] = job
        self.runs += 1
        job.tries += 1
        job.begun = time.monotonic()
        if self._limits.run is not None:
            job.deadline = min(job.begun + self._limits.run, job.final)
            if job.tries < _TRIES:
                lead = min(0.5 * self._limits.run, 1.5 * self._crew.start_time)
                job.doubtful = job.deadline - lead

    # -- taking results --------------------------------------------------------------------------------------

    def _answered(self) -> list[Seat]:
        """Wait for the next thing to happen; returns the seats whose workers have something to say, or are gone."""
        now = time.monotonic()
        moments = [min(job.deadline, job.doubtful) for job in self._busy.values()]
        moments += [job.final for waiting in self._again.values() for job in waiting]
        seconds = min([_TICK, *(max(moment - now, 0.0) for moment in moments)])
        poll = select.poll()
        speakers = {seat.worker.fileno(): seat for seat in self._seats if seat.worker and self._expected(seat)}
        for descriptor in speakers:
            poll.register(descriptor, select.POLLIN)
        return [speakers[descriptor] for descriptor, _ in poll.poll(math.ceil(1e3 * seconds))]

    def _expected(self, seat: Seat) -> bool:
        return seat in self._busy or (seat.worker is not None and not seat.worker.ready)

    def _take(self, seat: Seat) -> None:
        worker = seat.worker
        if worker is None:
            return
        try:
            reply = worker.receive()
        except WorkerLost:
            return self._lost(seat)
        except Exception as error:
            return self._lost(seat, f"sent what cannot be read here ({type(error).__name__}: {error})")
        if seat in self._busy:
            job = self._busy.pop(seat)
            self._run_time = max(time.monotonic() - job.begun, 1e-6)
            (self._quick.add if self._run_time < _AHEAD else self._quick.discard)(seat)
            if self._ahead[seat]:
                self._begin(seat, self._ahead[seat].popleft())
            if reply.well:
                self._results[job.index] = reply.value
            else:
                job.fresh = True
                self._failed(seat, job, reply.value, reply.log)
        elif reply.well:
            self._crew.welcome(worker)
            self._bad_starts.pop(seat, None)
        else:
            self._crew.vacate(seat)
            self._start_failed(seat, reply.value, reply.log)

    # -- what goes wrong -------------------------------------------------------------------------------------

    def _lost(self, seat: Seat, why: str | None = None) -> None:
        """Bury a worker and see to the run that it had."""
        code, log = self._crew.vacate(seat)
        what = f"the worker {why or how_it_ended(code)}"
        if seat not in self._busy:
            return self._start_failed(seat, what, log, code)
        while self._ahead[seat]:
            self._todo.appendleft(self._ahead[seat].pop())
        job = self._busy.pop(seat)
        job.fresh = False  # the next worker is new altogether
        self._failed(seat, job, what, log, code)

    def _failed(self, seat: Seat, job: _Job, what: str, log: str, code: int | None = None) -> None:
        job.reasons.append(what)
        job.log, job.code = log, code
        if job.tries < _TRIES:
            self._again[seat].append(job)
        else:
            self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        first, last = job.reasons[0], job.reasons[-1]
        note = "tried twice, the second time on a fresh simulator" if job.tries == _TRIES else "tried once"
        if first != last:
            note += f"; at the first try {first}"
        what = f"{last} ({note})"
        self._results[job.index] = run_error(what, self._points[job.index], log=job.log, exit_code=job.code)

    def _start_failed(self, seat: Seat, what: str, log: str, code: int | None = None) -> None:
        self._bad_starts[seat] = self._bad_starts.get(seat, 0) + 1
        if self._bad_starts[seat] < _TRIES:
            return
        what = f"a worker could not make the simulator: {what}"
        stranded, self._again[seat] = self._again[seat], deque()
        if all(self._bad_starts.get(other, 0) >= _TRIES for other in self._seats):
            stranded += self._todo
            self._todo.clear()
        else:
            for job in stranded:
                job.fresh = True
            self._todo.extendleft(stranded)
            return
        for job in stranded:
            note = f" (for a second try; at the first: {job.reasons[0]})" if job.reasons else ""
            self._results[job.index] = run_error(what + note, self._points[job.index], log=log, exit_code=code)

    # -- time ------------------------------------------------------------------------------------------------

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        for seat, job in list(self._busy.items()):
            if now >= job.deadline:
                self._hung(seat, job, now)
            elif now >= job.doubtful:
                job.doubtful = math.inf
                self._crew.keep_spare()
        for waiting in self._again.values():
            for job in [job for job in waiting if now >= job.final]:  # the new worker goes on starting, for others
                waiting.remove(job)
                job.reasons.append(f"a fresh simulator was not ready within the {self._limits.grace:g} s left for it")
                self._give_up(job)
        if now - self._looked >= _TICK:
            self._looked = now
            self._look_at_processes(now)

    def _hung(self, seat: Seat, job: _Job, now: float) -> None:
        limit = self._limits.run
        if math.isfinite(job.final):
            limit = self._limits.grace
        elif job.tries < _TRIES:
            job.final = now + self._limits.grace
        self._lost(seat, f"did not finish within {limit:g} s and was killed")

    def _look_at_processes(self, now: float) -> None:
        """Find workers that died without closing their channel, that start for too long or that print too much."""
        for seat in self._seats:
            worker = seat.worker
            if worker is None or not self._expected(seat):
                continue
            if not worker.alive() and not worker.has_news():
                self._lost(seat)
            elif not worker.ready and self._limits.start is not None and now - worker.started > self._limits.start:
                self._lost(seat, f"did not finish its start within {self._limits.start:g} s and was killed")
            else:
                worker.trim()
