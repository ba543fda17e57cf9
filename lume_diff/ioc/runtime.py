"""Runtime: the one thread that evaluates a served model, between control systems and engine."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lume_diff.control.readings import Condition, Reading, Severity, Update
from lume_diff.errors import LumeDiffError, ReadOnlyError, SimulatorError, ValidationError, unknown_variable
from lume_diff.ioc.access import Access
from lume_diff.ioc.arrival import checked
from lume_diff.ioc.engine import Engine, Evaluated
from lume_diff.ioc.judging import judged
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.plain import as_lists
from lume_diff.ioc.publisher import Publisher
from lume_diff.ioc.requests import Done, Request, batches, ignore, merged, with_successors, written
from lume_diff.ioc.service import Service
from lume_diff.ioc.write_log import WriteLog
from lume_diff.variables import Variable

LOG = logging.getLogger("lume_diff.ioc")

#: One piece of work for when nobody waits; returns whether it is finished.
Idle = Callable[[Engine], bool]


class Runtime:
    """Take what clients write, evaluate the model, publish, and answer, in cycles.

    A cycle takes all that has arrived, evaluates it as one, publishes the inputs and the outputs that have changed to
    every publisher with one time stamp and one number, and then completes the writes. While the model runs, everything
    is shown as it was. There is no polling: without requests the thread sleeps.

    - A write that a later one has overtaken completes with it, unless ``ordered``, when each is evaluated in turn.
    - If a group fails in the model, its requests are tried one by one, and only those that fail get the error. What
      they wrote is published again at its last good value, and the outputs at theirs, as INVALID, until an evaluation
      succeeds.
    - An output that is not finite is published as INVALID, and the write has succeeded.

    Args:
        engine: where the model runs.
        names: the variables that are served.
        limits: of the variables.
        ordered: whether every write is evaluated in turn.
        setpoints: plain values of the inputs as the model begins; shown until the first cycle.
        service: variables about the server, shown and written beside the model's.
        access: which clients may write.
        writes: is told of every write.
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        limits: LimitStore,
        ordered: bool = False,
        setpoints: Mapping[str, Any] | None = None,
        service: Service | None = None,
        access: Access | None = None,
        writes: WriteLog | None = None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._ordered = ordered
        self.model_variables: dict[str, Variable] = {name: engine.variables[name] for name in names}
        self.variables = dict(self.model_variables)
        self._inputs = [name for name, variable in self.variables.items() if not variable.read_only]
        self._outputs = [name for name, variable in self.variables.items() if variable.read_only]
        self._output_set = frozenset(self._outputs)
        self._faults: dict[str, tuple[Condition, str]] = {}
        self._reserved: dict[str, str] = {}
        self._owner = ""
        self._service = service
        self._access, self.writes = access or Access(), writes or WriteLog()
        self._publishers: list[Publisher] = []
        self._waiting: list[Request] = []
        self._idle: deque[Idle] = deque()
        self._arrived = threading.Condition()
        self._publishing = threading.RLock()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.cycle = 0
        self.evaluated: Evaluated | None = None
        self.last_error = ""
        self.first_cycle = threading.Event()
        self._readings = self._first(setpoints or {})
        if service is not None:
            self.variables |= service.variables
            self._readings |= {name: self._judged(name, v, time.time(), 0) for name, v in service.first().items()}

    def _first(self, setpoints: Mapping[str, Any]) -> dict[str, Reading]:
        """Return what is shown before the first evaluation: the outputs as undefined."""
        now, text = time.time(), "not evaluated yet"
        return {
            name: self._judged(name, setpoints[name], now, 0)
            if setpoints.get(name) is not None
            else Reading(None, now, 0, Severity.INVALID, Condition.UNDEFINED, text)
            for name in self.variables
        }

    # -- life ------------------------------------------------------------------------------------------------

    def add(self, publisher: Publisher) -> None:
        """Show readings there too, from the next cycle on."""
        self._publishers.append(publisher)

    def start(self) -> None:
        """Start the thread, and with it the model; returns at once."""
        self._engine.on_write_elsewhere(self.refresh)
        self.refresh()
        self._thread = threading.Thread(target=self._loop, name="model runtime", daemon=True)
        self._thread.start()
        if self._service is not None:
            self._service.start(self)

    @property
    def is_running(self) -> bool:
        """Whether requests are taken."""
        return self._thread is not None and self._thread.is_alive() and not self._stopping

    @property
    def is_valid(self) -> bool:
        """Whether the last evaluation has worked."""
        return self.evaluated is not None and not self.last_error

    def stop(self, patience: float = 5.0) -> None:
        """Finish the cycle that is under way, refuse what waits, and end the engine; may be called again.

        Args:
            patience: how long the cycle may take before the engine is interrupted [s].
        """
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(patience)
            if self._thread.is_alive():
                self._engine.interrupt()
                self._thread.join()
        if self._service is not None:
            self._service.stop()

    # -- clients ---------------------------------------------------------------------------------------------

    def reading(self, name: str) -> Reading:
        """Return what is shown of a variable."""
        return self._readings[name]

    def readings(self) -> dict[str, Reading]:
        """Return all that is shown, of one cycle."""
        with self._arrived:
            return dict(self._readings)

    def write(self, values: Mapping[str, Any], client: str, done: Done) -> None:
        """Ask for inputs to be written as one; returns at once.

        Args:
            values: by name, as the client sent them.
            client: who asks.
            done: told, in the runtime's thread, when the cycle is published, or what went wrong.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for what is refused at once; ``done`` is
                not told then.
        """
        service = self._service
        asked = [] if service is None else [name for name in values if name in service.variables]
        try:
            self._access.check(client, values)
            self._check_reserved(values, client)
            if asked and service is not None:
                if len(values) > 1:
                    raise ValidationError(
                        f"{asked[0]!r} is written alone, not with {', '.join({*values} - {asked[0]})}"
                    )
                service.write(asked[0], values[asked[0]], client, done)
                return
            plain = self.accepted(values)
        except LumeDiffError as error:
            self.writes.refused(client, values, self._shown(values), error)
            self.refused(values, error)
            raise
        self._ask(Request("write", plain, client, done))

    def accepted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values as the model takes them.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for what cannot be written.
        """
        found = {}
        for name, value in values.items():
            if name not in self.variables:
                raise unknown_variable(name, self.variables, "the served model")
            found[name] = checked(self.variables[name], value, self._limits[name])
        return found

    def refused(self, names: Iterable[str], error: Exception) -> None:
        """Let clients know that a write was refused, and what holds; returns at once."""
        if self._service is not None:
            self._service.refused(list(names), str(error))

    def refresh(self) -> None:
        """Publish what was written to the model elsewhere."""
        self._ask(Request("refresh"))

    def shot(self, counter: str | None = None, done: Done = ignore) -> None:
        """Count a shot, and publish every output again, whether or not it has changed.

        Args:
            counter: input that is raised by one.
            done: told when it is published.
        """
        counted = {} if counter is None else {counter: self._readings[counter].value + 1}
        self._ask(Request("shot", counted, done=done))

    def reset(self, client: str, done: Done) -> None:
        """Ask for the inputs to go back to their baseline."""
        self._access.check(client, {"RESET": True})
        self._check_reserved(self._inputs, client)
        self._ask(Request("reset", client=client, done=done))

    def restore(self, snapshot: Mapping[str, Any], client: str, done: Done) -> None:
        """Ask for a snapshot to be written back."""
        self._access.check(client, snapshot)
        self._check_reserved(self._inputs, client)
        self._ask(Request("restore", dict(snapshot), client, done))

    def when_idle(self, work: Idle) -> None:
        """Do a piece of work whenever nobody waits, until it says that it is finished."""
        with self._arrived:
            self._idle.append(work)
            self._arrived.notify()

    def check_names(self, names: Sequence[str]) -> None:
        """Refuse names that the model does not have.

        Raises:
            UnknownVariableError: for the first of them.
        """
        for name in names:
            if name not in self.model_variables:
                raise unknown_variable(name, self.model_variables, "the served model")

    def point(self) -> dict[str, Any]:
        """Return the inputs as they are shown, beams left out."""
        readings = self.readings()
        return {
            name: readings[name].value
            for name in self._inputs
            if readings[name].value is not None and not isinstance(readings[name].value, dict)
        }

    def setpoints(self) -> dict[str, Any]:
        """Return the inputs as they are shown, arrays as lists, beams left out."""
        return as_lists(self.point())

    def snapshot(self) -> tuple[int, dict[str, Any]]:
        """Return the inputs of one cycle, and its number."""
        with self._publishing:
            return max(reading.cycle for reading in self._readings.values()), self.setpoints()

    def show(self, values: Mapping[str, Any]) -> None:
        """Publish values that come from elsewhere than the model, with the time and no new cycle."""
        now = time.time()
        self._publish({name: self._judged(name, value, now, self.cycle) for name, value in values.items()}, now)

    def show_again(self, names: Iterable[str], values: Mapping[str, Any]) -> None:
        """Publish variables as they are, for clients that have tried to write something else, beside other values."""
        with self._publishing:
            now = time.time()
            again = {name: replace(self._readings[name], time=now) for name in names if name in self._readings}
            others = {name: self._judged(name, value, now, self.cycle) for name, value in values.items()}
            self._publish({**again, **others}, now)

    def fault(self, name: str, condition: Condition, message: str) -> None:
        """Mark an input as one that must not be trusted, and with it every output, until `clear_fault`.

        Args:
            name: of the input, which keeps its value.
            condition, message: what is the matter with it.
        """
        self.change_faults({name: (condition, message)})

    def clear_fault(self, name: str) -> None:
        """Trust an input again."""
        self.change_faults({name: None})

    def change_faults(self, changes: Mapping[str, tuple[Condition, str] | None]) -> None:
        """Mark inputs as ones that must not be trusted, or None to trust them again, and publish that at once.

        Args:
            changes: condition and message by the name of the input.
        """
        with self._publishing:
            changed = {name: fault for name, fault in changes.items() if self._faults.get(name) != fault}
            if not changed:
                return
            faults, now = {**self._faults, **changed}, time.time()
            self._faults = {name: fault for name, fault in faults.items() if fault is not None}
            shown = {name: self._readings[name].value for name in changed}
            shown |= {
                output: self._readings[output].value
                for output in self._outputs
                if self._readings[output].condition not in (Condition.FAILED, Condition.UNDEFINED)
            }
            self._publish({one: self._judged(one, value, now, self.cycle) for one, value in shown.items()}, now)

    def reserve(self, reasons: Mapping[str, str], client: str) -> None:
        """Let only one client write some inputs; nobody resets or restores them any more.

        Args:
            reasons: why, by the name of the input; the others are told.
            client: who may.
        """
        self._reserved, self._owner = dict(reasons), client

    def _check_reserved(self, names: Iterable[str], client: str) -> None:
        if self._reserved and client != self._owner:
            for name in names:
                if name in self._reserved:
                    raise ReadOnlyError(f"{name!r} cannot be written here: {self._reserved[name]}")

    def limits_changed(self, name: str) -> None:
        """Publish a variable again, judged by its limits as they are now."""
        for publisher in self._publishers:
            publisher.limits_changed(name)
        with self._arrived:
            before = self._readings[name]
        if before.value is not None and before.condition is not Condition.FAILED:
            now = time.time()
            self._publish({name: self._judged(name, before.value, now, self.cycle)}, now)

    def _shown(self, names: Iterable[str]) -> dict[str, Any]:
        return {name: self._readings[name].value for name in names if name in self._readings}

    def _ask(self, request: Request) -> None:
        with self._arrived:
            if self._stopping:
                raise SimulatorError("the server is stopping: nothing is written any more")
            self._waiting.append(request)
            self._arrived.notify()

    # -- cycles ----------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._arrived:
                self._arrived.wait_for(lambda: self._waiting or self._idle or self._stopping)
                if self._stopping:
                    break
                taken, self._waiting = self._waiting, []
            if taken:
                for requests in batches(taken, self._ordered):
                    self._serve(requests)
            else:
                self._work()
        self._engine.stop()
        for request in self._waiting:
            request.done(SimulatorError("the server has stopped before this was evaluated"), self.cycle)

    def _work(self) -> None:
        work = self._idle[0]
        try:
            finished = work(self._engine)
        except Exception:
            LOG.exception("work in idle time failed")
            finished = True
        if finished:
            self._idle.popleft()
        else:
            self._idle.rotate(-1)

    def _serve(self, requests: Sequence[Request]) -> None:
        try:
            evaluated = self._evaluate(requests)
        except Exception as error:
            if len(requests) == 1:
                self._fail(requests, error)
                return
            for part in with_successors(requests):
                try:
                    evaluated = self._evaluate(part[-1:])
                except Exception as own:
                    self._fail(part, own)
                else:
                    self._succeed(part, evaluated)
        else:
            self._succeed(requests, evaluated)

    def _evaluate(self, requests: Sequence[Request]) -> Evaluated:
        if requests[0].kind == "reset":
            return self._engine.reset()
        if requests[0].kind == "restore":
            return self._engine.restore(requests[0].values)
        return self._engine.evaluate(merged(requests))

    def _succeed(self, requests: Sequence[Request], evaluated: Evaluated) -> None:
        self.evaluated, self.last_error, now = evaluated, "", time.time()
        self.cycle += 1
        values = {name: value for name, value in evaluated.values.items() if name in self.variables}
        for name in written(requests):
            values.setdefault(name, self._readings[name].value)
        is_shot = any(request.kind == "shot" for request in requests)
        for name in self._outputs:  # those that were invalid hold again
            if is_shot or self._readings[name].condition is Condition.FAILED:
                values.setdefault(name, self._readings[name].value)
        old = {name: self._readings[name].value for name in values}
        if self._service is not None:
            values |= self._service.after(self.cycle, evaluated)
        self._publish({name: self._judged(name, value, now, self.cycle) for name, value in values.items()}, now)
        self.first_cycle.set()
        for request in requests:
            if request.kind == "write":
                for name, value in request.values.items():
                    self.writes.accepted(request.client, name, old[name], value, self.cycle)
            elif request.kind in ("reset", "restore"):
                self.writes.asked(request.client, request.kind, self.cycle)
            request.done(None, self.cycle)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        now, self.last_error = time.time(), str(error)
        self.cycle += 1
        if isinstance(error, LumeDiffError):
            LOG.warning("evaluation failed: %s", error)
        else:
            LOG.error("evaluation failed", exc_info=error)
        found = {}
        for name in written(requests):
            last = self._readings[name]
            found[name] = Reading(last.value, now, self.cycle, last.severity, last.condition, last.message)
        for name in self._outputs:
            last = self._readings[name].value
            found[name] = Reading(last, now, self.cycle, Severity.INVALID, Condition.FAILED, self.last_error)
        if self._service is not None:
            told = self._service.after(self.cycle, None, self.last_error)
            found |= {name: self._judged(name, value, now, self.cycle) for name, value in told.items()}
        self._publish(found, now)
        self.first_cycle.set()
        for request in requests:
            self.writes.failed(request.client, request.values, self._shown(request.values), error)
            request.done(error, self.cycle)

    # -- readings --------------------------------------------------------------------------------------------

    def _judged(self, name: str, value: Any, now: float, cycle: int) -> Reading:
        """Return a value with its alarm."""
        fault = self._faults.get(name)
        if fault is None and self._faults and name in self._output_set:
            fault = next(iter(self._faults.values()))
        return judged(name, value, now, cycle, self._limits[name], fault)

    def _publish(self, readings: Mapping[str, Reading], now: float) -> None:
        with self._publishing:
            with self._arrived:
                self._readings.update(readings)
            update = Update(self.cycle, now, readings)
            for publisher in self._publishers:
                try:
                    publisher.publish(update)
                except Exception:
                    LOG.exception("publishing to %s failed", type(publisher).__name__)
