"""What a control system's server is given, and what it has to be: one file of its own, one entry point."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.publisher import Publisher
from lume_diff.variables import Variable

if TYPE_CHECKING:
    from lume_diff.ioc.runtime import Runtime


@dataclass(frozen=True, slots=True)
class Served:
    """A model as servers see it.

    Attributes:
        runtime: takes writes and has the readings.
        limits: of every variable, as they are now.
        prefix: of every PV's name.
        interface: address to listen on.
        read_only: whether all writes are refused.
    """

    runtime: Runtime
    limits: LimitStore
    prefix: str = ""
    interface: str = "127.0.0.1"
    read_only: bool = False

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

    @abstractmethod
    def start(self) -> None:
        """Make every PV and go online; the first evaluation may be yet to come."""

    @abstractmethod
    def stop(self) -> None:
        """Go offline; may be called again."""
