"""Doubt: why what is worked out from a whole frame must not be taken for what holds now, and since when."""

from __future__ import annotations

import time
from dataclasses import replace

from lume_diff.control.readings import Condition, Severity
from lume_diff.view.alarms import Alarm, alarm_of
from lume_diff.view.background import Result
from lume_diff.view.frame import Frame

#: What makes everything doubtful; an output that is not finite says something about itself only.
_GRAVE = (Condition.FAILED, Condition.DISCONNECTED, Condition.STALE, Condition.UNTRUSTED, Condition.UNDEFINED)


def doubt_of(frame: Frame, *results: Result) -> Alarm | None:
    """Return why what is worked out from all values of a frame does not hold; None if it does.

    Args:
        frame: the frame.
        *results: of what was worked out; what went wrong with one of them is a reason too.
    """
    now = time.time()
    found = [
        alarm_of(frame, name, now)
        for name, reading in frame.readings.items()
        if reading.severity is Severity.INVALID and reading.condition in _GRAVE
    ]
    if found:
        # What was never good, such as a monitor without beam, does not tell since when.
        first = max(found, key=lambda alarm: -1.0 if alarm.age is None else alarm.age)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        return replace(first, name="", message=f"{first.name}: {first.message or 'not good'}{more}")
    error = next((result.error for result in results if result.error), "")
    return Alarm("", Severity.INVALID, error, None) if error else None


def in_short(alarm: Alarm | None) -> Alarm | None:
    """Return an alarm without its words, for where these stand beside it already."""
    return None if alarm is None else replace(alarm, name="", message="")
