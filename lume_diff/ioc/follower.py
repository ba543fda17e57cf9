"""Follower: brings what remote variables show to a model, in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lume_diff.control.readings import Reading, Update
from lume_diff.errors import LumeDiffError
from lume_diff.ioc.followed import Fault, Followed
from lume_diff.ioc.publisher import Publisher
from lume_diff.ioc.runtime import Runtime

#: Who writes, where clients are named; theirs have an @.
TWIN = "live twin"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What has become of values that were sent, and what is shown for them."""

    sent: Mapping[str, Any]
    shown: Mapping[str, Any]
    error: Exception | None
    cycle: int


class Follower(Publisher):
    """Write what arrives to a runtime, merged, one group at a time, and mark inputs that must not be trusted.

    While the model runs, what arrives is put together, and faults are shown at once. A fault goes away when the model
    has the new value, not before.

    Args:
        runtime: of the model; its followed inputs can be written from here only.
        inputs: that are followed.
        untrusted: service variable that counts those in alarm.
    """

    def __init__(self, runtime: Runtime, inputs: Sequence[Followed], untrusted: str) -> None:
        self._runtime, self._inputs, self._untrusted = runtime, {one.name: one for one in inputs}, untrusted
        self._by_remote: dict[str, list[Followed]] = {}
        for one in inputs:
            self._by_remote.setdefault(one.remote, []).append(one)
        self._arrived: dict[str, Reading] = {}
        self._shown: dict[str, Any] = {}
        self._sent: dict[str, Any] | None = None  # what the model is being given
        self._answer: _Answer | None = None
        self._singly: list[str] = []  # inputs that failed together and are to be tried alone
        self._tried: frozenset[str] = frozenset()  # inputs that failed together last
        self._alone = False  # whether what was sent is one of these
        self._failed_cycle = 0
        self._faults: dict[str, Fault | None] = {}
        self._busy = self._stopping = self._check = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._loop, name="live twin", daemon=True)
        runtime.reserve({one.name: f"it follows {one.remote}" for one in inputs}, TWIN)
        runtime.add(self)
        self._mark()

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; may be called again."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def take(self, readings: Mapping[str, Reading]) -> None:
        """Take new readings, by the name of the remote variable; returns at once."""
        with self._changed:
            self._arrived.update(readings)
            self._changed.notify_all()

    def check(self) -> None:
        """Look again at ages, and at what the model could not take if it has been evaluated since."""
        with self._changed:
            self._check = True
            self._changed.notify_all()

    def publish(self, update: Update) -> None:
        """See whether somebody else has written a followed input; if so it is put right."""
        shown = {name: reading.value for name, reading in update.readings.items() if name in self._inputs}
        if shown:
            with self._changed:
                if self._sent is None:
                    self._shown.update(shown)
                    self._changed.notify_all()

    def wait(self, settled: bool, timeout: float | None) -> bool:
        """Wait until nothing is left to do, and, if that is asked, every input is trusted and up to date."""
        with self._changed:
            return self._changed.wait_for(lambda: self._idle() and not (settled and self.untrusted()), timeout)

    def untrusted(self) -> dict[str, str]:
        """Return what is the matter, by the name of the input."""
        return {name: fault[1] for name, fault in self._faults.items() if fault is not None}

    @property
    def inputs(self) -> Mapping[str, Followed]:
        """What is followed, by the name of the input."""
        return self._inputs

    # -- in the thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._stopping or self._check or self._something())
                if self._stopping:
                    return
                self._busy = self._something()
                arrived, self._arrived = self._arrived, {}
                shown, self._shown = self._shown, {}
                answer, self._answer = self._answer, None
                self._check = False
            if answer is not None:
                self._note(answer)
            for name, value in shown.items():
                self._inputs[name].check_shown(value)
            for remote, reading in arrived.items():
                for one in self._by_remote[remote]:
                    one.take(reading)
            self._mark()
            if self._sent is None:
                self._send()

    def _something(self) -> bool:
        return bool(self._arrived or self._shown or self._answer)

    def _idle(self) -> bool:
        return not (self._busy or self._something() or self._sent is not None)

    def _send(self) -> None:
        values = self._next()
        if not values:
            return
        with self._changed:
            self._sent = values
        try:
            self._runtime.write(values, TWIN, self._done)
        except LumeDiffError as error:
            self._done(error, self._runtime.cycle)

    def _next(self) -> dict[str, Any]:
        """Return what the model is to be given next.

        New values go as a group, and if that fails alone. What has failed is tried again, as a group too, when there
        has been another evaluation since.
        """
        waiting = {name: one.wanted for name, one in self._inputs.items() if one.pending}
        while self._singly:
            name = self._singly.pop()
            if name in waiting and self._inputs[name].refused:
                self._alone = True
                return {name: waiting[name]}
        self._alone = False
        new = {name: value for name, value in waiting.items() if not self._inputs[name].refused}
        if not new and waiting.keys() == self._tried and self._runtime.cycle == self._failed_cycle:
            return {}
        return new or waiting

    def _done(self, error: Exception | None, cycle: int) -> None:
        """Take the runtime's answer, in its thread: nobody can have written in between."""
        with self._changed:
            sent, self._sent = self._sent or {}, None
            shown = {name: self._runtime.reading(name).value for name in sent}
            self._answer = _Answer(sent, shown, error, cycle)
            self._changed.notify_all()

    def _note(self, answer: _Answer) -> None:
        sent, error = answer.sent, answer.error
        for name, value in sent.items():
            if error is None:
                self._inputs[name].was_applied(value, answer.shown[name])
            else:
                self._inputs[name].was_refused(value, str(error))
        if error is not None:
            self._failed_cycle = answer.cycle
            if not self._alone:
                self._tried, self._singly = frozenset(sent), list(sent) if len(sent) > 1 else []

    def _mark(self) -> None:
        """Show what is the matter with each input; what has been is over when the model has the last good value."""
        found: dict[str, Fault | None] = {}
        for name, one in self._inputs.items():
            fault = one.fault()
            before = self._faults.get(name)
            if fault is None and one.pending:
                fault = before
            if fault != before or name not in self._faults:
                found[name] = fault
        if found:
            self._faults |= found
            self._runtime.change_faults(found)
            self._runtime.show({self._untrusted: len(self.untrusted())})
