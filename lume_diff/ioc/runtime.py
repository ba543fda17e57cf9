"""Runtime: the one thread that evaluates a served model, between control systems and engine."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lume_diff.control.readings import Condition, Reading, Severity, sendable
from lume_diff.errors import LumeDiffError, ReadOnlyError, SimulatorError, ValidationError, unknown_variable
from lume_diff.ioc.access import Access
from lume_diff.ioc.arrival import check_drive, checked
from lume_diff.ioc.board import Board
from lume_diff.ioc.engine import Engine, Evaluated
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.requests import Done, Request, batches, ignore, merged, with_successors, written
from lume_diff.ioc.service import Service
from lume_diff.ioc.write_log import WriteLog

LOG = logging.getLogger("lume_diff.ioc")

#: One piece of work for when nobody waits; returns whether it is finished.
Idle = Callable[[Engine], bool]


class Runtime(Board):
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
        baseline: returns plain values that a reset goes back to, of those inputs whose limits may be changed.
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
        baseline: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        super().__init__({name: engine.variables[name] for name in names}, limits, setpoints, service)
        self._engine = engine
        self._ordered = ordered
        self._reserved: dict[str, str] = {}
        self._owner = ""
        self._service = service
        self._access, self.writes = access or Access(), writes or WriteLog()
        self._baseline = baseline
        self._waiting: list[Request] = []
        self._idle: deque[Idle] = deque()
        self._arrived = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.evaluated: Evaluated | None = None
        self.last_error = ""
        self.first_cycle = threading.Event()

    # -- life ------------------------------------------------------------------------------------------------

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
            self.check_reserved(values, client)
            if asked and service is not None:
                if len(values) > 1:
                    raise ValidationError(
                        f"{asked[0]!r} is written alone, not with {', '.join({*values} - {asked[0]})}"
                    )
                service.write(asked[0], values[asked[0]], client, done)
                return
            plain = self.accepted(values)
        except LumeDiffError as error:
            self._refuse(client, values, error)
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

    def _refuse(self, client: str, values: Mapping[str, Any], error: Exception) -> None:
        self.writes.refused(client, values, self._shown(values), error)
        self.refused(values, error)

    def refresh(self) -> None:
        """Publish what was written to the model elsewhere; a server that is stopping leaves it at that."""
        with contextlib.suppress(SimulatorError):  # it would be raised in whoever has written to the model
            self._ask(Request("refresh"))

    def shot(self, counter: str | None = None, done: Done = ignore) -> None:
        """Count a shot, and publish every output again, whether or not it has changed.

        Args:
            counter: input that is raised by one, once it has a value.
            done: told when it is published.
        """
        count = None if counter is None else self._readings[counter].value
        counted = {} if counter is None or count is None else {counter: count + 1}
        self._ask(Request("shot", counted, done=done))

    def reset(self, client: str, done: Done) -> None:
        """Ask for the inputs to go back to their baseline.

        Raises:
            ReadOnlyError: if the client may not.
            ValidationError: for a baseline outside of drive limits as they are now.
        """
        self._access.check(client, {"RESET": True})
        self.check_reserved(self._inputs, client)
        for name, value in self._baseline().items():
            check_drive(self.variables[name], value, self._limits[name])
        self._ask(Request("reset", client=client, done=done))

    def restore(self, snapshot: Mapping[str, Any], client: str, done: Done) -> None:
        """Ask for a snapshot to be written back.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for what cannot be written.
        """
        try:
            self._access.check(client, snapshot)
            self.check_reserved(self._inputs, client)
            plain = self.accepted(snapshot)
        except LumeDiffError as error:
            self._refuse(client, snapshot, error)
            raise
        self._ask(Request("restore", plain, client, done))

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

    def reserve(self, reasons: Mapping[str, str], client: str) -> None:
        """Let only one client write some inputs; nobody resets or restores them any more.

        Args:
            reasons: why, by the name of the input; the others are told.
            client: who may.
        """
        self._reserved, self._owner = dict(reasons), client

    def check_reserved(self, names: Iterable[str], client: str) -> None:
        """Refuse inputs that only another client may write.

        Raises:
            ReadOnlyError: for the first of them, with the reason.
        """
        if self._reserved and client != self._owner:
            for name in names:
                if name in self._reserved:
                    raise ReadOnlyError(f"{name!r} cannot be written here: {self._reserved[name]}")

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
            self._answer(request, SimulatorError("the server has stopped before this was evaluated"))

    def _answer(self, request: Request, error: Exception | None) -> None:
        """Tell whoever has asked; that they cannot be told is no matter of the others."""
        try:
            request.done(error, self.cycle)
        except Exception:
            LOG.exception("%s cannot be answered", request.client or "a request")

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
        values = {name: value for name, value in evaluated.values.items() if name in self.variables}
        for name in written(requests):
            values.setdefault(name, self._readings[name].value)
        is_shot = any(request.kind == "shot" for request in requests)
        for name in self._outputs:  # those that were invalid hold again
            if is_shot or self._readings[name].condition is Condition.FAILED:
                values.setdefault(name, self._readings[name].value)
        old = {name: self._readings[name].value for name in values}
        with self._publishing:  # nothing has the new number before this cycle is published
            self.evaluated, self.last_error = evaluated, ""
            self.cycle += 1
            if self._service is not None:
                values |= self._service.after(self.cycle, evaluated)
            self._post(values, time.time())
        self.first_cycle.set()
        for request in requests:
            if request.kind == "write":
                for name, value in request.values.items():
                    self.writes.accepted(request.client, name, old[name], value, self.cycle)
            elif request.kind in ("reset", "restore"):
                self.writes.asked(request.client, request.kind, self.cycle)
            self._answer(request, None)

    def _fail(self, requests: Sequence[Request], error: Exception) -> None:
        text = sendable(str(error))
        if isinstance(error, LumeDiffError):
            LOG.warning("evaluation failed: %s", text)
        else:
            LOG.error("evaluation failed", exc_info=error)
        with self._publishing:
            now, self.last_error = time.time(), text
            self.cycle += 1
            last = self._shown(written(requests))  # judged anew: what is the matter with them may have changed
            if self._service is not None:
                last |= self._service.after(self.cycle, None, text)
            failed = {
                name: Reading(self._readings[name].value, now, self.cycle, Severity.INVALID, Condition.FAILED, text)
                for name in self._outputs
            }
            self._post(last, now, failed)
        self.first_cycle.set()
        for request in requests:
            self.writes.failed(request.client, request.values, self._shown(request.values), error)
            self._answer(request, error)
