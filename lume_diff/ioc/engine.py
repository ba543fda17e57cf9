"""Engine: the place where a served model runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lume_diff.variables import Variable


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation gave.

    Attributes:
        values: plain values of all that has changed since the last evaluation, inputs and outputs.
        seconds: how long the model took [s].
        runs: simulator runs that it took.
    """

    values: Mapping[str, Any]
    seconds: float
    runs: int


class Engine(ABC):
    """Evaluate one model, one request at a time; only the runtime's thread calls it.

    A call that raises leaves the model as it was.
    """

    @property
    @abstractmethod
    def variables(self) -> Mapping[str, Variable]:
        """What the model takes and gives."""

    @abstractmethod
    def start(self) -> None:
        """Bring the model up."""

    @abstractmethod
    def evaluate(self, values: Mapping[str, Any]) -> Evaluated:
        """Write inputs and read everything.

        Raises:
            LumeDiffError: if the model refuses, fails, hangs or dies; it is at its last good set-points then.
        """

    @abstractmethod
    def reset(self) -> Evaluated:
        """Bring the inputs back to their baseline and read everything."""

    @abstractmethod
    def restore(self, snapshot: Mapping[str, Any]) -> Evaluated:
        """Write back a snapshot and read everything."""

    @abstractmethod
    def snapshot(self) -> dict[str, Any]:
        """Return the set-points as plain data."""

    @abstractmethod
    def jacobian(self, outputs: Sequence[str], inputs: Sequence[str], at: Mapping[str, Any]) -> dict[str, Any]:
        """Return derivatives at plain inputs; what is not among them is at its set-point.

        Returns:
            ``{"values": {output: {input: array}}, "errors": {(output, input): number}, "runs": n}``, errors where they
            are known, and runs of black boxes.
        """

    @abstractmethod
    def stop(self) -> None:
        """End what `start` began."""

    def interrupt(self) -> None:
        """Make an evaluation that hangs in another thread fail, where that can be done."""

    def on_write_elsewhere(self, notice: Callable[[], None]) -> None:
        """Be told of what is written to the model past the engine, where that can be."""
