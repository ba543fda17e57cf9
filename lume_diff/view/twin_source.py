"""TwinSource: a model that follows a served machine, and what the machine's instruments read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Self, final

from lume_diff.control.client import ControlClient
from lume_diff.control.readings import Reading, Update
from lume_diff.errors import ReadOnlyError, ValidationError
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.live_twin import LiveTwin
from lume_diff.ioc.publisher import Publisher
from lume_diff.models import LUMEModel
from lume_diff.variables import Variable
from lume_diff.view.latest import Latest
from lume_diff.view.pv_source import PVSource, aged
from lume_diff.view.source import Source, Told

_CLIENT_PATIENCE = 0.5  # [s]


@final
class TwinSource(Source):
    """Follow the inputs of a server with a model, and show its outputs as measured beside the model's own.

    Nothing can be written: neither to the machine, nor past it to the model.

    Args:
        model: with the names of the machine.
        prefix: of the machine's server.
        client: ``"pva"``, ``"ca"`` or another entry point of ``lume_diff.clients``, or a client.
        isolation, timeout: of the model, see `ModelSource`.
        title: what is shown, in a few words.
        sensitivity: whether derivatives are worked out also where they take runs of a simulator.
    """

    def __init__(
        self,
        model: LUMEModel,
        prefix: str,
        client: str | ControlClient = "pva",
        isolation: str = "process",
        timeout: float | None = None,
        title: str = "",
        sensitivity: bool = False,
    ) -> None:
        super().__init__(sensitivity=sensitivity)
        self._model, self._prefix, self._client = model, prefix, client
        self._options: dict[str, Any] = {"isolation": isolation, "timeout": timeout, "search": 0.0}
        self._machine = PVSource(prefix, client)
        self._trusted = _Trusted(self._latest, self.variables)
        self._title = f"{title or type(model).__name__} following {self._machine.title}"
        self._twin: LiveTwin | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="view measured", daemon=True)

    @property
    def title(self) -> str:
        """What is shown, in a few words."""
        return self._title

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the model takes and gives."""
        return self._model.supported_variables

    @property
    def model(self) -> LUMEModel:
        """The model."""
        return self._model

    def limits(self, name: str) -> PVLimits:
        """Return the limits of a variable as they are now."""
        if self._twin is None:
            return PVLimits.of(self.variables[name])
        return self._twin.server.limits[name]

    def start(self) -> Self:
        """Ask the machine what it has, and follow it.

        Raises:
            ControlError: if no server of lume-diff answers.
            ValidationError: if the model has no input with a name of the machine.
        """
        if self._twin is not None:
            return self
        self._machine.start()
        shared = [
            name for name in self._machine.inputs if name in self.variables and not self.variables[name].read_only
        ]
        if not shared:
            raise ValidationError(f"no input of the model has the name of an input of {self._machine.title}")
        links = {name: self._prefix + name for name in shared}
        self._twin = LiveTwin(self._model, links, client=self._client, **self._options)
        runtime = self._twin.server.runtime
        runtime.add(self._trusted)
        self._trusted.take({name: runtime.reading(name) for name in self.variables})
        self._take_measured()
        self._twin.start()
        self._thread.start()
        return self

    def close(self) -> None:
        """Follow no more."""
        self._end.set()
        self._close_background()
        if self._thread.is_alive():
            self._thread.join()
        if self._twin is not None:
            self._twin.stop()
        self._machine.close()

    def _follow(self) -> None:
        version = -1
        while not self._end.is_set():
            newer = self._machine.wait(version, _CLIENT_PATIENCE)
            if newer != version:
                version = newer
                self._take_measured()

    def _take_measured(self) -> None:
        frame = self._machine.latest()
        measured = {name: one for name, one in frame.readings.items() if name in self.variables}
        self._latest.take_measured(measured, frame.good_until)
        self._trusted.note_silence(self._machine.silent_since)

    def _write(self, values: Mapping[str, Any], client: str, done: Told) -> None:
        raise ReadOnlyError("a model that follows a machine cannot be written to")

    def _restore(self, setpoints: Mapping[str, Any], client: str, done: Told) -> None:
        raise ReadOnlyError("a model that follows a machine cannot be written to")


class _Trusted(Publisher):
    """Hand on what the model says, as INVALID while the machine that it follows is silent.

    A twin by itself looks for a machine that has fallen silent every some seconds only.
    """

    def __init__(self, latest: Latest, names: Mapping[str, Variable]) -> None:
        self._latest, self._names = latest, names
        self._held: dict[str, Reading] = {}
        self._silent_since: float | None = None
        self._lock = threading.Lock()

    def publish(self, update: Update) -> None:
        """Hand on an update."""
        self.take({name: reading for name, reading in update.readings.items() if name in self._names})

    def limits_changed(self, name: str) -> None:
        """Show them."""
        self._latest.touch()

    def take(self, readings: Mapping[str, Reading]) -> None:
        """Hand on readings."""
        with self._lock:
            self._held.update(readings)
            if readings:
                self._latest.take(aged(readings, self._silent_since))

    def note_silence(self, since: float | None) -> None:
        """Note since when the machine is silent [s since 1970]; None if it is not."""
        with self._lock:
            if (since is None) is not (self._silent_since is None):
                self._silent_since = since
                self._latest.take(aged(self._held, since))
