"""Judging: the alarm that a value of the model is shown with."""

from __future__ import annotations

from typing import Any

from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.plain import finite


def judged(
    name: str, value: Any, now: float, cycle: int, limits: PVLimits, fault: tuple[Condition, str] | None = None
) -> Reading:
    """Return a plain value with its alarm.

    Args:
        name: of the variable.
        value: None where the model has none.
        now, cycle: time [s since 1970] and number of the cycle.
        limits: of the variable, as they are now.
        fault: what makes it untrustworthy, and in words.
    """
    if value is None:
        return Reading(None, now, cycle, Severity.INVALID, Condition.UNDEFINED, "the model has no value")
    if fault is not None:
        return Reading(value, now, cycle, Severity.INVALID, *fault)
    if not finite(value):
        return Reading(value, now, cycle, Severity.INVALID, Condition.NOT_FINITE, f"{name} is not finite")
    if isinstance(value, bool) or not isinstance(value, float | int):
        return Reading(value, now, cycle)
    return Reading(value, now, cycle, *limits.judge(value))
