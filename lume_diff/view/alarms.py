"""Alarms in words and signs, so that nothing has to be told by its colour."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from lume_diff.control.readings import Reading, Severity
from lume_diff.view.frame import Frame

#: A sign for each severity; their shapes differ.
SIGNS = {Severity.NO_ALARM: "✓", Severity.MINOR: "▲", Severity.MAJOR: "◆", Severity.INVALID: "✖"}

#: Fill and text colours that stay apart for colour-blind people and on a projector (after Okabe and Ito, 2008).
COLOURS = {
    Severity.NO_ALARM: ("#e8f3ee", "#00543c"),
    Severity.MINOR: ("#f0b72f", "#000000"),
    Severity.MAJOR: ("#b3400a", "#ffffff"),
    Severity.INVALID: ("#5b2a6e", "#ffffff"),
}


@dataclass(frozen=True, slots=True)
class Alarm:
    """What is the matter with one variable.

    Attributes:
        name: of the variable.
        severity: how bad it is.
        message: in words, without the name.
        age: time since the value was good [s], None if it never was, and 0 where it holds.
    """

    name: str
    severity: Severity
    message: str
    age: float | None

    @property
    def text(self) -> str:
        """The alarm in a few words, its age too."""
        if self.severity is Severity.NO_ALARM:
            return f"{SIGNS[self.severity]} good"
        found = f"{SIGNS[self.severity]} {self.severity.name}"
        if self.message:
            found += f": {self.message}"
        if self.severity is Severity.INVALID:
            found += "; never good" if self.age is None else f"; last good {duration(self.age)} ago"
        return found


def duration(seconds: float) -> str:
    """Return a time as people say it: ``"7 s"``, ``"3 min 20 s"``, ``"2 h 5 min"``, ``"3 d 4 h"``."""
    whole = max(0, round(seconds))
    for long, long_word, short, short_word in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= long:
            rest = whole % long // short
            return f"{whole // long} {long_word}" + (f" {rest} {short_word}" if rest else "")
    return f"{whole} s"


def alarm_of(frame: Frame, name: str, now: float | None = None) -> Alarm:
    """Return what is the matter with a variable in a frame; one that is not there is INVALID.

    Args:
        frame: the newest.
        name: of the variable.
        now: [s since 1970]; the present if None.
    """
    reading = frame.readings.get(name)
    if reading is None:
        return Alarm(name, Severity.INVALID, "no such variable here", None)
    return _alarm(name, reading, frame.good_until.get(name), time.time() if now is None else now)


def measured_alarm_of(frame: Frame, name: str, now: float | None = None) -> Alarm | None:
    """Return what is the matter with what an instrument reads; None if there is no such instrument. See `alarm_of`."""
    reading = frame.measured.get(name)
    if reading is None:
        return None
    return _alarm(name, reading, frame.measured_until.get(name), time.time() if now is None else now)


def _alarm(name: str, reading: Reading, good_until: float | None, now: float) -> Alarm:
    message = reading.message
    before, _, rest = message.partition(name)
    if " " not in before and rest[:1] in (":", " "):  # the name, or that of the remote variable, which ends in it
        message = rest.lstrip(": ")
    if reading.severity is not Severity.INVALID:
        return Alarm(name, reading.severity, message, 0.0)
    return Alarm(name, reading.severity, message, None if good_until is None else max(0.0, now - good_until))


def worst_of(frame: Frame, names: Iterable[str]) -> Alarm | None:
    """Return the worst alarm among some variables, the one that is longest so among equals; None if all are well."""
    now = time.time()
    alarms = [alarm_of(frame, name, now) for name in names]
    found = [one for one in alarms if one.severity is not Severity.NO_ALARM]
    return max(found, key=lambda one: (one.severity, float("inf") if one.age is None else one.age), default=None)
