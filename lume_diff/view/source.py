"""Source: where the values of a view come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Self

from lume_diff.control.readings import Severity
from lume_diff.errors import ReadOnlyError
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.plain import as_lists
from lume_diff.models import LUMEModel
from lume_diff.variables import Variable
from lume_diff.view.background import Background
from lume_diff.view.frame import Frame
from lume_diff.view.history import History
from lume_diff.view.latest import Latest
from lume_diff.view.shelf import Shelf

#: Told, in a thread of the source, when a write is done: what went wrong, or None.
Told = Callable[[Exception | None], None]


class Source(ABC):
    """Give the readings of a model or a server, and take what is written, if that is allowed.

    ``latest``, `wait` and ``background`` may be used from any thread, and none of them waits for the model.

    Args:
        writable: whether `write` and `restore` are taken.
        sensitivity: whether derivatives are worked out also where they take runs of a simulator.
    """

    def __init__(self, writable: bool = False, sensitivity: bool = False) -> None:
        self.writable, self.sensitivity = writable, sensitivity
        self._latest = Latest()

    # -- what a subclass writes ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def title(self) -> str:
        """What is shown, in a few words."""

    @property
    @abstractmethod
    def variables(self) -> Mapping[str, Variable]:
        """What the readings are of, by name."""

    @property
    @abstractmethod
    def model(self) -> LUMEModel | None:
        """The model, for what has to be computed: call ``forward`` and ``jacobian``, and never set it."""

    @abstractmethod
    def limits(self, name: str) -> PVLimits:
        """Return the limits of a variable as they are now."""

    @abstractmethod
    def start(self) -> Self:
        """Begin to follow; returns when there is something to show, which may be that nobody answers."""

    @abstractmethod
    def close(self) -> None:
        """Follow no more; may be called again."""

    @abstractmethod
    def _write(self, values: Mapping[str, Any], client: str, done: Told) -> None:
        """Write inputs as one; returns at once, or raises what is refused at once."""

    @abstractmethod
    def _restore(self, setpoints: Mapping[str, Any], client: str, done: Told) -> None:
        """Write set-points back; returns at once, or raises what is refused at once."""

    def served_derivatives(self) -> Mapping[str, Any] | None:
        """Return the response matrix that a server works out by itself, None where there is none; it may take a second.

        Returns:
            The names of the rows under ``output``, and derivatives under ``d0``, ``d1`` and so on, one for each number
            among the inputs, in their order.

        Raises:
            ControlError: if there is one that does not hold any more.
        """
        return None

    # -- for everyone ----------------------------------------------------------------------------------------

    def latest(self) -> Frame:
        """Return the newest frame, the same one until something changes."""
        return self._latest.frame()

    def wait(self, version: int, timeout: float) -> int:
        """Wait until there is something newer than a version; returns the version that there is then."""
        return self._latest.wait(version, timeout)

    @cached_property
    def background(self) -> Background:
        """Where work is done that takes longer than a frame; viewers share its results."""
        return Background(self._latest.touch)

    @cached_property
    def history(self) -> History:
        """The recent past of the variables that viewers draw against time."""
        return History()

    @cached_property
    def shelf(self) -> Shelf:
        """Snapshots that viewers have saved."""
        return Shelf()

    @property
    def inputs(self) -> list[str]:
        """Names of the variables that can be written."""
        return [name for name, variable in self.variables.items() if not variable.read_only]

    @property
    def outputs(self) -> list[str]:
        """Names of the variables that can be read only."""
        return [name for name, variable in self.variables.items() if variable.read_only]

    def setpoints(self, frame: Frame) -> dict[str, Any]:
        """Return the inputs of a frame as the model takes them, for ``forward`` and ``jacobian``.

        Inputs that have no value, and beams, are left out: they are at the model's own.
        """
        found = {name: frame.value(name) for name in self.inputs}
        return {name: value for name, value in found.items() if value is not None and not isinstance(value, dict)}

    def snapshot(self) -> dict[str, Any]:
        """Return the inputs as plain data; those that are not known to be good are left out."""
        frame = self.latest()
        return as_lists({name: value for name, value in self.setpoints(frame).items() if frame.is_good(name)})

    def write(self, values: Mapping[str, Any], client: str, done: Told) -> None:
        """Write inputs as one; returns at once.

        Args:
            values: by name.
            client: who asks.
            done: told once, in any thread.

        Raises:
            ReadOnlyError: if nothing may be written.
            LumeDiffError: for what is refused at once; ``done`` is not told then.
        """
        self._check_writable()
        self._write(values, client, done)

    def restore(self, setpoints: Mapping[str, Any], client: str, done: Told) -> None:
        """Write back what `snapshot` gave; returns at once. See `write` for the rest."""
        self._check_writable()
        self._restore(setpoints, client, done)

    def _check_writable(self) -> None:
        if not self.writable:
            raise ReadOnlyError("this view is read-only: nothing can be written from it (lume-diff view --write)")

    def worst(self) -> Severity:
        """Return the highest severity that is shown."""
        return max((one.severity for one in self.latest().readings.values()), default=Severity.INVALID)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _close_background(self) -> None:
        if "background" in self.__dict__:
            self.background.close()
