"""Progress: what a fit shows while it runs, and what it remembers of the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lume_diff.calibration.fit.objective import Objective


class Step(NamedTuple):
    """One accepted step of a fit.

    Attributes:
        cost: minus the log posterior, but for a constant.
        values: of the parameters, in their units.
        runs: of the model so far.
        seconds: since the start.
    """

    cost: float
    values: list[float]
    runs: int
    seconds: float


class Progress:
    """Listen to an optimiser: keep the history and the best point, and show a bar.

    Args:
        objective: what is minimised.
        total: number of steps at most.
        show: True for a bar on a terminal, False for none, or a function of step, cost and estimates.
    """

    def __init__(
        self, objective: Objective, total: int, show: bool | Callable[[int, float, Mapping[str, float]], None]
    ) -> None:
        self._objective = objective
        self._show = show
        self._total = total
        self._bar: Any = None
        self._task: Any = None
        self._began = time.perf_counter()
        self._runs = objective.model.runs
        self.history: list[Step] = []
        self.best: tuple[Tensor, float] | None = None

    def __enter__(self) -> Progress:
        if self._show is True:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("fit"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            console = Console(stderr=True)
            self._bar = Progress(
                *columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal
            )
            self._task = self._bar.add_task("", total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, u: Tensor, cost: float) -> None:
        """Take note of an accepted step."""
        values = self._objective.values(u).tolist()
        runs = self._objective.model.runs - self._runs
        self.history.append(Step(cost, values, runs, time.perf_counter() - self._began))
        if self.best is None or cost < self.best[1]:
            self.best = (u.clone(), cost)
        names = [parameter.name for parameter in self._objective.parameters]
        if callable(self._show):
            self._show(len(self.history), cost, dict(zip(names, values, strict=True)))
        elif self._bar is not None:
            shown = ", ".join(f"{name} {value:.5g}" for name, value in list(zip(names, values, strict=True))[:4])
            self._bar.update(self._task, advance=1, description=f"cost {cost:.6g}; {shown}")
