"""ControlClient: read, write and follow process variables, whatever the protocol."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from lume_diff.control.readings import Reading
from lume_diff.registry import plugin

#: Told of every change: name and reading; of a lost connection too, as INVALID and disconnected.
Listener = Callable[[str, Reading], None]


class Subscription(ABC):
    """What follows variables until it is closed."""

    @abstractmethod
    def close(self) -> None:
        """Follow no more; may be called again."""


class ControlClient(ABC):
    """Talk to the process variables of one protocol; safe to use from several threads."""

    @abstractmethod
    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        """Read variables, all at the same time.

        Args:
            names: of the process variables.
            timeout: for all of them together [s].

        Returns:
            Readings by name; one that did not answer is INVALID and disconnected, and has no value.
        """

    @abstractmethod
    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        """Write variables, all at the same time, and wait until the server has done it.

        Args:
            values: by name, in the units of the variables.
            timeout: how long to wait [s].

        Raises:
            ControlError: if any was refused or did not answer; with every name and what its server said.
        """

    @abstractmethod
    def monitor(self, names: Sequence[str], listener: Listener) -> Subscription:
        """Follow variables; one that is away comes back by itself.

        Args:
            names: of the process variables.
            listener: called from the client's threads, one call at a time for each name.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of all connections; may be called again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def client_of(client: str | ControlClient) -> ControlClient:
    """Return a client by the name of its protocol; one that was made already is returned as it is.

    Args:
        client: ``"pva"``, ``"ca"`` or another entry point of ``lume_diff.clients``, or a client.

    Raises:
        ValidationError: if there is none of that name.
        MissingExtraError: without what it needs, p4p or caproto.
    """
    if not isinstance(client, str):
        return client
    made: Callable[[], ControlClient] = plugin("clients", client)
    return made()
