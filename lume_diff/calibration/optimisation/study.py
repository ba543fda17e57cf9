"""Study: Xopt with the prior, and without it for comparison."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from xopt import Xopt
from xopt.errors import XoptError
from xopt.evaluator import Evaluator
from xopt.generators import get_generator
from xopt.generators.bayesian.models.standard import StandardModelConstructor

from lume_diff.calibration.optimisation.process_variables import ProcessVariables
from lume_diff.calibration.prior_mean.constructor import PriorMeanModelConstructor
from lume_diff.calibration.prior_mean.optimizer import ParallelLBFGSOptimizer
from lume_diff.calibration.prior_mean.vocs import units_of
from lume_diff.errors import LumeDiffError

WITH, WITHOUT = "with the model", "without the model"

#: Told of the arm, evaluations made and to make, and the best objective so far.
Show = Callable[[str, int, int, float], None]


@dataclass(frozen=True)
class Arm:
    """One run of Xopt.

    Attributes:
        name: with the model or without.
        xopt: as it ended.
        seconds: that it took.
    """

    name: str
    xopt: Any
    seconds: float

    @property
    def objective(self) -> str:
        """Name of the objective."""
        return str(self.xopt.vocs.objective_names[0])

    @property
    def values(self) -> np.ndarray:
        """The objective at every evaluation, ``(n,)``."""
        return self.xopt.data[self.objective].to_numpy(dtype=float)

    @property
    def best_so_far(self) -> np.ndarray:
        """The best objective up to every evaluation, ``(n,)``."""
        values = self.values
        return np.fmin.accumulate(values) if self.is_minimised else np.fmax.accumulate(values)

    @property
    def is_minimised(self) -> bool:
        """Whether small is good."""
        return type(self.xopt.vocs.objectives[self.objective]).__name__ == "MinimizeObjective"

    @property
    def best(self) -> dict[str, float]:
        """Variables and objective at the best evaluation."""
        values = self.values
        row = self.xopt.data.iloc[int(np.nanargmin(values) if self.is_minimised else np.nanargmax(values))]
        return {name: float(row[name]) for name in [*self.xopt.vocs.variable_names, self.objective]}


@dataclass(frozen=True)
class StudyResult:
    """What came of a study.

    Attributes:
        arms: with the model first; another one without where it was compared.
        start: how many points were random, and common to both.
        units: of variables, by name.
        prior: the constructor with its decisions.
    """

    arms: list[Arm]
    start: int
    units: dict[str, str]
    prior: PriorMeanModelConstructor

    def __str__(self) -> str:
        lines = []
        for arm in self.arms:
            best = arm.best
            settings = ", ".join(f"{n} {v:.5g} {self.units.get(n, '')}".rstrip() for n, v in best.items())
            lines.append(f"{arm.name}: best of {len(arm.values)} evaluations: {settings}")
        if len(self.arms) > 1 and (needed := self.evaluations_to_match()) is not None:
            lines.append(
                f"what took {len(self.arms[1].values)} evaluations without the model took {needed} with it, of which "
                f"{self.start} were random in both"
            )
        return "\n".join([*lines, self.prior.report()])

    def evaluations_to_match(self) -> int | None:
        """Return how many evaluations the model took to be as good as the arm without it at its end; None if never."""
        first, second = self.arms
        goal = second.best_so_far[-1]
        reached = first.best_so_far <= goal if first.is_minimised else first.best_so_far >= goal
        return int(np.argmax(reached)) + 1 if reached.any() else None

    def save(self, folder: Path) -> list[Path]:
        """Write Xopt's YAML, the modules it names, and all evaluations.

        Args:
            folder: to write to; ``Xopt.from_file("xopt.yaml")`` loads there.

        Returns:
            The files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _inside(folder):  # Xopt writes modules into the current folder
            self.arms[0].xopt.dump("xopt.yaml")
        written = [folder / "xopt.yaml"]
        for arm in self.arms:
            path = folder / f"evaluations_{arm.name.replace(' ', '_')}.csv"
            arm.xopt.data.to_csv(path, index_label="evaluation")
            written.append(path)
        return written


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


class Study:
    """Optimise a machine by Xopt with a model as the prior mean, and for comparison without.

    Both begin at the same random points. A machine behind process variables ends at the best settings found, or where
    it was if something fails.

    Args:
        vocs: of the problem, with one objective.
        evaluator: of the machine.
        prior: the constructor with the model.
        generator: name of Xopt's.
        start: how many random points come first.
        steps: how many follow.
        compare: whether to optimise without the model too.
        seed: of the random points and the optimiser.
        machine: behind the evaluator, if it is one of process variables.
    """

    def __init__(
        self,
        vocs: Any,
        evaluator: Any,
        prior: PriorMeanModelConstructor,
        generator: str = "upper_confidence_bound",
        start: int = 3,
        steps: int = 20,
        compare: bool = True,
        seed: int = 0,
        machine: ProcessVariables | None = None,
    ) -> None:
        self.vocs, self.prior = vocs, prior
        self._evaluator = evaluator if isinstance(evaluator, Evaluator) else Evaluator(**evaluator)
        self._generator = generator
        self._start, self._steps, self._seed = start, steps, seed
        self._compare = compare
        self._machine = machine

    def run(self, show: Show | None = None) -> StudyResult:
        """Return what came of it.

        Args:
            show: told of every evaluation.
        """
        units = units_of(self.vocs)
        if self._machine is None:
            arms = [self._optimised(WITH, self.prior, show)]
            if self._compare:
                arms.append(self._optimised(WITHOUT, StandardModelConstructor(), show))
            return StudyResult(arms, self._start, units, self.prior)
        before = self._machine.settings()
        try:
            arm = self._optimised(WITH, self.prior, show)
            self._machine.put(arm.best)
        except BaseException:
            self._machine.put(before)
            raise
        return StudyResult([arm], self._start, units, self.prior)

    def _optimised(self, name: str, constructor: Any, show: Show | None) -> Arm:
        began = time.perf_counter()
        generator = get_generator(self._generator)(
            vocs=self.vocs, gp_constructor=constructor, numerical_optimizer=ParallelLBFGSOptimizer()
        )
        X = Xopt(evaluator=self._evaluator, generator=generator, serialize_torch=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            try:
                X.random_evaluate(self._start, seed=self._seed)
                for _ in range(self._steps):
                    self._tell(name, X, show)
                    X.step()
            except XoptError as error:
                last = str(error).strip().splitlines()[-1]
                done = 0 if X.data is None else len(X.data)
                raise LumeDiffError(f"{name}: evaluation {done + 1} failed: {last}") from error
        self._tell(name, X, show)
        return Arm(name, X, time.perf_counter() - began)

    def _tell(self, name: str, X: Any, show: Show | None) -> None:
        if show is not None:
            show(name, len(X.data), self._start + self._steps, float(Arm(name, X, 0.0).best_so_far[-1]))
