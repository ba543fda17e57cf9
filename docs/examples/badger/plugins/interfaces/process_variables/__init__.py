"""An interface of Badger for process variables on PVAccess or Channel Access, by lume_diff's clients."""

from __future__ import annotations

import time

from badger import interface
from pydantic import Field, PrivateAttr

from lume_diff.control import ControlClient, Severity
from lume_diff.registry import plugin


class Interface(interface.Interface):
    """Set, read back until the set-points are there, and read results that are not INVALID."""

    name = "process_variables"
    protocol: str = Field("pva", description="pva or ca")
    prefix: str = Field("", description="before every name")
    timeout: float = Field(5.0, description="for answers and for settling [s]")
    tolerance: float = Field(1e-6, description="of a read-back, relative to 1 + |set-point|")

    _client: ControlClient | None = PrivateAttr(default=None)

    @interface.log
    def get_values(self, channel_names: list[str]) -> dict[str, float]:
        """Return numbers by name; one that is INVALID raises with the reason."""
        found = self._connected().get([self.prefix + name for name in channel_names], self.timeout)
        for name, reading in found.items():
            if reading.severity is Severity.INVALID:
                raise RuntimeError(f"{name} is INVALID: {reading.message}")
        return {name: found[self.prefix + name].value for name in channel_names}

    @interface.log
    def set_values(self, channel_inputs: dict[str, float]) -> None:
        """Write all, and wait until the read-backs agree."""
        self._connected().put({self.prefix + name: value for name, value in channel_inputs.items()}, self.timeout)
        end = time.monotonic() + self.timeout
        while True:
            shown = self.get_values(list(channel_inputs))
            wrong = {
                name: shown[name]
                for name, value in channel_inputs.items()
                if abs(shown[name] - value) > self.tolerance * (1.0 + abs(value))
            }
            if not wrong:
                return
            if time.monotonic() > end:
                raise TimeoutError(
                    f"not settled within {self.timeout} s: asked for {channel_inputs}, they show {wrong}"
                )
            time.sleep(0.05)

    def _connected(self) -> ControlClient:
        if self._client is None:
            self._client = plugin("clients", self.protocol)()
        return self._client
