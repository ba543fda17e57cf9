"""Readings: what a control system shows of one variable, whatever its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad it is, with the numbers that EPICS gives."""

    NO_ALARM = 0
    MINOR = 1
    MAJOR = 2
    INVALID = 3


class Condition(Enum):
    """What is the matter; a protocol has its own word or number for each."""

    FINE = "fine"
    HIHI = "hihi"
    HIGH = "high"
    LOW = "low"
    LOLO = "lolo"
    UNDEFINED = "undefined"  #: there was no evaluation yet
    FAILED = "failed"  #: the model did not answer, or with an error
    NOT_FINITE = "not finite"
    DISCONNECTED = "disconnected"  #: what it follows is away
    STALE = "stale"  #: what it follows is old
    UNTRUSTED = "untrusted"  #: what it follows is in alarm, or cannot be taken


@dataclass(frozen=True, slots=True)
class Reading:
    """One variable at one moment.

    Attributes:
        value: float, int, bool or str; an array ``(*shape)``; or, of a bunch, columns by name. None before the first
            evaluation.
        time: when the cycle that it comes from was published [s since 1970].
        cycle: number of that cycle.
        severity, condition: its alarm.
        message: the alarm in words.
    """

    value: Any
    time: float
    cycle: int
    severity: Severity = Severity.NO_ALARM
    condition: Condition = Condition.FINE
    message: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """What one cycle publishes: one time stamp, one number, and the readings of what was written or has changed."""

    cycle: int
    time: float
    readings: Mapping[str, Reading]


def not_shown(reading: Reading, name: str, error: Exception) -> Reading:
    """Return a reading as INVALID and without its value, which a protocol cannot carry.

    Args:
        reading: that cannot be shown.
        name: of its variable.
        error: what went wrong.
    """
    message = f"{name} cannot be shown: {sendable(str(error))}"
    return replace(reading, value=None, severity=Severity.INVALID, condition=Condition.FAILED, message=message)


def sendable(text: str) -> str:
    """Return a text with question marks for what no protocol can carry, such as bytes that were no characters."""
    return text.replace("\0", "?").encode(errors="replace").decode()
