"""PVAClient: process variables on PVAccess, by p4p."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from p4p import Value
from p4p.client.raw import Context as Raw
from p4p.client.thread import Context, Disconnected

from lume_diff.control.client import ControlClient, Listener, Subscription
from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.errors import ControlError

_UNDEFINED = 6


@final
class PVAClient(ControlClient):
    """Talk PVAccess.

    Args:
        configuration: ``EPICS_PVA_...`` settings by name; what is not there is taken from the environment.
    """

    def __init__(self, configuration: Mapping[str, str] | None = None) -> None:
        settings = {key: value for key, value in os.environ.items() if key.startswith("EPICS_PVA_")}
        self._context = Context("pva", conf={**settings, **(configuration or {})}, useenv=False, nt=False)

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        """Read variables, all at the same time."""
        found = self._context.get(list(names), timeout=timeout, throw=False)
        return {name: _reading(value, name) for name, value in zip(names, found, strict=True)}

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        """Write variables, all at the same time, and wait until the server has done it."""
        outcomes: dict[str, Any] = {}
        answered = threading.Condition()

        def told(name: str, outcome: Any) -> None:
            with answered:
                outcomes[name] = outcome
                answered.notify()

        # p4p's own put of several calls all of them late when one is, those that were written too.
        held = [
            Raw.put(self._context, name, functools.partial(told, name), builder=_builder(value))
            for name, value in values.items()
        ]
        with answered:
            answered.wait_for(lambda: len(outcomes) == len(values), timeout)
            found = {name: outcomes.get(name, TimeoutError()) for name in values}
        for one in held:
            one.close()
        wrong = [f"{name}: {_why(outcome)}" for name, outcome in found.items() if outcome is not None]
        if wrong:
            raise ControlError(f"{len(wrong)} of {len(values)} process variables were not written: " + "; ".join(wrong))

    def monitor(self, names: Sequence[str], listener: Listener) -> Subscription:
        """Follow variables; one that is away comes back by itself."""
        return _Monitors(self._context, names, listener)

    def close(self) -> None:
        """Let go of all connections."""
        self._context.close()


class _Monitors(Subscription):
    """One p4p subscription a variable."""

    def __init__(self, context: Context, names: Sequence[str], listener: Listener) -> None:
        self._held = [
            context.monitor(
                name, lambda value, name=name: listener(name, _reading(value, name)), notify_disconnect=True
            )
            for name in names
        ]

    def close(self) -> None:
        """Follow no more."""
        for one in self._held:
            one.close()
        self._held = []


def _reading(value: Any, name: str) -> Reading:
    """Return what p4p gives as a reading."""
    if not isinstance(value, Value):
        text = "not connected" if isinstance(value, Disconnected) else f"no answer ({_why(value)})"
        return Reading(None, time.time(), 0, Severity.INVALID, Condition.DISCONNECTED, f"{name}: {text}")
    seconds = value.get("timeStamp.secondsPastEpoch", 0) + 1e-9 * value.get("timeStamp.nanoseconds", 0)
    severity = Severity(min(max(value.get("alarm.severity", 0), 0), 3))
    message = value.get("alarm.message", "")
    condition = Condition.FINE
    if severity is not Severity.NO_ALARM:
        condition = Condition.UNDEFINED if value.get("alarm.status", 0) == _UNDEFINED else Condition.FAILED
    return Reading(_plain(value), seconds, value.get("timeStamp.userTag", 0), severity, condition, message)


def _plain(value: Value) -> Any:
    """Return the content of a normative type as a Python value."""
    content = value.get("value", None)
    kind = value.getID()
    if kind.startswith("epics:nt/NTEnum"):
        choices = content["choices"]
        return choices[content["index"]] if 0 <= content["index"] < len(choices) else content["index"]
    if kind.startswith("epics:nt/NTNDArray"):
        shape = tuple(reversed([part.size for part in value["dimension"]]))
        return np.zeros(shape) if content is None else np.array(content).reshape(shape)
    if kind.startswith("epics:nt/NTTable"):
        return {name: np.array(column) for name, column in content.items()}
    if isinstance(content, np.ndarray):
        return content.copy()
    return content


def _builder(value: Any) -> Any:
    """Return what p4p calls to fill in a put; words of an enumeration are looked up in its choices."""

    def build(target: Value) -> None:
        kind = target.getID()
        if kind.startswith("epics:nt/NTEnum"):
            target["value.index"] = _index(target, value)
        elif kind.startswith("epics:nt/NTNDArray"):
            pixels = np.asarray(value, dtype=np.float64)
            target["value"] = ("doubleValue", pixels.reshape(-1))
            target["dimension"] = [{"size": size, "fullSize": size} for size in reversed(pixels.shape)]
        elif _has_fraction(target["value"], value):
            raise ControlError(f"{value} is no whole number")
        elif isinstance(value, str) and "\0" in value:
            raise ControlError(f"{value!r:.60} holds a NUL, where servers take a text to end")
        else:
            target["value"] = value

    return build


def _has_fraction(present: Any, value: Any) -> bool:
    """Tell whether a field of whole numbers, which p4p would cut them to, is to take others."""
    if type(present) is not int and not (isinstance(present, np.ndarray) and present.dtype.kind in "iu"):
        return False
    numbers = np.asarray(value)
    return numbers.dtype.kind == "f" and not bool((np.isfinite(numbers) & (numbers == np.floor(numbers))).all())


def _index(target: Value, value: Any) -> int:
    choices = list(target["value.choices"])
    if isinstance(value, str):
        if value not in choices:
            raise ControlError(f"{value!r} is no choice; expected one of {', '.join(choices)}")
        return choices.index(value)
    if value not in range(len(choices) or 1 << 16):
        raise ControlError(f"{value!r} is no index of a choice; expected 0 to {len(choices) - 1}, or a word")
    return int(value)


def _why(error: Any) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
