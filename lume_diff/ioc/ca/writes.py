"""Answering: what a client that writes gets, whatever goes wrong."""

from __future__ import annotations

import contextvars
import logging
from typing import Any

from caproto import AccessRights, CaprotoError, CAStatus

from lume_diff.errors import LumeDiffError, ReadOnlyError

LOG = logging.getLogger("lume_diff.ioc.ca")

#: Who writes, as the client says.
CLIENT: contextvars.ContextVar[str] = contextvars.ContextVar("client", default="")

DENIED = int(CAStatus.ECA_NOWTACCESS.value.code_with_severity)
FAILED = int(CAStatus.ECA_PUTFAIL.value.code_with_severity)
DONE = int(CAStatus.ECA_NORMAL.value.code_with_severity)


class Answering:
    """Answer every write with a status; mixed into caproto's kinds of data.

    An exception would become an error message that belongs to no request, and a client that waits would wait on.
    """

    def writable(self, user: str, host: str) -> bool:
        """Tell whether a client may write."""
        return False

    def deny(self, value: Any) -> None:
        """Note a write by a client that may not."""

    def unreadable(self, error: Exception) -> None:
        """Note that what a client has sent cannot be taken for a value."""
        LOG.warning("refused %s: what it has sent cannot be read: %r", CLIENT.get(), error)

    def check_access(self, hostname: str | None, username: str | None) -> AccessRights:
        """Tell a client what it may do."""
        may_write = self.writable(username or "", hostname or "")
        return AccessRights.READ | AccessRights.WRITE if may_write else AccessRights.READ

    async def auth_write(self, hostname: str, username: str, value: Any, *args: Any, **options: Any) -> int:
        """Take a write; returns the status that the client is to get."""
        CLIENT.set(f"{username}@{hostname}")
        try:
            if AccessRights.WRITE not in self.check_access(hostname, username):
                self.deny(value)
                return DENIED
            await super().auth_write(hostname, username, value, *args, **options)  # type: ignore[misc]
        except ReadOnlyError:
            return DENIED
        except LumeDiffError as error:  # the runtime has logged it
            LOG.debug("%s gets no reason: %s", CLIENT.get(), error)
            return FAILED
        except (CaprotoError, ValueError, TypeError, OverflowError) as error:
            self.unreadable(error)
            return FAILED
        return DONE
