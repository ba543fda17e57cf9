"""Channels: served variables as caproto's kinds of data, whose writes go to the runtime."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Sequence
from typing import Any

from caproto import (
    AccessRights,
    AlarmSeverity,
    AlarmStatus,
    CaprotoError,
    CAStatus,
    ChannelAlarm,
    ChannelChar,
    ChannelData,
    ChannelDouble,
    ChannelEnum,
    ChannelInteger,
    ChannelString,
    SubscriptionType,
)

from lume_diff.control.readings import Condition, Reading
from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.record_fields import FIELDS, read_field, write_field
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
_MOST_CHOICES = 16
_TEXT_LENGTH = 1024
_IMAGE_BACKLOG = 2  # updates that wait for a client which takes none
_EVERYTHING = SubscriptionType.DBE_VALUE | SubscriptionType.DBE_LOG | SubscriptionType.DBE_ALARM
#: Who writes, as the client says.
_client: contextvars.ContextVar[str] = contextvars.ContextVar("client", default="")

_BOOL_CHOICES = ("False", "True")
_INT32 = 2**31


class Channel:
    """Share what all channels of a served variable do; mixed into each of caproto's kinds of data.

    A client's write waits, without holding up any other, until the runtime has published its cycle.
    """

    served: Served
    variable: Variable

    def attach(self, served: Served, variable: Variable) -> None:
        """Say which variable of which served model this is."""
        self.served, self.variable = served, variable

    def plain(self, value: Any) -> Any:
        """Return what a client has written as the runtime takes it."""
        return value

    def native(self, value: Any) -> Any:
        """Return a plain value as caproto takes it."""
        return value

    async def show(self, reading: Reading) -> None:
        """Show a reading."""
        data: ChannelData = self
        await data.alarm.write(
            status=_STATUS[reading.condition], severity=AlarmSeverity(int(reading.severity)), publish=False
        )
        value = data.value if reading.value is None else self.native(reading.value)
        await data.write(value, verify_value=False, update_fields=False, timestamp=reading.time, flags=_EVERYTHING)

    async def show_limits(self, limits: PVLimits) -> None:
        """Show limits as they are now."""
        data: ChannelData = self
        await data.write_metadata(**limits_of(limits))

    def check_access(self, hostname: str, username: str) -> AccessRights:
        """Tell a client what it may do."""
        is_fixed = self.variable.read_only or self.served.read_only
        return AccessRights.READ if is_fixed else AccessRights.READ | AccessRights.WRITE

    async def auth_write(self, hostname: str, username: str, *args: Any, **options: Any) -> int:
        """Note who writes, on the way to `write`; returns the status that the client is to get.

        An exception would become an error message that belongs to no request, and a client that waits would wait on.
        """
        _client.set(f"{username}@{hostname}")
        if AccessRights.WRITE not in self.check_access(hostname, username):
            return int(CAStatus.ECA_NOWTACCESS.value.code_with_severity)
        try:
            await super().auth_write(hostname, username, *args, **options)  # type: ignore[misc]
        except (LumeDiffError, CaprotoError, ValueError, TypeError):  # the runtime has logged it, or it is no value
            return int(CAStatus.ECA_PUTFAIL.value.code_with_severity)
        return int(CAStatus.ECA_NORMAL.value.code_with_severity)

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

        plain = self.plain(data.preprocess_value(value))
        self.served.runtime.write({self.variable.name: plain}, _client.get(), done)
        await finished

    def get_field(self, field: str) -> ChannelData:
        """Return a field of the record, made when somebody asks for it."""
        if field in ("", "VAL"):
            return self
        if field not in FIELDS:
            raise KeyError(field)
        return field_channel(self.served, self.variable.name, field)


class DoubleChannel(Channel, ChannelDouble):
    """A float."""


class LongChannel(Channel, ChannelInteger):
    """A whole number of 32 bits."""


class WideChannel(Channel, ChannelDouble):
    """A whole number that may need more than 32 bits, as a double."""

    def plain(self, value: Any) -> Any:
        """Return the whole number."""
        if float(value) != math.floor(value):
            raise ValidationError(f"{self.variable.name!r}: {value} is no whole number")
        return int(value)

    def native(self, value: Any) -> float:
        """Return the number as a double."""
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

    async def write_from_dbr(self, data: Any, *args: Any, **options: Any) -> None:
        """Take a text from the wire; caproto cannot convert one that is empty."""
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


class FieldDouble(ChannelDouble):
    """A limit as a field; what is written to it changes the limit for every protocol."""

    write_to: Any = None

    async def verify_value(self, data: Any) -> Any:
        """Change the limit, where that is allowed."""
        (number,) = data if hasattr(data, "__len__") else (data,)
        await asyncio.to_thread(self.write_to, float(number))
        return data

    def check_access(self, hostname: str, username: str) -> AccessRights:
        """Tell a client what it may do."""
        return AccessRights.READ if self.write_to is None else AccessRights.READ | AccessRights.WRITE


class FieldText(ChannelString):
    """A description or unit as a field."""

    def check_access(self, hostname: str, username: str) -> AccessRights:
        """Tell a client that it may read."""
        return AccessRights.READ


def field_channel(served: Served, name: str, field: str) -> ChannelData:
    """Return a channel for one field of a variable."""
    value = read_field(served, name, field)
    if isinstance(value, str):
        return FieldText(value=value[:39])
    made = FieldDouble(value=float(value))
    if served.limits.changeable(name) and not served.read_only and not isinstance(value, int):
        made.write_to = lambda number: write_field(served, name, field, number)
    return made


def limits_of(limits: PVLimits) -> dict[str, float]:
    """Return limits as Channel Access has them; a range that is open is zero to zero there."""
    found: dict[str, float] = {}
    for ours, theirs in (("display", "disp"), ("drive", "ctrl"), ("alarm", "alarm"), ("warning", "warning")):
        low, high = getattr(limits, ours)
        is_open = math.isinf(low) and math.isinf(high)
        found[f"lower_{theirs}_limit"], found[f"upper_{theirs}_limit"] = (0.0, 0.0) if is_open else (low, high)
    return found


def channel(served: Served, variable: Variable) -> ChannelData | None:
    """Return the channel of a variable, None for a beam, which Channel Access cannot carry.

    Raises:
        ValidationError: for an enumeration with more choices than Channel Access has.
    """
    made = _made(variable, served.limits[variable.name])
    if made is not None:
        made.attach(served, variable)
    return made


def _made(variable: Variable, limits: PVLimits) -> Any:
    options: dict[str, Any] = {
        "alarm": ChannelAlarm(status=AlarmStatus.UDF, severity=AlarmSeverity.INVALID_ALARM),
        "reported_record_type": "ai" if variable.read_only else "ao",
    }
    if isinstance(variable, MomentsVariable | ParticleGroupVariable):
        return None
    if isinstance(variable, BoolVariable):
        return ChoiceChannel(value=_BOOL_CHOICES[0], enum_strings=list(_BOOL_CHOICES), **options)
    if isinstance(variable, EnumVariable):
        _check_choices(variable.name, variable.options)
        return ChoiceChannel(value=variable.options[0], enum_strings=list(variable.options), **options)
    if isinstance(variable, StrVariable):
        return TextChannel(value="", max_length=_TEXT_LENGTH, string_encoding="utf-8", **options)
    if isinstance(variable, TorchNDVariable):
        size = math.prod(variable.shape)
        backlog = {"max_subscription_backlog": _IMAGE_BACKLOG} if size > _TEXT_LENGTH else {}
        return ArrayChannel(value=[0.0] * size, max_length=size, units=variable.unit, **options, **backlog)
    ends = limits_of(limits)
    if isinstance(variable, IntVariable):
        low, high = variable.value_range or (-math.inf, math.inf)
        if low < -_INT32 or high >= _INT32:
            return WideChannel(value=0.0, units=variable.unit, **ends, **options)
        return LongChannel(value=0, units=variable.unit, **{k: int(v) for k, v in ends.items()}, **options)
    precision = getattr(variable, "precision", None) or 0
    return DoubleChannel(value=0.0, units=variable.unit, precision=precision, **ends, **options)


def _check_choices(name: str, choices: Sequence[str]) -> None:
    if len(choices) > _MOST_CHOICES:
        raise ValidationError(
            f"{name!r} has {len(choices)} choices and Channel Access carries at most {_MOST_CHOICES}: serve it on "
            "PVAccess only, or leave it out"
        )
