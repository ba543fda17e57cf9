"""Readings as the normative types of PVAccess, and what clients put as plain values."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, final

import numpy as np
from p4p import Type, Value
from p4p.nt import NTEnum, NTNDArray, NTScalar, NTTable

from lume_diff.control.readings import Condition, Reading, Severity, not_shown, sendable
from lume_diff.errors import ValidationError
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.plain import BUNCH_COLUMNS, MOMENT_ROWS, check_text
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    MomentsVariable,
    ParticleGroupVariable,
    StrVariable,
    TorchNDVariable,
    Variable,
)

LOG = logging.getLogger("lume_diff.ioc.pva")
NO_STATUS, DRIVER, RECORD, UNDEFINED = 0, 2, 3, 6
_STATUS = {
    Condition.FINE: NO_STATUS,
    Condition.UNDEFINED: UNDEFINED,
    Condition.FAILED: DRIVER,
    Condition.DISCONNECTED: DRIVER,
    Condition.STALE: DRIVER,
    Condition.UNTRUSTED: DRIVER,
}

NO_ALARM = {"severity": int(Severity.NO_ALARM), "status": NO_STATUS, "message": ""}

#: Tells which way up an image is: row 0 has the lowest y, column 0 the lowest x.
ORIGIN = "Origin"
_PIXELS = {"f": "floatValue", "d": "doubleValue"}

_NO_LIMITS = {
    "active": False,
    **{f"{side}{kind}Limit": math.nan for side in ("low", "high") for kind in ("Alarm", "Warning")},
}


class Coder(ABC):
    """Turn readings of one variable into values of one type, and puts into plain values."""

    type: Type

    def __init__(self, variable: Variable) -> None:
        self.variable = variable

    @abstractmethod
    def content(self, value: Any) -> dict[str, Any]:
        """Return the fields that hold a value, which is never None."""

    def fixed(self, limits: PVLimits) -> dict[str, Any]:
        """Return the fields that change only with the limits."""
        return {}

    def received(self, value: Value) -> Any:
        """Return what a client has put, as the runtime takes it.

        Raises:
            ValidationError: if it cannot be taken from the fields that were put.
        """
        if not value.changed("value"):
            raise ValidationError(f"{self.variable.name!r}: nothing was put into 'value'; only 'value' can be written")
        return value["value"]

    def first(self, reading: Reading, limits: PVLimits) -> Value:
        """Return all fields."""
        return Value(self.type, {**self.fixed(limits), **self._sendable(reading)})

    def update(self, reading: Reading) -> Value:
        """Return the fields that a cycle may change; of a value that cannot be sent only the alarm, as INVALID."""
        try:
            return Value(self.type, self._changing(reading))
        except Exception as error:
            return Value(self.type, self._changing(self._unsent(reading, error)))

    def _sendable(self, reading: Reading) -> dict[str, Any]:
        """Return what a cycle may change, checked by making a value of it."""
        try:
            fields = self._changing(reading)
            Value(self.type, fields)
        except Exception as error:
            return self._changing(self._unsent(reading, error))
        return fields

    def _unsent(self, reading: Reading, error: Exception) -> Reading:
        LOG.error("%s cannot be shown: %s", self.variable.name, error)
        return not_shown(reading, self.variable.name, error)

    def _changing(self, reading: Reading) -> dict[str, Any]:
        content = {} if reading.value is None else self.content(reading.value)
        return {"alarm": _alarm(reading), "timeStamp": _stamp(reading.time, reading.cycle), **content}


def _alarm(reading: Reading) -> Mapping[str, Any]:
    if reading.condition is Condition.FINE and not reading.message:
        return NO_ALARM
    status = _STATUS.get(reading.condition, RECORD)
    return {"severity": int(reading.severity), "status": status, "message": sendable(reading.message)}


@lru_cache(maxsize=8)
def _stamp(time: float, cycle: int) -> Mapping[str, Any]:
    """Return a time stamp; all readings of a cycle share it."""
    seconds = math.floor(time)
    return {"secondsPastEpoch": seconds, "nanoseconds": int(1e9 * (time - seconds)), "userTag": cycle & 0x7FFFFFFF}


@cache
def _scalar_type(code: str) -> Type:
    return NTScalar.buildType(code, display=True, control=True, valueAlarm=True, form=True)


@final
class NumberCoder(Coder):
    """Floats and whole numbers: NTScalar with display, control and valueAlarm."""

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable)
        self._number: type[float] | type[int] = int if isinstance(variable, IntVariable) else float
        self.type = _scalar_type("l" if self._number is int else "d")
        self._no_alarm = _NO_LIMITS if self._number is float else {"active": False}

    def content(self, value: Any) -> dict[str, Any]:
        """Return the number."""
        return {"value": value}

    def fixed(self, limits: PVLimits) -> dict[str, Any]:
        """Return units, precision and limits; an end that is open is zero to zero, as clients expect."""
        variable = self.variable
        display: dict[str, Any] = {"description": variable.description, "units": variable.unit}
        display.update(self._ends(limits.display))
        precision = getattr(variable, "precision", None)
        if precision is not None:
            display["precision"] = precision
        if not _closed(*limits.alarm, *limits.warning):
            return {"display": display, "control": self._ends(limits.drive), "valueAlarm": self._no_alarm}
        alarm: dict[str, Any] = {"active": True}
        for kind, ends, severity in (
            ("Alarm", limits.alarm, Severity.MAJOR),
            ("Warning", limits.warning, Severity.MINOR),
        ):
            for side, end in zip(("low", "high"), ends, strict=True):
                if math.isfinite(end):
                    alarm[f"{side}{kind}Limit"], alarm[f"{side}{kind}Severity"] = self._number(end), int(severity)
                else:
                    alarm[f"{side}{kind}Limit"] = math.nan if self._number is float else 0
                    alarm[f"{side}{kind}Severity"] = int(Severity.NO_ALARM)
        return {"display": display, "control": self._ends(limits.drive), "valueAlarm": alarm}

    def _ends(self, ends: tuple[float, float]) -> dict[str, Any]:
        if not _closed(*ends):
            return {"limitLow": 0, "limitHigh": 0}
        biggest = 2.0**62 if self._number is int else 1e308
        low, high = (max(-biggest, min(biggest, end)) for end in ends)
        return {"limitLow": self._number(low), "limitHigh": self._number(high)}


def _closed(*ends: float) -> bool:
    """Tell whether any end is given."""
    return any(map(math.isfinite, ends))


class _PlainCoder(Coder):
    """Share what truth values and texts have in common; not for use outside this file."""

    code = ""

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable)
        self.type = _scalar_type(self.code)

    def content(self, value: Any) -> dict[str, Any]:
        """Return the value."""
        return {"value": value}

    def fixed(self, limits: PVLimits) -> dict[str, Any]:
        """Return the description."""
        return {"display": {"description": self.variable.description, "units": self.variable.unit}}


@final
class BoolCoder(_PlainCoder):
    """Truth values: NTScalar."""

    code = "?"

    def received(self, value: Value) -> bool:
        """Return the truth value."""
        return bool(super().received(value))


@final
class TextCoder(_PlainCoder):
    """Texts: NTScalar."""

    code = "s"

    def content(self, value: str) -> dict[str, Any]:
        """Return the text."""
        return {"value": check_text(value)}


@final
class EnumCoder(Coder):
    """Choices: NTEnum; an index that is no choice is refused."""

    variable: EnumVariable

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable)
        self.type = _enum_type()
        self._options = list(self.variable.options)

    def content(self, value: Any) -> dict[str, Any]:
        """Return the index of the choice."""
        return {"value": {"index": self._options.index(value)}}

    def fixed(self, limits: PVLimits) -> dict[str, Any]:
        """Return the description; the choices are in `first`."""
        return {"display": {"description": self.variable.description}}

    def first(self, reading: Reading, limits: PVLimits) -> Value:
        """Return all fields, the choices too."""
        value = super().first(reading, limits)
        value["value.choices"] = self._options
        return value

    def received(self, value: Value) -> str:
        """Return the choice whose index was put."""
        if not value.changed("value.index"):
            raise ValidationError(f"{self.variable.name!r}: no index was put; expected one of {self._options}")
        index = value["value.index"]
        if not 0 <= index < len(self._options):
            raise ValidationError(
                f"{self.variable.name!r}: there is no choice {index}; expected 0 to {len(self._options) - 1}: "
                + ", ".join(self._options)
            )
        return self._options[index]


@cache
def _enum_type() -> Type:
    return NTEnum.buildType(display=True)


@final
class ArrayCoder(Coder):
    """Arrays of one dimension: NTScalarArray."""

    variable: TorchNDVariable

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable)
        self.type = _scalar_type("ad")

    def content(self, value: Any) -> dict[str, Any]:
        """Return the array."""
        return {"value": value}

    def fixed(self, limits: PVLimits) -> dict[str, Any]:
        """Return description and units."""
        return {"display": {"description": self.variable.description, "units": self.variable.unit}}


@final
class ImageCoder(Coder):
    """Arrays of two dimensions and more: NTNDArray, fastest dimension first, each with a number of its own."""

    variable: TorchNDVariable

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable)
        stamped = NTNDArray()
        self.type = stamped.type
        attributes = {"ColorMode": 0, ORIGIN: "lower", "Units": variable.unit}
        self._attributes = stamped.wrap(np.zeros((1, 1)), attrib=attributes)["attribute"]
        self._dimensions = [
            {"size": size, "offset": 0, "fullSize": size, "binning": 1, "reverse": False}
            for size in reversed(self.variable.shape)
        ]
        self._count = 0

    def content(self, value: np.ndarray) -> dict[str, Any]:
        """Return pixels, dimensions and attributes."""
        self._count = (self._count + 1) & 0x7FFFFFFF
        # An array alone would become the first member of the union, which is of truth values.
        return {
            "value": (_PIXELS[value.dtype.char], value.reshape(-1)),
            "dimension": self._dimensions,
            "attribute": self._attributes,
            "compressedSize": value.nbytes,
            "uncompressedSize": value.nbytes,
            "uniqueId": self._count,
        }

    def _changing(self, reading: Reading) -> dict[str, Any]:
        fields = super()._changing(reading)
        return {**fields, "dataTimeStamp": fields["timeStamp"]}

    def received(self, value: Value) -> np.ndarray:
        """Return the pixels in the shape of the variable."""
        pixels = value["value"]
        if pixels is None:
            raise ValidationError(f"{self.variable.name!r}: no pixels were put into 'value'")
        shape = tuple(reversed([part.size for part in value["dimension"]])) or self.variable.shape
        try:
            return np.asarray(pixels).reshape(shape)
        except ValueError:
            raise ValidationError(
                f"{self.variable.name!r}: received {np.size(pixels)} pixels for an image of {shape}"
            ) from None


@final
class TableCoder(Coder):
    """Bunches and moments: NTTable, a column a coordinate."""

    def __init__(self, variable: Variable) -> None:
        super().__init__(variable)
        columns = tuple(BUNCH_COLUMNS)
        if isinstance(variable, MomentsVariable):
            columns = ("mean", *(f"cov_{name}" for name in MOMENT_ROWS))
        self._columns = columns
        self.type = _table_type(columns)

    def content(self, value: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the columns."""
        return {"value": {name: value[name] for name in self._columns}}

    def fixed(self, limits: PVLimits) -> dict[str, Any]:
        """Return labels and description."""
        return {"labels": list(self._columns), "descriptor": self.variable.description}


@cache
def _table_type(columns: tuple[str, ...]) -> Type:
    return NTTable.buildType([(name, "ad") for name in columns])


def coder(variable: Variable) -> Coder:
    """Return what speaks for a variable."""
    if isinstance(variable, BoolVariable):
        return BoolCoder(variable)
    if isinstance(variable, StrVariable):
        return TextCoder(variable)
    if isinstance(variable, EnumVariable):
        return EnumCoder(variable)
    if isinstance(variable, MomentsVariable | ParticleGroupVariable):
        return TableCoder(variable)
    if isinstance(variable, TorchNDVariable):
        return (ArrayCoder if len(variable.shape) == 1 else ImageCoder)(variable)
    return NumberCoder(variable)
