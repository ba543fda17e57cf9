"""ModelSource: a model in this process, or in one that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, final

from lume_diff.control.readings import Update
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.publisher import Publisher
from lume_diff.ioc.server import Isolation, Server
from lume_diff.models import LUMEModel
from lume_diff.variables import Variable
from lume_diff.view.latest import Latest
from lume_diff.view.source import Source, Told


@final
class ModelSource(Source):
    """Show a model through the runtime that serves it, with its alarms and limits, and without a protocol.

    Args:
        model: any model, at the set-points that it is to begin with.
        writable: whether viewers may write to it; code in this process always may.
        isolation: ``"thread"``: what is written to the model in this process shows. ``"process"``: a copy of it runs in
            a process of its own, so that neither slows down the other; ``model`` stays at its set-points then.
        timeout: longest time of one evaluation [s]; with ``"process"`` only.
        title: what is shown, in a few words.
        sensitivity: whether derivatives are worked out also where they take runs of a simulator.

    Raises:
        ValidationError: for an unknown isolation, or a timeout without a process.
    """

    def __init__(
        self,
        model: LUMEModel,
        writable: bool = False,
        isolation: Isolation = "thread",
        timeout: float | None = None,
        title: str = "",
        sensitivity: bool = False,
    ) -> None:
        super().__init__(writable, sensitivity)
        self._model, self._title = model, title or type(model).__name__
        self._server = Server(model, protocols=(), isolation=isolation, timeout=timeout, search=0.0)
        self._server.runtime.add(Tell(self._latest, model.supported_variables))
        self._names = model.supported_variables
        self._started = False

    @property
    def title(self) -> str:
        """What is shown, in a few words."""
        return self._title

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the model takes and gives."""
        return self._names

    @property
    def model(self) -> LUMEModel:
        """The model."""
        return self._model

    def limits(self, name: str) -> PVLimits:
        """Return the limits of a variable as they are now."""
        return self._server.limits[name]

    def start(self) -> Self:
        """Evaluate the model for the first time; returns at once, with the outputs undefined until then."""
        if not self._started:
            self._started = True
            runtime = self._server.runtime
            self._latest.take({name: runtime.reading(name) for name in self._names})
            self._server.start()
        return self

    def wait_ready(self, timeout: float | None = None) -> Self:
        """Wait for the first evaluation.

        Raises:
            TimeoutError: if it takes longer than ``timeout`` [s].
        """
        self._server.wait_ready(timeout)
        return self

    def close(self) -> None:
        """Evaluate no more, and end the model's process."""
        self._close_background()
        self._server.stop()

    def _write(self, values: Mapping[str, Any], client: str, done: Told) -> None:
        self._server.runtime.write(values, client, lambda error, cycle: done(error))

    def _restore(self, setpoints: Mapping[str, Any], client: str, done: Told) -> None:
        self._server.runtime.restore(setpoints, client, lambda error, cycle: done(error))


class Tell(Publisher):
    """Hand on what is published of the model's variables."""

    def __init__(self, latest: Latest, names: Mapping[str, Variable]) -> None:
        self._latest, self._names = latest, names

    def publish(self, update: Update) -> None:
        """Hand on an update."""
        found = {name: reading for name, reading in update.readings.items() if name in self._names}
        if found:
            self._latest.take(found)

    def limits_changed(self, name: str) -> None:
        """Show them."""
        self._latest.touch()
