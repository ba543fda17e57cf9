"""BlackBoxMemory: what a black box knows of the last points, of noise and curvature, and of what its gradients cost."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lume_diff.blackbox.differences.native import NativeUse
from lume_diff.blackbox.differences.steps import StepCalibration
from lume_diff.models.report import counted


@dataclass(frozen=True)
class Column:
    """One number among the inputs.

    Attributes:
        name: of the variable.
        index: which of its entries, None for a scalar.
        scale: typical change [unit].
        low, high: bounds [unit].
    """

    name: str
    index: int | None
    scale: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """The variable, with the entry where there are several."""
        return self.name if self.index is None else f"{self.name}[{self.index}]"

    def room(self, value: float) -> tuple[float, float]:
        """Return the distances to the lower and the upper bound."""
        return max(value - self.low, 0.0), max(self.high - value, 0.0)


class Facts(Protocol):
    """Where facts about a simulator outlive the process."""

    def remember(self, fact: str, content: Any) -> None:
        """Keep a fact as JSON."""

    def recall(self, fact: str) -> Any:
        """Return a fact, or None."""


class BlackBoxMemory:
    """Keep what was computed at the last points, what was learned of noise and curvature, and what it all cost.

    Args:
        facts: where noise and curvature are kept for the next process; None for nowhere.
        most: how many points to keep.
        most_bytes: and how much of them, which tells where they are bunches; the last one stays in any case.

    Attributes:
        spent: runs by what they were made for: ``"values"``, ``"calibration"``, ``"jacobian"``, ``"hessian"``,
            ``"check"``.
        last: the last Jacobian: points, inputs and runs.
    """

    def __init__(self, facts: Facts | None = None, most: int = 256, most_bytes: int = 10**9) -> None:
        self._facts = facts
        self._most, self._most_bytes = most, most_bytes
        self._sizes: dict[Any, int] = {}
        self._points: OrderedDict[Any, dict[Any, Any]] = OrderedDict()
        self._purpose = "values"
        self._recalls = True
        self.calibrations: dict[Any, StepCalibration] = {}
        self.recalled: set[Any] = set()
        self.discrepancy: float | None = None
        self.bunch_dependent: dict[str, bool] = {}
        self.native = NativeUse()
        self.spent: Counter[str] = Counter()
        self.last: tuple[int, int, int] | None = None

    def at(self, key: Any, size: int = 0) -> dict[Any, Any]:
        """Return the notes on a point, which the caller may write in; ``size`` is what they will take, in bytes."""
        notes = self._points.setdefault(key, {})
        self._points.move_to_end(key)
        if size:
            self._sizes[key] = size
        while len(self._points) > self._most or (len(self._points) > 1 and self._is_full()):
            oldest, _ = self._points.popitem(last=False)
            self._sizes.pop(oldest, None)
        return notes

    def _is_full(self) -> bool:
        return bool(self._sizes) and sum(self._sizes.values()) > self._most_bytes

    def clear(self) -> None:
        """Forget points and calibrations, also those of other processes; the counts of runs stay."""
        self._points.clear()
        self._sizes.clear()
        self._recalls = False
        self.calibrations.clear()
        self.recalled.clear()
        self.discrepancy = None
        self.bunch_dependent.clear()
        self.native = NativeUse()
        self.last = None

    # -- noise and curvature ---------------------------------------------------------------------------------

    def calibration(
        self, column: Column, outputs: Sequence[str], measure: Callable[[], StepCalibration]
    ) -> StepCalibration:
        """Return noise and curvature of some outputs along an input: known, or kept by another process, or measured."""
        key = (column.label, tuple(outputs))
        if key not in self.calibrations:
            fact = f"calibration 1 of {list(outputs)!r} along {column.label!r} with scale {column.scale!r}"
            kept = self._facts.recall(fact) if self._facts is not None and self._recalls else None
            if kept is not None:
                self.recalled.add(key)
                self.calibrations[key] = StepCalibration.from_plain(kept)
            else:
                with self.spending("calibration"):
                    self.calibrations[key] = measure()
                if self._facts is not None:
                    self._facts.remember(fact, self.calibrations[key].plain())
        return self.calibrations[key]

    def known(self, column: Column, outputs: Sequence[str]) -> StepCalibration | None:
        """Return noise and curvature if they were wanted before."""
        return self.calibrations.get((column.label, tuple(outputs)))

    # -- counts ----------------------------------------------------------------------------------------------

    @property
    def learning_runs(self) -> int:
        """Runs that were spent on what holds elsewhere too."""
        return self.spent["calibration"] + self.spent["check"]

    @contextlib.contextmanager
    def spending(self, purpose: str) -> Iterator[None]:
        """Count the runs made meanwhile as made for a purpose."""
        before, self._purpose = self._purpose, purpose
        try:
            yield
        finally:
            self._purpose = before

    def count(self, runs: int) -> None:
        """Count runs that were made just now."""
        self.spent[self._purpose] += runs

    def notes(self) -> list[str]:
        """Return for people what was spent on what."""
        recalled = {label for label, _ in self.recalled}
        measured = counted(len({label for label, _ in self.calibrations} - recalled), "input")
        found = [f"noise and curvature of {measured} took {counted(self.spent['calibration'], 'run')}"]
        if recalled:
            found[0] += f"; those of {counted(len(recalled), 'input')} came from the archive"
        others = ", ".join(
            f"{self.spent[purpose]} {text}"
            for purpose, text in _PURPOSES.items()
            if self.spent[purpose] or purpose in ("values", "jacobian")
        )
        found.append(f"runs besides these: {others}")
        if self.last is not None:
            points, inputs, runs = self.last
            size = f"{counted(points, 'point')}, {counted(inputs, 'input')}"
            found.append(f"the last Jacobian ({size}) took {counted(runs, 'run')} besides the value")
        found += self.native.notes(self.spent["check"])
        if self.discrepancy is not None:
            found.append(
                f"the per-particle form of the bunch's Jacobian is off by {self.discrepancy:.2g} in a random "
                "direction (2 runs)"
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_points": OrderedDict(), "_sizes": {}, "_purpose": "values"}


_PURPOSES = {
    "values": "for values",
    "jacobian": "for Jacobians",
    "hessian": "for second derivatives",
    "check": "for checks",
}
