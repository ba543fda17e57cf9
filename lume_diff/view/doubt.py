"""Doubt: why what is worked out from a frame must not be taken for what holds now, and since when."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from lume_diff.control.readings import Condition, Severity
from lume_diff.view.frame import Frame

#: What makes everything doubtful; an output that is not finite says something about itself only.
_GRAVE = (Condition.FAILED, Condition.DISCONNECTED, Condition.STALE, Condition.UNTRUSTED, Condition.UNDEFINED)


@dataclass(frozen=True)
class Doubt:
    """Why values do not hold.

    Attributes:
        names: of the variables that are not good.
        reason: in words.
        since: when they were good last [s since 1970]; None if they never were.
    """

    names: tuple[str, ...]
    reason: str
    since: float | None = None

    def text(self, now: float | None = None) -> str:
        """Return one line with the time since it was good.

        Args:
            now: [s since 1970]; None for the clock's.
        """
        now = time.time() if now is None else now
        if self.since is None:
            return f"INVALID, never good yet: {self.reason}"
        clock = time.strftime("%H:%M:%S", time.localtime(self.since))
        return f"INVALID for {age(now - self.since)}, last good at {clock}: {self.reason}"


def age(seconds: float) -> str:
    """Return a time span as a person says it.

    Example:
        >>> age(3.2), age(135.0), age(7300.0)
        ('3 s', '2 min 15 s', '2 h 1 min')
    """
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def doubt_of(frame: Frame, names: Iterable[str] | None = None) -> Doubt | None:
    """Return why some values of a frame, or what is worked out from all of them, do not hold; None if they do.

    Args:
        frame: the frame.
        names: of variables; None for everything that a model's line is worked out from.
    """
    wanted = frame.readings if names is None else list(names)
    bad = []
    for name in wanted:
        reading = frame.readings.get(name)
        if reading is None or reading.severity is Severity.INVALID:
            if names is not None or (reading is not None and reading.condition in _GRAVE):
                bad.append(name)
    if not bad:
        return None
    first = frame.readings.get(bad[0])
    reason = "is not there" if first is None else first.message or first.condition.value
    reason = reason if bad[0] in reason else f"{bad[0]}: {reason}"
    if len(bad) > 1:
        reason += f" (and {len(bad) - 1} more)"
    known = [frame.good_until[name] for name in bad if name in frame.good_until]
    return Doubt(tuple(bad), reason, min(known, default=None))
