"""Followed: one input of a twin, what its remote variable shows, and whether that can be trusted."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.errors import LumeDiffError
from lume_diff.ioc.arrival import checked
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.plain import same
from lume_diff.variables import TorchNDVariable, Variable

#: What is the matter, and in words.
Fault = tuple[Condition, str]
_NOTHING = object()


class Followed:
    """Follow one remote variable with one input.

    Args:
        variable: the input.
        remote: name of the remote variable.
        limits: of the inputs, as they are now.
        max_age: oldest time stamp that is trusted [s], None for any.
    """

    def __init__(self, variable: Variable, remote: str, limits: LimitStore, max_age: float | None = None) -> None:
        self.name, self.remote = variable.name, remote
        self._variable, self._limits, self._max_age = variable, limits, max_age
        self.reading: Reading | None = None  # the last, whatever it is
        self.good: Reading | None = None  # the last that was good
        self._wanted: Any = _NOTHING
        self._applied: Any = _NOTHING
        self._shown: Any = _NOTHING
        self._unfit = ""
        self._failed: tuple[Any, str] | None = None

    def take(self, reading: Reading) -> None:
        """Take what the remote variable shows; what is no good leaves the wanted value as it was."""
        self.reading, self._unfit = reading, ""
        if reading.severity is Severity.INVALID:
            return
        try:
            value = checked(self._variable, self._in_shape(reading.value), self._limits[self.name])
        except (LumeDiffError, TypeError, ValueError) as error:  # other servers send what they like
            self._unfit = str(error)
        else:
            self._wanted, self.good = value, reading

    def _in_shape(self, value: Any) -> Any:
        """Return an array in the shape of the variable where the number of elements fits: some protocols have none."""
        if not isinstance(self._variable, TorchNDVariable) or isinstance(value, str | dict):
            return value
        array = np.asarray(value)
        return array.reshape(self._variable.shape) if array.size == math.prod(self._variable.shape) else array

    # -- between the remote variable and the model -----------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether the model has yet to be given the last good value."""
        return self._wanted is not _NOTHING and not same(self._wanted, self._applied)

    @property
    def refused(self) -> bool:
        """Whether the model could not take the last good value."""
        return self._failed is not None and same(self._failed[0], self._wanted)

    @property
    def wanted(self) -> Any:
        """The last good value."""
        return self._wanted

    def was_applied(self, value: Any, shown: Any) -> None:
        """Note that the model has a value now, and what is shown for it."""
        self._applied, self._shown, self._failed = value, shown, None

    def was_refused(self, value: Any, why: str) -> None:
        """Note that the model could not take a value; it is given the next, whatever that is."""
        self._failed, self._applied = (value, why), _NOTHING

    def check_shown(self, value: Any) -> None:
        """Note that the input is shown with a value, which may have come from elsewhere."""
        if self._applied is not _NOTHING and not same(value, self._shown):
            self._applied = _NOTHING

    # -- trust -----------------------------------------------------------------------------------------------

    def fault(self) -> Fault | None:
        """Return what is the matter with the remote variable, or with the model at its value."""
        reading = self.reading
        if reading is None:
            return Condition.DISCONNECTED, f"{self.remote}: nothing has been heard of it yet"
        if reading.severity is Severity.INVALID:
            if reading.condition in (Condition.DISCONNECTED, Condition.STALE):
                return reading.condition, reading.message
            return Condition.UNTRUSTED, f"{self.remote} is INVALID: {reading.message or reading.condition.value}"
        if self._unfit:
            return Condition.UNTRUSTED, f"{self.remote} cannot be taken: {self._unfit}"
        if self._failed is not None and self.refused:
            return Condition.UNTRUSTED, f"the model failed at what was taken from {self.remote}: {self._failed[1]}"
        if self._max_age is not None and time.time() - reading.time > self._max_age:
            return Condition.STALE, f"{self.remote} is older than the {self._max_age:g} s that are allowed"
        return None
