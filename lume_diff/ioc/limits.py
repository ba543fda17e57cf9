"""LimitStore: the limits of every served variable, as they are now, in one place for all protocols."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

from lume_diff.control.readings import Condition, Severity
from lume_diff.errors import ReadOnlyError, ValidationError, unknown_variable
from lume_diff.variables import Variable

Range = tuple[float, float]
_OPEN: Range = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class PVLimits:
    """Limits of one variable, in its unit; an end that is open is infinite.

    Attributes:
        drive: what may be written (``DRVL``, ``DRVH``).
        display: what a display shows (``LOPR``, ``HOPR``).
        warning: outside it the severity is MINOR (``LOW``, ``HIGH``).
        alarm: outside it the severity is MAJOR (``LOLO``, ``HIHI``).
    """

    drive: Range = _OPEN
    display: Range = _OPEN
    warning: Range = _OPEN
    alarm: Range = _OPEN

    @classmethod
    def of(cls, variable: Variable) -> PVLimits:
        """Return what a variable declares."""
        value_range = _range(getattr(variable, "value_range", None))
        return cls(
            drive=_OPEN if variable.read_only else value_range,
            display=value_range,
            warning=_range(getattr(variable, "warning_range", None)),
            alarm=_range(getattr(variable, "alarm_range", None)),
        )

    def judge(self, value: float) -> tuple[Severity, Condition, str]:
        """Return the alarm of a finite number: how bad, what, and in words."""
        if self.warning[0] <= value <= self.warning[1] and self.alarm[0] <= value <= self.alarm[1]:
            return Severity.NO_ALARM, Condition.FINE, ""
        checks = (
            (value > self.alarm[1], Severity.MAJOR, Condition.HIHI, "above", self.alarm[1]),
            (value < self.alarm[0], Severity.MAJOR, Condition.LOLO, "below", self.alarm[0]),
            (value > self.warning[1], Severity.MINOR, Condition.HIGH, "above", self.warning[1]),
            (value < self.warning[0], Severity.MINOR, Condition.LOW, "below", self.warning[0]),
        )
        for bad, severity, condition, side, end in checks:
            if bad:
                return severity, condition, f"{value:g} is {side} {end:g}"
        return Severity.NO_ALARM, Condition.FINE, ""


class LimitStore:
    """Hold the limits of served variables.

    Args:
        variables: what is served; their declared limits are where the store starts from.
        changeable: names whose limits clients may change; drive limits only within the model's own.
    """

    def __init__(self, variables: Mapping[str, Variable], changeable: Iterable[str] = ()) -> None:
        self._declared = {name: PVLimits.of(variable) for name, variable in variables.items()}
        self._now = dict(self._declared)
        self._changeable = frozenset(changeable)
        self._lock = threading.Lock()
        for name in self._changeable:
            if name not in self._now:
                raise unknown_variable(name, self._now, "the served variables")

    @property
    def all(self) -> Mapping[str, PVLimits]:
        """The limits by name, as a view."""
        return MappingProxyType(self._now)

    def __getitem__(self, name: str) -> PVLimits:
        return self._now[name]

    def changeable(self, name: str) -> bool:
        """Tell whether clients may change the limits of a variable."""
        return name in self._changeable

    def change(self, name: str, field: str, low: float | None = None, high: float | None = None) -> PVLimits:
        """Change one end or both of a range.

        Args:
            name: of the variable.
            field: ``"drive"``, ``"display"``, ``"warning"`` or ``"alarm"``.
            low, high: new ends [unit]; None leaves one as it is.

        Returns:
            The limits as they are then.

        Raises:
            ReadOnlyError: if the limits of this variable are fixed.
            ValidationError: for NaN, ends in the wrong order, or drive limits wider than the model's.
        """
        if name not in self._changeable:
            raise ReadOnlyError(f"limits of {name!r} are fixed: name it among those whose limits may be changed")
        if field not in {known.name for known in fields(PVLimits)}:
            raise ValidationError(f"{field!r} is no kind of limits; expected drive, display, warning or alarm")
        with self._lock:
            before: Range = getattr(self._now[name], field)
            after = (before[0] if low is None else low, before[1] if high is None else high)
            if not after[0] <= after[1]:
                raise ValidationError(f"{field} limits of {name!r} would be {after}: the lower end must come first")
            widest = self._declared[name].drive
            if field == "drive" and (after[0] < widest[0] or after[1] > widest[1]):
                raise ValidationError(f"drive limits of {name!r} would be {after}, beyond the model's own {widest}")
            changed = replace(self._now[name], **{field: after})
            self._now[name] = changed
        return changed


def _range(declared: tuple[float, float] | None) -> Range:
    return _OPEN if declared is None else (float(declared[0]), float(declared[1]))
