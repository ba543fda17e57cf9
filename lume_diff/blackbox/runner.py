"""Who runs the simulator: this process, worker processes, or a foreign executor; with or without an archive."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import SimulatorError

Inputs = Mapping[str, Any]
Result = dict[str, Any]
Factory = Callable[[], Simulator]


class Runner(ABC):
    """Run a batch of points and return a result or an error for each, in order."""

    @abstractmethod
    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Run all points; one that fails does not spoil the others."""

    @abstractmethod
    def identity(self) -> str:
        """Return the simulator's identity."""

    @property
    def simulator(self) -> Any:
        """The simulator, or what stands for it here."""
        return None

    def reset(self) -> None:
        """Bring every simulator back to its start."""

    def close(self) -> None:
        """Give up simulators and processes."""


class InProcess(Runner):
    """Run a simulator in this process; a run that fails is tried once more on a fresh one.

    Args:
        factory: makes a simulator.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._simulator: Simulator | None = None

    @property
    def simulator(self) -> Simulator:
        """The simulator, made when first wanted."""
        if self._simulator is None:
            self._simulator = self._factory()
        return self._simulator

    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Run the points one after the other."""
        return [self._run(point, outputs) for point in points]

    def _run(self, point: Inputs, outputs: Sequence[str]) -> Result | SimulatorError:
        first = attempt(self.simulator, point, outputs)
        if not isinstance(first, SimulatorError):
            return first
        self.close()
        return attempt(self.simulator, point, outputs)

    def identity(self) -> str:
        """Return the simulator's identity."""
        return self.simulator.identity()

    def reset(self) -> None:
        """Reset the simulator, if there is one already."""
        if self._simulator is not None:
            self._simulator.reset()

    def close(self) -> None:
        """Close the simulator; the next run makes a new one."""
        if self._simulator is not None:
            try:
                self._simulator.close()
            finally:
                self._simulator = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_factory": self._factory, "_simulator": None}


def attempt(simulator: Simulator, point: Inputs, outputs: Sequence[str]) -> Result | SimulatorError:
    """Run once and check that what was promised came back; return what went wrong rather than raise it."""
    try:
        result = simulator.run(dict(point), outputs)
    except Exception as error:
        failure = SimulatorError(f"{type(error).__name__}: {error}; inputs were {describe(point)}")
        failure.__cause__ = error
        return failure
    if not isinstance(result, Mapping):
        return SimulatorError(f"the simulator returned {type(result).__name__}; expected a dictionary of outputs")
    missing = [name for name in outputs if name not in result]
    if missing:
        return SimulatorError(
            f"the simulator did not return {missing[0]!r}; it returned {list(result)}; inputs were {describe(point)}"
        )
    for name in outputs:
        value = result[name]
        if isinstance(value, (float, np.floating, np.ndarray)) and not np.all(np.isfinite(value)):
            return SimulatorError(
                f"output {name!r} is not finite ({value!r}) where a number was promised; inputs were {describe(point)}"
            )
    return dict(result)


def describe(point: Inputs, most: int = 12) -> str:
    """Return the inputs in short, for a message."""
    parts = []
    for name, value in list(point.items())[:most]:
        number = isinstance(value, (float, np.floating))
        parts.append(f"{name}={value:.17g}" if number else f"{name}={str(value)[:60]}")
    return ", ".join(parts) + (", ..." if len(point) > most else "")
