"""Runtime: the one thread that evaluates a served model, between control systems and engine."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lume_diff.control.readings import Condition, Reading, Severity, Update
from lume_diff.errors import LumeDiffError, ReadOnlyError, SimulatorError, ValidationError, unknown_variable
from lume_diff.ioc.arrival import checked
from lume_diff.ioc.engine import Engine, Evaluated
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.plain import finite
from lume_diff.ioc.publisher import Publisher
from lume_diff.ioc.requests import Done, Request, batches, merged, with_successors
from lume_diff.ioc.service import Service
from lume_diff.variables import Variable

LOG = logging.getLogger("lume_diff.ioc")
WRITES = logging.getLogger("lume_diff.ioc.writes")

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
    """

    def __init__(
        self,
        engine: Engine,
        names: Sequence[str],
        limits: LimitStore,
        ordered: bool = False,
        setpoints: Mapping[str, Any] | None = None,
        service: Service | None = None,
    ) -> None:
        self._engine = engine
        self._limits = limits
        self._ordered = ordered
        self.variables: dict[str, Variable] = {name: engine.variables[name] for name in names}
        self._inputs = [name for name, variable in self.variables.items() if not variable.read_only]
        self._outputs = [name for name, variable in self.variables.items() if variable.read_only]
        self._output_set = frozenset(self._outputs)
        self._faults: dict[str, tuple[Condition, str]] = {}
        self._reserved: dict[str, str] = {}
        self._owner = ""
        self._service = service
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
        asked = [name for name in values if self._service is not None and name in self._service.variables]
        if asked and self._service is not None:
            if len(values) > 1:
                raise ValidationError(f"{asked[0]!r} is written alone, not with {', '.join(set(values) - {asked[0]})}")
            self._service.write(asked[0], values[asked[0]], client, done)
            return
        try:
            self._check_reserved(values, client)
            plain = {name: checked(self._variable(name), value, self._limits[name]) for name, value in values.items()}
        except LumeDiffError as error:
            WRITES.warning("refused %s %s: %s", client, dict(values), error)
            raise
        self._ask(Request("write", plain, client, done))

    def refresh(self) -> None:
        """Publish what was written to the model elsewhere."""
        self._ask(Request("refresh"))

    def reset(self, client: str, done: Done) -> None:
        """Ask for the inputs to go back to their baseline."""
        self._check_reserved(self._inputs, client)
        self._ask(Request("reset", client=client, done=done))

    def restore(self, snapshot: Mapping[str, Any], client: str, done: Done) -> None:
        """Ask for a snapshot to be written back."""
        self._check_reserved(self._inputs, client)
        self._ask(Request("restore", dict(snapshot), client, done))

    def when_idle(self, work: Idle) -> None:
        """Do a piece of work whenever nobody waits, until it says that it is finished."""
        with self._arrived:
            self._idle.append(work)
            self._arrived.notify()

    def setpoints(self) -> dict[str, Any]:
        """Return the inputs as they are shown, arrays as lists, beams left out."""
        found = {name: self._readings[name].value for name in self._inputs}
        return {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in found.items()
            if value is not None and not isinstance(value, dict)
        }

    def show(self, values: Mapping[str, Any]) -> None:
        """Publish values that come from elsewhere than the model, with the time and no new cycle."""
        now = time.time()
        self._publish({name: self._judged(name, value, now, self.cycle) for name, value in values.items()}, now)

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

    def _variable(self, name: str) -> Variable:
        if name not in self.variables:
            raise unknown_variable(name, self.variables, "the served model")
        return self.variables[name]

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
        self.evaluated, now = evaluated, time.time()
        self.cycle += 1
        values = {name: value for name, value in evaluated.values.items() if name in self.variables}
        for name in merged(requests) if requests[0].kind == "write" else ():
            values.setdefault(name, self._readings[name].value)
        for name in self._outputs:  # those that were invalid hold again
            if name not in values and self._readings[name].condition is Condition.FAILED:
                values[name] = self._readings[name].value
        old = {name: self._readings[name].value for name in values}
        if self._service is not None:
            values |= self._service.after(self.cycle, evaluated)
        self._publish({name: self._judged(name, value, now, self.cycle) for name, value in values.items()}, now)
        for request in requests:
            for name in request.values if request.kind == "write" else ():
                WRITES.info("accepted %s %s: %r -> %r", request.client, name, old[name], values[name])
            request.done(None, self.cycle)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        now, self.last_error = time.time(), str(error)
        self.cycle += 1
        if isinstance(error, LumeDiffError):
            LOG.warning("evaluation failed: %s", error)
        else:
            LOG.error("evaluation failed", exc_info=error)
        found = {}
        for name in merged(requests) if requests[0].kind == "write" else ():
            last = self._readings[name]
            found[name] = Reading(last.value, now, self.cycle, last.severity, last.condition, last.message)
        for name in self._outputs:
            last = self._readings[name].value
            found[name] = Reading(last, now, self.cycle, Severity.INVALID, Condition.FAILED, self.last_error)
        if self._service is not None:
            told = self._service.after(self.cycle, None, self.last_error)
            found |= {name: self._judged(name, value, now, self.cycle) for name, value in told.items()}
        self._publish(found, now)
        for request in requests:
            WRITES.warning("failed %s %s: %s", request.client, dict(request.values), error)
            request.done(error, self.cycle)

    # -- readings --------------------------------------------------------------------------------------------

    def _judged(self, name: str, value: Any, now: float, cycle: int) -> Reading:
        """Return a value with its alarm."""
        if value is None:
            return Reading(None, now, cycle, Severity.INVALID, Condition.UNDEFINED, "the model has no value")
        if self._faults and (name in self._faults or name in self._output_set):
            condition, message = self._faults.get(name) or next(iter(self._faults.values()))
            return Reading(value, now, cycle, Severity.INVALID, condition, message)
        if not finite(value):
            return Reading(value, now, cycle, Severity.INVALID, Condition.NOT_FINITE, f"{name} is not finite")
        if isinstance(value, bool) or not isinstance(value, float | int):
            return Reading(value, now, cycle)
        return Reading(value, now, cycle, *self._limits[name].judge(value))

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
        if self.cycle:
            self.first_cycle.set()
