"""What a control system's server is given, and what it has to be: one file of its own, one entry point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

from lume_diff.ioc.access import Access
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.publisher import Publisher
from lume_diff.variables import Variable

if TYPE_CHECKING:
    from lume_diff.ioc.response_matrix import ResponseMatrix
    from lume_diff.ioc.runtime import Runtime


#: The address that only this machine reaches.
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Served:
    """A model as servers see it.

    Attributes:
        runtime: takes writes and has the readings.
        limits: of every variable, as they are now.
        prefix: of every PV's name.
        interface: address to listen on.
        access: which clients may write; the runtime asks it.
        settings: of the protocols by name, as their environment variables; what is not there is taken from those.
        longest_text: that may be written to a text [bytes].
        response: the response matrix, where it is kept.
    """

    runtime: Runtime
    limits: LimitStore
    prefix: str = ""
    interface: str = LOOPBACK
    access: Access = field(default_factory=Access)
    settings: Mapping[str, str] = field(default_factory=dict)
    longest_text: int = 1 << 16
    response: ResponseMatrix | None = None

    @property
    def read_only(self) -> bool:
        """Whether all writes are refused."""
        return self.access.read_only

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What is served, by name without the prefix."""
        return MappingProxyType(self.runtime.variables)


class ControlServer(Publisher):
    """Show a served model to the clients of one control system.

    A server takes nothing but ``Served``; it hands writes to the runtime, which answers later, and never waits.

    Args:
        served: what to show.
    """

    def __init__(self, served: Served) -> None:
        self.served = served

    def elsewhere(self, patience: float) -> set[str]:
        """Return the full names for which another server answers within some time [s], before this one is online."""
        return set()

    @abstractmethod
    def start(self, others: Sequence[Self] = ()) -> None:
        """Make every PV and go online; the first evaluation may be yet to come.

        Args:
            others: servers of the same kind that are not started themselves: their PVs are shown at the same ports.
        """

    @abstractmethod
    def stop(self) -> None:
        """Go offline; may be called again."""
