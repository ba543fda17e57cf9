"""Who runs the simulator: this process, worker processes, or a foreign executor; with or without an archive."""

from __future__ import annotations

import math
import textwrap
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import SimulatorError

Inputs = Mapping[str, Any]
Result = dict[str, Any]
Jacobian = dict[str, dict[str, np.ndarray]]
Factory = Callable[[], Simulator]


class Runner(ABC):
    """Run a batch of points and return a result or an error for each, in order; safe from several threads.

    Attributes:
        runs_made: how many runs were started so far, second tries included.
    """

    runs_made: int = 0

    @abstractmethod
    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Run all points; one that fails does not spoil the others."""

    @abstractmethod
    def jacobians(
        self, points: Sequence[Inputs], outputs: Sequence[str], wrt: Sequence[str]
    ) -> list[Jacobian | SimulatorError]:
        """Return the derivatives that the simulator has of its own at all points; see ``Simulator.jacobian``.

        They are no runs and are not counted.
        """

    @abstractmethod
    def identity(self) -> str:
        """Return the simulator's identity."""

    def remember(self, fact: str, content: Any) -> None:
        """Keep a fact about the simulator as it is now, as JSON, if there is an archive to keep it in."""

    def recall(self, fact: str) -> Any:
        """Return a fact that was kept, by another process perhaps, or None."""
        return None

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
        self._lock = threading.RLock()

    @property
    def simulator(self) -> Simulator:
        """The simulator, made when first wanted."""
        if self._simulator is None:
            self._simulator = self._factory()
        return self._simulator

    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Run the points one after the other."""
        with self._lock:
            return [self._run(point, outputs) for point in points]

    def _run(self, point: Inputs, outputs: Sequence[str]) -> Result | SimulatorError:
        first = self._try(point, outputs)
        if not isinstance(first, SimulatorError):
            return first
        try:
            self.close()
            return self._try(point, outputs)
        except Exception as error:
            failure = run_error(f"no fresh simulator could be made: {type(error).__name__}: {error}", point)
            failure.__cause__ = error
            return failure

    def _try(self, point: Inputs, outputs: Sequence[str]) -> Result | SimulatorError:
        simulator = self.simulator
        self.runs_made += 1
        result = attempt(simulator, point, outputs)
        if isinstance(result, SimulatorError):
            return result
        # A simulator may write its next result where this one is.
        return {name: value.copy() if hasattr(value, "copy") else value for name, value in result.items()}

    def jacobians(
        self, points: Sequence[Inputs], outputs: Sequence[str], wrt: Sequence[str]
    ) -> list[Jacobian | SimulatorError]:
        """Ask the simulator at one point after the other."""
        with self._lock:
            return [attempt_jacobian(self.simulator, point, outputs, wrt) for point in points]

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
        return {"_factory": self._factory, "runs_made": self.runs_made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_factory"])  # type: ignore[misc]
        self.runs_made = state["runs_made"]


def attempt(simulator: Simulator, point: Inputs, outputs: Sequence[str]) -> Result | SimulatorError:
    """Run once and check that what was promised came back; return what went wrong rather than raise it."""
    try:
        result = simulator.run(dict(point), outputs)
    except Exception as error:
        failure = run_error(f"{type(error).__name__}: {error}", point)
        failure.__cause__ = error
        return failure
    if not isinstance(result, Mapping):
        return run_error(f"the simulator returned {type(result).__name__}; expected a dictionary of outputs", point)
    missing = [name for name in outputs if name not in result]
    if missing:
        return run_error(f"the simulator did not return {missing[0]!r}; it returned {list(result)}", point)
    for name in outputs:
        if not _all_numbers(result[name]):
            shown = textwrap.shorten(repr(result[name]), 200)
            return run_error(f"output {name!r} is not finite ({shown}) where a number was promised", point)
    return dict(result)


def attempt_jacobian(
    simulator: Simulator, point: Inputs, outputs: Sequence[str], wrt: Sequence[str]
) -> Jacobian | SimulatorError:
    """Ask a simulator for derivatives of its own; return what went wrong rather than raise it."""
    try:
        found = simulator.jacobian(dict(point), list(outputs), list(wrt))
        return {name: {i: np.asarray(v, dtype=float) for i, v in row.items()} for name, row in found.items()}
    except Exception as error:
        failure = run_error(f"jacobian() failed with {type(error).__name__}: {error}", point)
        failure.__cause__ = error
        return failure


def _all_numbers(value: Any) -> bool:
    """Tell whether floats are finite and nothing is missing; what is no float passes."""
    if type(value) is float:
        return math.isfinite(value)
    if value is None:
        return False
    if isinstance(value, (list, tuple)):
        return all(map(_all_numbers, value))
    if isinstance(value, (float, complex, np.inexact)) or (isinstance(value, np.ndarray) and value.dtype.kind in "fc"):
        return bool(np.isfinite(value).all())
    return True


def run_error(what: str, point: Inputs, *, log: str = "", exit_code: int | None = None) -> SimulatorError:
    """Return the error for a run that failed.

    Args:
        what: went wrong.
        point: the inputs that did it.
        log: last lines that the simulator printed.
        exit_code: of its process, negative for a signal.
    """
    text = f"{what}; inputs were {describe(point)}"
    if log:
        text += "; last lines of its log:\n" + textwrap.indent(log, "  | ")
    error = SimulatorError(text)
    error.__dict__.update(what=what, inputs=dict(point), log=log, exit_code=exit_code)
    return error


def describe(point: Inputs, most: int = 12) -> str:
    """Return the inputs in short, for a message."""
    parts = []
    for name, value in list(point.items())[:most]:
        number = isinstance(value, (float, np.floating))
        parts.append(f"{name}={value:.17g}" if number else f"{name}={str(value)[:60]}")
    return ", ".join(parts) + (", ..." if len(point) > most else "")
