"""ThreadEngine: a served model in the server's own process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

from lume_diff.ioc.engine import Engine, Evaluated
from lume_diff.ioc.model_host import ModelHost
from lume_diff.models import LUMEModel
from lume_diff.variables import Variable


@final
class ThreadEngine(Engine):
    """Run a model in the thread that asks for it; what is written to the model elsewhere in the process shows too.

    Args:
        model: any model.
        names: the variables that are served.
    """

    def __init__(self, model: LUMEModel, names: Sequence[str]) -> None:
        self._model = model
        self._host = ModelHost(model, names)
        self._is_ours = threading.local()
        self._forget: Callable[[], None] | None = None

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the model takes and gives."""
        return self._model.supported_variables

    def start(self) -> None:
        """Nothing to do: the model is here."""

    def evaluate(self, values: Mapping[str, Any]) -> Evaluated:
        """Write inputs and read everything."""
        with self._own_write():
            return self._host.evaluate(values)

    def reset(self) -> Evaluated:
        """Bring the inputs back to their baseline and read everything."""
        with self._own_write():
            return self._host.reset()

    def restore(self, snapshot: Mapping[str, Any]) -> Evaluated:
        """Write back a snapshot and read everything."""
        with self._own_write():
            return self._host.restore(snapshot)

    def snapshot(self) -> dict[str, Any]:
        """Return the set-points as plain data."""
        return self._host.snapshot()

    def jacobian(self, outputs: Sequence[str], inputs: Sequence[str], at: Mapping[str, Any]) -> dict[str, Any]:
        """Return derivatives at plain inputs."""
        return self._host.jacobian(outputs, inputs, at)

    def stop(self) -> None:
        """Leave the model as it is."""
        if self._forget is not None:
            self._forget()
            self._forget = None

    def on_write_elsewhere(self, notice: Callable[[], None]) -> None:
        """Be told of what others in this process write to the model."""

        def noticed() -> None:
            if not getattr(self._is_ours, "write", False):
                notice()

        self._forget = self._model.on_write(noticed)

    @contextlib.contextmanager
    def _own_write(self) -> Iterator[None]:
        self._is_ours.write = True
        try:
            yield
        finally:
            self._is_ours.write = False
