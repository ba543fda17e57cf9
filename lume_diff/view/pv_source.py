"""PVSource: a model that a server of lume-diff serves, through its process variables."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, final

import numpy as np

from lume_diff.control.client import ControlClient, Subscription, client_of
from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.errors import ControlError, ValidationError
from lume_diff.ioc.limits import PVLimits
from lume_diff.models import LUMEModel
from lume_diff.variables import BoolVariable, TorchNDVariable, TorchScalarVariable, Variable
from lume_diff.variables.serialization import variables_from_json
from lume_diff.view.source import Source, Told

_SILENCE = 4.0  # [s] after which a server that counts seconds is taken as stuck
_TICK = 0.5  # [s]
_LIMITS_EVERY = 10.0  # [s]
_PATIENCE = 1.0  # [s] for what a server may not have


@final
class PVSource(Source):
    """Follow every process variable of a server, and note when it is lost, stuck or back.

    What is served is read from the server itself. A variable that is disconnected, and all of them while the server's
    heartbeat stands still, keep their last values as INVALID.

    Args:
        prefix: of the server.
        client: ``"pva"``, ``"ca"`` or another entry point of ``lume_diff.clients``, or a client.
        writable: whether viewers may write to it.
        timeout: for an answer [s].
    """

    def __init__(
        self, prefix: str, client: str | ControlClient = "pva", writable: bool = False, timeout: float = 5.0
    ) -> None:
        super().__init__(writable)
        self._prefix, self._timeout = prefix, timeout
        self._owns_client = isinstance(client, str)
        self._protocol = client if isinstance(client, str) else type(client).__name__
        self._client = client_of(client)
        self._variables: dict[str, Variable] = {}
        self._limits: dict[str, PVLimits] = {}
        self._held: dict[str, Reading] = {}
        self._lock = threading.Lock()
        self._beat, self._is_stuck = time.monotonic(), False
        self._beat_time = time.time()
        self._subscription: Subscription | None = None
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"view {name}", daemon=True)
            for name, target in (("heartbeat", self._watch), ("limits", self._follow_limits))
        ]

    @property
    def title(self) -> str:
        """What is shown, in a few words."""
        return f"{self._prefix} by {self._protocol}"

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the server said that it serves."""
        return self._variables

    @property
    def model(self) -> LUMEModel | None:
        """None: the model is elsewhere."""
        return None

    def limits(self, name: str) -> PVLimits:
        """Return the limits of a variable as they were some seconds ago."""
        return self._limits[name]

    def start(self) -> Self:
        """Ask the server what it serves, and follow it.

        Raises:
            ControlError: if no server of lume-diff answers.
        """
        if self._subscription is not None:
            return self
        described = variables_from_json(self._described())
        self._variables = {variable.name: variable for variable in described}
        self._limits = {name: PVLimits.of(variable) for name, variable in self._variables.items()}
        names = [self._prefix + name for name in self._variables]
        self._listen(self._client.get(names, self._timeout))
        self._read_limits()
        self._subscription = self._client.monitor([*names, f"{self._prefix}SERVER:HEARTBEAT"], self._heard)
        for thread in self._threads:
            thread.start()
        return self

    def close(self) -> None:
        """Follow no more."""
        self._end.set()
        self._close_background()
        if self._subscription is not None:
            self._subscription.close()
            for thread in self._threads:
                thread.join()
        if self._owns_client:
            self._client.close()

    def served_derivatives(self) -> Mapping[str, Any] | None:
        """Return the response matrix that the server works out, None where it does not; it may hold what is not finite.

        Raises:
            ControlError: if it was worked out, and could not be again for the present settings.
        """
        name = f"{self._prefix}SERVER:SENS"
        found = self._client.get([name], min(self._timeout, _PATIENCE))[name]
        if not isinstance(found.value, dict) or not len(found.value.get("output", ())):
            return None
        if found.severity is Severity.INVALID and found.condition is not Condition.UNDEFINED:
            raise ControlError(f"{name} is of earlier settings: {found.message or 'it does not hold'}")
        return found.value

    @property
    def silent_since(self) -> float | None:
        """When the server's heartbeat came last [s since 1970], if it stands still; None if it beats."""
        return self._beat_time if self._is_stuck else None

    # -- what comes ------------------------------------------------------------------------------------------

    def _described(self) -> str:
        """Return what the server says of its variables; it does so within a second of its start."""
        name, end = f"{self._prefix}SERVER:VARIABLES", time.monotonic() + self._timeout
        while True:
            found = self._client.get([name], self._timeout)[name]
            if isinstance(found.value, str) and found.value:
                return found.value
            if found.condition is Condition.DISCONNECTED or time.monotonic() > end:
                raise ControlError(
                    f"{name} did not answer by {self._protocol} within {self._timeout:g} s: expected the prefix of a "
                    f"model that lume-diff serves, received {self._prefix!r}; see lume-diff pv list {self._prefix}"
                )
            time.sleep(0.1)

    def _heard(self, name: str, reading: Reading) -> None:
        self._listen({name: reading})

    def _listen(self, found: Mapping[str, Reading]) -> None:
        """Take what process variables show."""
        with self._lock:
            for full, reading in found.items():
                name = full.removeprefix(self._prefix)
                if name in self._variables:
                    self._held[name] = self._declared(name, reading)
                elif reading.condition is not Condition.DISCONNECTED:
                    self._beat, self._beat_time = time.monotonic(), time.time()
            was_stuck, self._is_stuck = self._is_stuck, time.monotonic() - self._beat > _SILENCE
            self._show(self._held if was_stuck or self._is_stuck else {n.removeprefix(self._prefix) for n in found})

    def _show(self, names: Any) -> None:
        shown = {name: self._held[name] for name in names if name in self._held}
        self._latest.take(aged(shown, self.silent_since))

    def _declared(self, name: str, reading: Reading) -> Reading:
        """Return a reading as the variable is declared; one that is away keeps its last value."""
        if reading.condition is Condition.DISCONNECTED:
            last = self._held.get(name)
            return replace(reading, value=None if last is None else last.value)
        variable, value = self._variables[name], reading.value
        if _is_not_finite(reading):
            return replace(reading, condition=Condition.NOT_FINITE, message="is not finite")
        if isinstance(variable, BoolVariable):
            return replace(reading, value=value in (True, "True"))
        if isinstance(variable, TorchNDVariable) and isinstance(value, np.ndarray):
            if value.size != np.prod(variable.shape):
                text = f"{value.size} elements came where {variable.shape} was announced"
                return replace(
                    reading, value=None, severity=Severity.INVALID, condition=Condition.UNTRUSTED, message=text
                )
            return replace(reading, value=value.reshape(variable.shape))
        return reading

    def _watch(self) -> None:
        """Notice a server that is stuck."""
        while not self._end.wait(_TICK):
            if time.monotonic() - self._beat > _SILENCE and not self._is_stuck:
                with self._lock:
                    self._is_stuck = True
                    self._show(list(self._held))

    def _follow_limits(self) -> None:
        """Read limits from time to time, which a server that is stuck keeps waiting for."""
        while not self._end.wait(_LIMITS_EVERY):
            if not self._is_stuck:
                self._read_limits()

    def _read_limits(self) -> None:
        """Ask for the limits of what can be written."""
        asked = [name for name in self.inputs if isinstance(self._variables[name], TorchScalarVariable)]
        fields = [f"{self._prefix}{name}.{end}" for name in asked for end in ("DRVL", "DRVH")]
        found = self._client.get(fields, self._timeout) if fields else {}
        for name in asked:
            low, high = (found[f"{self._prefix}{name}.{end}"].value for end in ("DRVL", "DRVH"))
            if isinstance(low, float) and isinstance(high, float):
                self._limits[name] = replace(self._limits[name], drive=(low, high))

    # -- what goes -------------------------------------------------------------------------------------------

    def _write(self, values: Mapping[str, Any], client: str, done: Told) -> None:
        unknown = [name for name in values if name not in self._variables]
        if unknown:
            raise ValidationError(f"{', '.join(unknown)}: not among the variables of {self.title}")
        self._put({self._prefix + name: value for name, value in values.items()}, done)

    def _restore(self, setpoints: Mapping[str, Any], client: str, done: Told) -> None:
        self._put({f"{self._prefix}SERVER:SNAPSHOT": json.dumps(dict(setpoints))}, done)

    def _put(self, values: Mapping[str, Any], done: Told) -> None:
        def put() -> None:
            try:
                self._client.put(values, self._timeout)
            except Exception as error:
                done(error)
            else:
                done(None)

        threading.Thread(target=put, name="view put", daemon=True).start()


def _is_not_finite(reading: Reading) -> bool:
    """Tell whether a value came, and is no number: protocols say of it the same as of what was never worked out."""
    if reading.severity is not Severity.INVALID or not isinstance(reading.value, float) or math.isfinite(reading.value):
        return False
    return reading.condition is Condition.UNDEFINED or reading.message.endswith("is not finite")


def aged(readings: Mapping[str, Reading], since: float | None) -> Mapping[str, Reading]:
    """Return readings of a server that does not answer any more.

    Args:
        readings: the last, by name.
        since: when it answered last [s since 1970]; None if it does answer.
    """
    if since is None:
        return readings
    old: dict[str, Any] = {"severity": Severity.INVALID, "condition": Condition.STALE}
    text = "the server's heartbeat stands still"
    return {
        name: one if one.severity is Severity.INVALID else replace(one, time=since, message=text, **old)
        for name, one in readings.items()
    }
