"""Frame: all readings of a source at one moment, and what has been worked out from them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lume_diff.control.readings import Reading, Severity

T = TypeVar("T")


class _Place:
    """Where one result is kept, with the state that it is for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.made: tuple[Hashable, Any] | None = None


class _Memory:
    """Results by key, each worked out once; who asks for one waits for no other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[Hashable, _Place] = {}

    def once(self, key: Hashable, make: Callable[[], T], state: Hashable) -> T:
        """Return the result for a state, worked out by the first who asks."""
        with self._lock:
            place = self._places.setdefault(key, _Place())
        with place.lock:
            if place.made is None or place.made[0] != state:
                place.made = state, make()
            found: T = place.made[1]
            return found


@dataclass(frozen=True, slots=True)
class Frame:
    """All readings of a source at one moment.

    Attributes:
        cycle: number of the last cycle among them.
        time: of the newest reading [s since 1970].
        readings: by the name of the variable; never INVALID and fresh at the same time.
        good_until: when each reading that is INVALID was last good [s since 1970]; of one that never was, nothing.
        measured: what instruments read, by the name of the output that it is to be compared with; only of a twin.
        measured_until: when each of these that is INVALID was last good [s since 1970].
    """

    cycle: int
    time: float
    readings: Mapping[str, Reading]
    good_until: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, Reading] = field(default_factory=dict)
    measured_until: Mapping[str, float] = field(default_factory=dict)
    _memory: _Memory = field(default_factory=_Memory, repr=False, compare=False)

    def is_good(self, name: str) -> bool:
        """Tell whether the value of a variable may be shown as one that holds."""
        reading = self.readings.get(name)
        return reading is not None and reading.value is not None and reading.severity is not Severity.INVALID

    def value(self, name: str) -> Any:
        """Return the value of a variable, the last one if it is INVALID now, and None if there is none."""
        reading = self.readings.get(name)
        return None if reading is None else reading.value

    def once(self, key: Hashable, make: Callable[[], T], state: Hashable = None) -> T:
        """Return what is worked out from this frame, once for all viewers.

        Args:
            key: says what it is: the name of the variable, the size, and so on.
            make: works it out, in the thread of the first who asks.
            state: of whatever else it depends on, such as the second if it tells ages; made anew when that changes.
        """
        return self._memory.once(key, make, state)
