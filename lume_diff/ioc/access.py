"""Access: who may write to a served model, and how much."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lume_diff.errors import ReadOnlyError, ValidationError

LOG = logging.getLogger("lume_diff.ioc")


@dataclass(frozen=True, slots=True)
class Access:
    """Tell whether a client may write.

    This guards against mistakes and not against attackers: a user's name, and on Channel Access the host's too, is
    whatever the client claims.

    Attributes:
        read_only: whether nobody may.
        hosts: names and addresses that may; anybody's if None.
        users: that may; anybody if None.
        largest_array: elements of an array that is taken.
    """

    read_only: bool = False
    hosts: frozenset[str] | None = None
    users: frozenset[str] | None = None
    largest_array: int = 10_000_000

    @classmethod
    def of(
        cls, read_only: bool, allow: Mapping[str, Iterable[str] | None] | None, largest_array: int = 10_000_000
    ) -> Access:
        """Return what ``{"hosts": [...], "users": [...]}`` says; hosts go by their addresses too."""
        hosts, users = (None if allow is None else allow.get(key) for key in ("hosts", "users"))
        return cls(
            read_only,
            None if hosts is None else frozenset(name for host in hosts for name in _names_of(host)),
            None if users is None else frozenset(users),
            largest_array,
        )

    def allows(self, user: str, host: str) -> bool:
        """Tell whether a user at a host may write."""
        return (
            not self.read_only
            and (self.hosts is None or host in self.hosts)
            and (self.users is None or user in self.users)
        )

    def check(self, client: str, values: Mapping[str, Any]) -> None:
        """Refuse what a client may not write.

        Args:
            client: ``user@host`` or ``user@host:port``; anything else is code in this process, which may all.
            values: what it wants to write, by name.

        Raises:
            ReadOnlyError: if it may not.
            ValidationError: for an array that is too large.
        """
        user, at, peer = client.rpartition("@")
        host = (peer.rpartition(":")[0] if peer.count(":") == 1 or "]:" in peer else peer).strip("[]")
        if at and self.read_only:
            raise ReadOnlyError(f"{', '.join(values)}: this server is read-only")
        if at and not self.allows(user, host):
            raise ReadOnlyError(f"{', '.join(values)}: {user} at {host} is not among those who may write here")
        for name, value in values.items():
            size = len(value) if isinstance(value, list | tuple) else getattr(value, "size", 1)
            if isinstance(size, int) and size > self.largest_array:
                raise ValidationError(f"{name!r}: {size} elements were sent; at most {self.largest_array} are taken")


def _names_of(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        LOG.warning("%s in the list of hosts that may write has no address here; it goes by its name only", host)
        found = []
    return {host, *(str(entry[4][0]) for entry in found)}
