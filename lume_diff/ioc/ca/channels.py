"""Channels: served variables as caproto's kinds of data, whose writes go to the runtime."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping
from typing import Any

from caproto import (
    AlarmSeverity,
    AlarmStatus,
    ChannelAlarm,
    ChannelChar,
    ChannelData,
    ChannelDouble,
    ChannelEnum,
    ChannelInteger,
    SubscriptionType,
    TimeStamp,
)

from lume_diff.control.readings import Condition, Reading, Severity, not_shown
from lume_diff.errors import ValidationError
from lume_diff.ioc.ca.fields import LimitField, field_channel
from lume_diff.ioc.ca.packed import DOUBLE, LONG, Followers, Wire, publish
from lume_diff.ioc.ca.writes import CLIENT, Answering
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.plain import check_text
from lume_diff.ioc.record_fields import FIELDS
from lume_diff.ioc.requests import ignore
from lume_diff.ioc.served import Served
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

LOG = logging.getLogger("lume_diff.ioc.ca")
_STATUS = {
    Condition.FINE: AlarmStatus.NO_ALARM,
    Condition.HIHI: AlarmStatus.HIHI,
    Condition.HIGH: AlarmStatus.HIGH,
    Condition.LOW: AlarmStatus.LOW,
    Condition.LOLO: AlarmStatus.LOLO,
    Condition.UNDEFINED: AlarmStatus.UDF,
    Condition.NOT_FINITE: AlarmStatus.UDF,
    Condition.FAILED: AlarmStatus.CALC,
    Condition.DISCONNECTED: AlarmStatus.COMM,
    Condition.STALE: AlarmStatus.TIMEOUT,
    Condition.UNTRUSTED: AlarmStatus.LINK,
}
_SEVERITY = {severity: AlarmSeverity(int(severity)) for severity in Severity}
_NO_ALARM = {"status": AlarmStatus.NO_ALARM, "severity": AlarmSeverity.NO_ALARM}
_MOST_CHOICES, _LONGEST_CHOICE = 16, 25  # [, bytes]
_LONGEST_UNIT = 8  # [bytes]
_IMAGE = 1024  # elements; larger arrays are treated as images
_BACKLOG, _IMAGE_BACKLOG = 10, 2  # updates of a channel that wait for a client which takes none
_EVERYTHING = SubscriptionType.DBE_VALUE | SubscriptionType.DBE_LOG | SubscriptionType.DBE_ALARM
_BOOL_CHOICES = ("False", "True")
_INT32 = 2**31


class Channel(Answering):
    """Share what all channels of a served variable do; mixed into each of caproto's kinds of data.

    A client's write waits, without holding up any other, until the runtime has published its cycle.
    """

    served: Served
    variable: Variable
    wire: Wire | None = None

    def attach(self, served: Served, variable: Variable) -> None:
        """Say which variable of which served model this is."""
        self.served, self.variable = served, variable
        self._fields: dict[str, ChannelData] = {}
        self.followers: dict[int, Followers] = {}  # by the identity of what they ask for

    def plain(self, value: Any) -> Any:
        """Return what a client has written as the runtime takes it."""
        return value

    def native(self, value: Any) -> Any:
        """Return a plain value as caproto takes it."""
        return value

    def begin(self, reading: Reading) -> None:
        """Take a reading before anybody follows the channel."""
        data: Any = self
        try:
            value = None if reading.value is None else data.preprocess_value(self.native(reading.value))
        except Exception as error:
            value, reading = None, self._unsent(reading, error)
        data.alarm._data.update(_alarm(reading))
        if value is not None:
            data._data["value"] = value
        data._data["timestamp"] = TimeStamp.from_unix_timestamp(reading.time)

    async def show(self, reading: Reading, subscriptions: Any) -> None:
        """Show a reading to those who follow the channel; a value that cannot be sent as INVALID, without it.

        Args:
            reading: of the variable.
            subscriptions: as caproto's context has them.
        """
        try:
            if not self._show_packed(reading, subscriptions):
                await self._show(reading)
        except Exception as error:
            await self._show(self._unsent(reading, error))

    def _show_packed(self, reading: Reading, subscriptions: Any) -> bool:
        """Show a number in a quick way; tells whether that was done."""
        if self.wire is None or reading.value is None:
            return False
        return publish(self, self.native(reading.value), reading.time, _alarm(reading), subscriptions)

    async def _show(self, reading: Reading) -> None:
        """Show a reading in caproto's own way."""
        data: Any = self
        value = data.value if reading.value is None else data.preprocess_value(self.native(reading.value))
        await data.alarm.write(**_alarm(reading), publish=False)
        await data.write(value, verify_value=False, update_fields=False, timestamp=reading.time, flags=_EVERYTHING)

    def _unsent(self, reading: Reading, error: Exception) -> Reading:
        LOG.error("%s cannot be shown: %s", self.variable.name, error)
        return not_shown(reading, self.variable.name, error)

    async def show_limits(self, limits: PVLimits) -> None:
        """Show limits as they are now."""
        data: ChannelData = self
        await data.write_metadata(**(whole_limits_of if isinstance(self, LongChannel) else limits_of)(limits))
        for made in self._fields.values():
            if isinstance(made, LimitField):
                await made.show()

    def writable(self, user: str, host: str) -> bool:
        """Tell whether a client may write."""
        return not self.variable.read_only and self.served.access.allows(user, host)

    def deny(self, value: Any) -> None:
        """Let the runtime refuse it, which logs it."""
        data: Any = self
        self.served.runtime.write({self.variable.name: self.plain(data.preprocess_value(value))}, CLIENT.get(), ignore)

    def unreadable(self, error: Exception) -> None:
        """Let clients know, and show what holds."""
        super().unreadable(error)
        reason = ValidationError(f"{self.variable.name!r}: what was sent cannot be read: {error!r}")
        self.served.runtime.refused([self.variable.name], reason)

    async def write(self, value: Any, *, verify_value: bool = True, **options: Any) -> None:
        """Hand a client's write to the runtime and wait for its cycle; or show a value that needs no verification."""
        data: Any = self
        if not verify_value:
            await super().write(value, verify_value=False, **options)  # type: ignore[misc]
            return
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if finished.cancelled():
                return
            if error is None:
                finished.set_result(None)
            else:
                finished.set_exception(error)

        def done(error: Exception | None, cycle: int) -> None:
            loop.call_soon_threadsafe(tell, error)

        try:
            plain = self.plain(data.preprocess_value(value))
        except ValidationError as error:
            self.served.runtime.refused([self.variable.name], error)
            raise
        self.served.runtime.write({self.variable.name: plain}, CLIENT.get(), done)
        await finished

    def get_field(self, field: str) -> ChannelData:
        """Return a field of the record, made when somebody asks for it."""
        if field in ("", "VAL"):
            return self
        if field not in FIELDS:
            raise KeyError(field)
        if field not in self._fields:
            self._fields[field] = field_channel(self.served, self.variable.name, field)
        return self._fields[field]


class DoubleChannel(Channel, ChannelDouble):
    """A float."""

    wire = DOUBLE


class LongChannel(Channel, ChannelInteger):
    """A whole number of 32 bits."""

    wire = LONG

    def native(self, value: int) -> int:
        """Return the number, if it has no more bits."""
        if not -_INT32 <= value < _INT32:
            raise ValidationError(f"{value} needs more than the 32 bits of a whole number on Channel Access")
        return value


class WideChannel(Channel, ChannelDouble):
    """A whole number that may need more than 32 bits, as a double."""

    wire = DOUBLE

    def plain(self, value: Any) -> Any:
        """Return the whole number."""
        if float(value) != math.floor(value):
            raise ValidationError(f"{self.variable.name!r}: {value} is no whole number")
        return int(value)

    def native(self, value: int) -> float:
        """Return the number as a double, if it is the same there."""
        if int(float(value)) != value:
            raise ValidationError(f"{value} needs more digits than a double on Channel Access has")
        return float(value)


class ChoiceChannel(Channel, ChannelEnum):
    """An enumeration, or a truth value as an enumeration of two."""

    def plain(self, value: Any) -> Any:
        """Return the word, or the truth value; caproto gives an index where it knows no word for it."""
        choices = list(self.enum_strings)
        if not isinstance(value, str):
            if not 0 <= value < len(choices):
                raise ValidationError(f"{self.variable.name!r}: there is no choice {value} of {choices}")
            value = choices[int(value)]
        return value == _BOOL_CHOICES[1] if isinstance(self.variable, BoolVariable) else value

    def native(self, value: Any) -> Any:
        """Return the word."""
        return _BOOL_CHOICES[value] if isinstance(value, bool) else value


class TextChannel(Channel, ChannelChar):
    """A text, as a waveform of characters."""

    def native(self, value: str) -> str:
        """Return the text, if it can be carried."""
        return check_text(value)

    async def write_from_dbr(self, data: Any, *args: Any, **options: Any) -> None:
        """Take a text from the wire; caproto cannot convert one that is empty, and takes any length."""
        longest = self.served.longest_text
        if len(data) > longest:
            raise ValueError(f"it takes texts of at most {longest} bytes, received {len(data)}")
        if any(data):
            await super().write_from_dbr(data, *args, **options)
        else:
            await self.write("")


class ArrayChannel(Channel, ChannelDouble):
    """An array, row after row."""

    variable: TorchNDVariable

    def plain(self, value: Any) -> Any:
        """Return the array in the shape of the variable, where the number of elements fits."""
        import numpy as np

        flat = np.atleast_1d(np.asarray(value, dtype=np.float64))
        return flat.reshape(self.variable.shape) if flat.size == math.prod(self.variable.shape) else flat

    def native(self, value: Any) -> Any:
        """Return all elements."""
        return value.reshape(-1)


def _alarm(reading: Reading) -> Mapping[str, int]:
    if reading.condition is Condition.FINE and reading.severity is Severity.NO_ALARM:
        return _NO_ALARM
    return {"status": _STATUS[reading.condition], "severity": _SEVERITY[reading.severity]}


def limits_of(limits: PVLimits) -> dict[str, float]:
    """Return limits as Channel Access has them; a range that is open is zero to zero there."""
    found: dict[str, float] = {}
    for ours, theirs in (("display", "disp"), ("drive", "ctrl"), ("alarm", "alarm"), ("warning", "warning")):
        low, high = getattr(limits, ours)
        is_open = math.isinf(low) and math.isinf(high)
        found[f"lower_{theirs}_limit"], found[f"upper_{theirs}_limit"] = (0.0, 0.0) if is_open else (low, high)
    return found


def whole_limits_of(limits: PVLimits) -> dict[str, int]:
    """Return limits as whole numbers of 32 bits, the smallest or largest of them for an end that is open."""
    return {name: int(min(max(end, -_INT32), _INT32 - 1)) for name, end in limits_of(limits).items()}


def is_carried(variable: Variable) -> bool:
    """Tell whether Channel Access can carry a variable: all but beams.

    Raises:
        ValidationError: for an enumeration with more choices, or longer ones, than Channel Access has.
    """
    if isinstance(variable, EnumVariable) and len(variable.options) > _MOST_CHOICES:
        raise ValidationError(
            f"{variable.name!r} has {len(variable.options)} choices and Channel Access carries at most "
            f"{_MOST_CHOICES}: serve it on PVAccess only, or leave it out"
        )
    if isinstance(variable, EnumVariable):
        long = [choice for choice in variable.options if len(choice.encode()) > _LONGEST_CHOICE]
        if long:
            raise ValidationError(
                f"{variable.name!r} has the choice {long[0]!r} and Channel Access carries words of at most "
                f"{_LONGEST_CHOICE} bytes: shorten it, serve it on PVAccess only, or leave it out"
            )
    return not isinstance(variable, MomentsVariable | ParticleGroupVariable)


def channel(served: Served, variable: Variable) -> Any:
    """Return the channel of a variable, with what is shown of it now."""
    made = _made(variable, served.limits[variable.name], served.longest_text)
    made.attach(served, variable)
    made.begin(served.runtime.reading(variable.name))
    return made


def _made(variable: Variable, limits: PVLimits, longest_text: int) -> Any:
    size = math.prod(variable.shape) if isinstance(variable, TorchNDVariable) else 1
    options: dict[str, Any] = {
        "alarm": ChannelAlarm(status=AlarmStatus.UDF, severity=AlarmSeverity.INVALID_ALARM),
        "reported_record_type": "ai" if variable.read_only else "ao",
        "max_subscription_backlog": _BACKLOG if size <= _IMAGE else _IMAGE_BACKLOG,
        "string_encoding": "utf-8",
    }
    units = variable.unit.encode()[:_LONGEST_UNIT].decode(errors="ignore")
    if isinstance(variable, BoolVariable):
        return ChoiceChannel(value=_BOOL_CHOICES[0], enum_strings=list(_BOOL_CHOICES), **options)
    if isinstance(variable, EnumVariable):
        return ChoiceChannel(value=variable.options[0], enum_strings=list(variable.options), **options)
    if isinstance(variable, StrVariable):
        return TextChannel(value="", max_length=longest_text, **options)
    if isinstance(variable, TorchNDVariable):
        return ArrayChannel(value=[0.0] * size, max_length=size, units=units, **options)
    if isinstance(variable, IntVariable):
        low, high = variable.value_range or (-math.inf, math.inf)
        if low < -_INT32 or high >= _INT32:
            return WideChannel(value=0.0, units=units, **limits_of(limits), **options)
        return LongChannel(value=0, units=units, **whole_limits_of(limits), **options)
    precision = getattr(variable, "precision", None) or 0
    return DoubleChannel(value=0.0, units=units, precision=precision, **limits_of(limits), **options)
