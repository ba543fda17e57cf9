"""A runner that keeps every run in an archive and makes none twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lume_diff.archive import RunArchive, can_keep, run_key
from lume_diff.blackbox.runners.runner import Inputs, Jacobian, Result, Runner
from lume_diff.errors import SimulatorError


class Archived(Runner):
    """Look into an archive before running, and put into it what was run.

    Points are handed on a few at a time, so that a kill loses no more than those.

    Args:
        runner: who runs what is not in the archive.
        archive: where runs are kept.
        chunk: how many runs may be under way at once; as many as there are workers.
    """

    def __init__(self, runner: Runner, archive: RunArchive, chunk: int = 1) -> None:
        self._runner = runner
        self._archive = archive
        self._chunk = max(chunk, 1)

    @property
    def runs_made(self) -> int:  # type: ignore[override]
        """How many runs were really made; what came from the archive does not count."""
        return self._runner.runs_made

    @property
    def simulator(self) -> Any:
        """The simulator, or what stands for it."""
        return self._runner.simulator

    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Return runs from the archive and make the others; two equal points are run once."""
        identity = self.identity()
        keys = [run_key(identity, point) for point in points]
        found: dict[str, Result | SimulatorError] = {}
        waiting: dict[str, Inputs] = {}
        for key, point in zip(keys, points, strict=True):
            known = self._archive.get(identity, point, outputs)
            if known is not None:
                found[key] = known
            else:
                waiting[key] = point
        missing = list(waiting.items())
        for start in range(0, len(missing), self._chunk):
            part = missing[start : start + self._chunk]
            began = time.perf_counter()
            results = self._runner.run_many([point for _, point in part], outputs)
            seconds = (time.perf_counter() - began) / len(part)
            for (key, point), result in zip(part, results, strict=True):
                if isinstance(result, SimulatorError):
                    self._archive.put_failure(identity, point, str(result), seconds)
                else:
                    kept = {name: value for name, value in result.items() if name in outputs or can_keep(value)}
                    self._archive.put(identity, point, kept, seconds)
                found[key] = result
        return [found[key] for key in keys]

    def known_points(self, inputs: Inputs, names: Sequence[str]) -> list[list[float]]:
        """Return the values of some numbers at the runs in the archive whose other inputs are the given ones."""
        identity = self.identity()
        found = []
        for key, known in self._archive.inputs_of(identity):
            if all(isinstance(known.get(name), float) for name in names):
                values = {name: known[name] for name in names}
                if run_key(identity, {**inputs, **values}) == key:
                    found.append(list(values.values()))
        return found

    def jacobians(
        self, points: Sequence[Inputs], outputs: Sequence[str], wrt: Sequence[str]
    ) -> list[Jacobian | SimulatorError]:
        """Ask the simulator; what it says is not kept."""
        return self._runner.jacobians(points, outputs, wrt)

    def remember(self, fact: str, content: Any) -> None:
        """Keep a fact about the simulator in the archive."""
        self._archive.remember(run_key(self.identity(), {"fact": fact}), content)

    def recall(self, fact: str) -> Any:
        """Return a fact about a simulator of this identity, or None."""
        return self._archive.recall(run_key(self.identity(), {"fact": fact}))

    def identity(self) -> str:
        """Return the simulator's identity."""
        return self._runner.identity()

    def reset(self) -> None:
        """Reset every simulator."""
        self._runner.reset()

    def close(self) -> None:
        """Give up simulators and processes; the archive stays."""
        self._runner.close()
