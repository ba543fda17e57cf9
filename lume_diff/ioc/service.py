"""Service: process variables about the server itself, beside those of the model."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lume_diff.errors import LumeDiffError, ReadOnlyError, ValidationError
from lume_diff.ioc.engine import Evaluated
from lume_diff.ioc.requests import Done
from lume_diff.variables import BoolVariable, EnumVariable, IntVariable, StrVariable, TorchScalarVariable, Variable
from lume_diff.variables.serialization import variables_to_json

if TYPE_CHECKING:
    from lume_diff.ioc.runtime import Runtime

STATES = ("STARTING", "READY", "FAILED")

#: Takes what was written, who did, and what is to be told at the end; returns at once.
Command = Callable[[Any, str, Done], None]


class Service:
    """Show how the server is doing, and take requests that are not writes of model inputs.

    ==============  ======================================================================================
    ``STATUS``      STARTING until the first cycle, READY, or FAILED after an evaluation that did not work
    ``HEARTBEAT``   counts seconds
    ``CYCLE``       number of the last cycle
    ``CYCLE_TIME``  what the model took in it [s]
    ``RUNS``        simulator runs since the start
    ``LAST_ERROR``  in words; empty when there was none
    ``MODEL``       name of the model's class, numbers of inputs and outputs, versions: JSON
    ``PVS``         every name that is served, without the prefix, one a line
    ``VARIABLES``   the model's variables: units, limits, choices and so on: JSON; within a second of the start
    ``SNAPSHOT``    the set-points, taken within a second of a cycle: JSON; writing one restores it
    ``RESET``       writing True brings the inputs back to their baseline, if drive limits as they are now allow it
    ==============  ======================================================================================

    Args:
        model_info: for ``MODEL``.
        names: the model's variables by name, for ``PVS`` and ``VARIABLES``.
        constants: further variables, under their own names, with the values that they begin with.
        prefix: put before the names, and after the server's own prefix.
        commands: what a write does, by the name of one of the further variables.
    """

    def __init__(
        self,
        model_info: Mapping[str, Any],
        names: Mapping[str, Variable] = MappingProxyType({}),
        constants: Sequence[tuple[Variable, Any]] = (),
        prefix: str = "SERVER:",
        commands: Mapping[str, Command] | None = None,
    ) -> None:
        self._prefix = prefix
        described: list[Variable] = [
            EnumVariable(name="STATUS", options=list(STATES), description="how the model is doing", read_only=True),
            IntVariable(name="HEARTBEAT", unit="s", description="counts seconds", read_only=True),
            IntVariable(name="CYCLE", description="number of the last cycle", read_only=True),
            TorchScalarVariable(name="CYCLE_TIME", unit="s", description="of the last cycle", read_only=True),
            IntVariable(name="RUNS", description="simulator runs since the start", read_only=True),
            StrVariable(name="LAST_ERROR", description="what went wrong last", read_only=True),
            StrVariable(name="MODEL", description="what is served, as JSON", read_only=True),
            StrVariable(name="PVS", description="names that are served, one a line", read_only=True),
            StrVariable(name="VARIABLES", description="the model's variables, as JSON", read_only=True),
            StrVariable(name="SNAPSHOT", description="set-points as JSON; write one to restore it"),
            BoolVariable(name="RESET", description="write True to reset the model"),
        ]
        self.variables: dict[str, Variable] = {prefix + v.name: v.replace(name=prefix + v.name) for v in described}
        self._constants = {variable.name: value for variable, value in constants}
        self.variables |= {variable.name: variable for variable, _ in constants}
        self._runtime: Runtime | None = None
        self._described = dict(names)
        self._model_info = dict(model_info)
        self._began, self._runs = time.monotonic(), 0
        self._end = threading.Event()
        self._refusals: queue.SimpleQueue[tuple[list[str], str]] = queue.SimpleQueue()
        self._beat = threading.Thread(target=self._beats, name="heartbeat", daemon=True)
        self._writers: dict[str, Command] = {
            prefix + "RESET": self._reset,
            prefix + "SNAPSHOT": self._restore,
            **(commands or {}),
        }

    def first(self) -> dict[str, Any]:
        """Return what is shown before the first cycle."""
        return self._constants | self._named(
            STATUS=STATES[0],
            HEARTBEAT=0,
            CYCLE=0,
            CYCLE_TIME=0.0,
            RUNS=0,
            LAST_ERROR="",
            MODEL=json.dumps(self._model_info),
            PVS="\n".join([*self._described, *self.variables]),
            VARIABLES="",
            SNAPSHOT="{}",
            RESET=False,
        )

    def start(self, runtime: Runtime) -> None:
        """Begin to count seconds."""
        self._runtime = runtime
        self._beat.start()

    def stop(self) -> None:
        """Count no more."""
        self._end.set()
        self._refusals.put(([], ""))
        if self._beat.is_alive() and self._beat is not threading.current_thread():
            self._beat.join()

    def refused(self, names: list[str], text: str) -> None:
        """Tell in ``LAST_ERROR`` what was refused, and publish the variables as they are; returns at once."""
        self._refusals.put((names, text))

    def after(self, cycle: int, evaluated: Evaluated | None, error: str = "") -> dict[str, Any]:
        """Return what a cycle changes: one that has worked, or one that has failed with an error."""
        if evaluated is None:
            return self._named(STATUS=STATES[2], CYCLE=cycle, LAST_ERROR=error)
        self._runs += evaluated.runs
        return self._named(STATUS=STATES[1], CYCLE=cycle, CYCLE_TIME=evaluated.seconds, RUNS=self._runs)

    def write(self, name: str, value: Any, client: str, done: Done) -> None:
        """Do what a write asks for.

        Raises:
            ReadOnlyError: if nothing can be written there.
            ValidationError: for a snapshot that is none.
        """
        if name not in self._writers:
            raise ReadOnlyError(f"{name!r} tells about the server and cannot be written")
        self._writers[name](self.variables[name].validate_value(value), client, done)

    def _reset(self, value: Any, client: str, done: Done) -> None:
        if self._runtime is not None and bool(value):
            self._runtime.reset(client, done)
        else:
            done(None, 0)

    def _restore(self, value: str, client: str, done: Done) -> None:
        try:
            snapshot = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValidationError(f"a snapshot is JSON as SNAPSHOT shows it; this is none: {error}") from None
        if not isinstance(snapshot, dict):
            raise ValidationError(f"a snapshot is a JSON object of values by name, received {type(snapshot).__name__}")
        if self._runtime is None:
            raise LumeDiffError("the server has not been started")
        self._runtime.restore(snapshot, client, done)

    def _named(self, **values: Any) -> dict[str, Any]:
        return {self._prefix + name: value for name, value in values.items()}

    def _beats(self) -> None:
        """Count seconds, and between them tell of what was refused."""
        taken, beat = -1, self._began
        if self._runtime is not None:  # takes long if there are many, and nobody waits for it
            self._runtime.show(self._named(VARIABLES=variables_to_json(self._described.values())))
        while self._runtime is not None and not self._end.is_set():
            try:
                names, text = self._refusals.get(timeout=max(0.0, beat + 1.0 - time.monotonic()))
            except queue.Empty:
                beat = time.monotonic()
                shown = self._named(HEARTBEAT=round(beat - self._began))
                if self._runtime.cycle != taken:
                    taken = self._runtime.cycle
                    shown |= self._named(SNAPSHOT=json.dumps(self._runtime.setpoints()))
                self._runtime.show(shown)
            else:
                self._runtime.show_again(names, self._named(LAST_ERROR=text) if text else {})
