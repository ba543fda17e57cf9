"""ResponseMatrix: derivatives of the scalar outputs with respect to the scalar inputs, kept up to date."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from lume_diff.control.readings import Update
from lume_diff.ioc.jacobian_job import JacobianJob, JacobianResult
from lume_diff.ioc.plain import same
from lume_diff.ioc.publisher import Publisher
from lume_diff.variables import TorchScalarVariable

if TYPE_CHECKING:
    from lume_diff.ioc.runtime import Runtime

LOG = logging.getLogger("lume_diff.ioc")
_MOST_RUNS, _MOST_SECONDS = 10_000, 600.0


@final
class ResponseMatrix(Publisher):
    """Differentiate anew after every change of an input, while nobody waits for the model.

    Args:
        runtime: of the served model.
    """

    def __init__(self, runtime: Runtime) -> None:
        scalars = {name: v for name, v in runtime.model_variables.items() if isinstance(v, TorchScalarVariable)}
        self.outputs = [name for name, variable in scalars.items() if variable.read_only]
        self.inputs = [name for name, variable in scalars.items() if not variable.read_only]
        self._moving = {name for name, variable in runtime.model_variables.items() if not variable.read_only}
        self.result: JacobianResult | None = None
        self._runtime = runtime
        self._listeners: list[Callable[[JacobianResult | Exception], None]] = []
        self._lock = threading.Lock()
        self._working, self._stale = False, False
        self._known: dict[str, Any] = {}  # values of inputs, as they were published last

    def listen(self, listener: Callable[[JacobianResult | Exception], None]) -> None:
        """Be told of every new matrix, or why there is none, in the runtime's thread."""
        self._listeners.append(listener)

    def publish(self, update: Update) -> None:
        """Begin anew if an input has changed: after a refused write one is published as it was."""
        if not self.outputs:
            return
        values = {name: reading.value for name, reading in update.readings.items() if name in self._moving}
        with self._lock:
            if all(name in self._known and same(value, self._known[name]) for name, value in values.items()):
                return
            self._known |= values
            self._stale = True
            if self._working:
                return
            self._working = True
        self._begin()

    def _begin(self) -> None:
        self._stale = False
        job = JacobianJob(self._runtime, self.outputs, self.inputs, _MOST_RUNS, _MOST_SECONDS, self._done)
        self._runtime.when_idle(job)

    def _done(self, result: JacobianResult | Exception) -> None:
        if isinstance(result, Exception):
            LOG.warning("the response matrix is not updated: %s", result)
            with self._lock:
                self._known = {}  # whatever is published next is a reason to try again
        else:
            self.result = result
        for listener in self._listeners:
            listener(result)
        with self._lock:
            self._working = self._stale
            again = self._working
        if again:
            self._begin()
