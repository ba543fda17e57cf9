"""Fields of a record on Channel Access: limits, which may be changed where that is allowed, and texts."""

from __future__ import annotations

import asyncio
from typing import Any

from caproto import ChannelDouble, ChannelInteger, ChannelString

from lume_diff.ioc.ca.writes import CLIENT, Answering
from lume_diff.ioc.record_fields import read_field, write_field
from lume_diff.ioc.served import Served

_LONGEST_STRING = 39  # [bytes]


class LimitField(Answering, ChannelDouble):
    """A limit; what is written to it changes the limit for every protocol."""

    served: Served
    name: str
    field: str

    def writable(self, user: str, host: str) -> bool:
        """Tell whether a client may change the limit."""
        return self.served.limits.changeable(self.name) and self.served.access.allows(user, host)

    async def write(self, value: Any, *, verify_value: bool = True, **options: Any) -> None:
        """Change the limit, which then comes back to be shown; or show what needs no verification."""
        if not verify_value:
            await super().write(value, verify_value=False, **options)
            return
        number = float(self.preprocess_value(value))
        await asyncio.to_thread(write_field, self.served, self.name, self.field, number, CLIENT.get())

    async def show(self) -> None:
        """Show the limit as it is now."""
        await self.write(read_field(self.served, self.name, self.field), verify_value=False)


class NumberField(Answering, ChannelInteger):
    """A whole number that is fixed."""


class TextField(Answering, ChannelString):
    """A description or unit."""


def field_channel(served: Served, name: str, field: str) -> LimitField | NumberField | TextField:
    """Return a channel for one field of a variable."""
    value = read_field(served, name, field)
    if isinstance(value, str):
        short = value.encode()[:_LONGEST_STRING].decode(errors="ignore")
        return TextField(value=short, string_encoding="utf-8")
    if isinstance(value, int):
        return NumberField(value=value)
    made = LimitField(value=value)
    made.served, made.name, made.field = served, name, field
    return made
