"""Simulators in the processes of foreign executors: a process pool, and Dask on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lume_diff.blackbox.runners.executors import ExecutorRunner
from lume_diff.errors import SimulatorError
from tests.system import toys
from tests.system.toys import noted, points, values

# Tests are not importable in a worker, so their classes go there by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("time_limit")]

Make = Callable[..., Any]


class Toy(toys.Toy):
    """Multiply; fail at negative inputs, and end the process at large ones."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if inputs["a"] < 0:
            raise ArithmeticError("negative")
        if inputs["a"] > 1000:
            os._exit(3)
        return super().run(inputs, outputs)


def check(runner: ExecutorRunner, notes: Path) -> None:
    """Check what holds for every executor with two processes."""
    batch = points(30, nap=0.02)
    batch[5] = {"a": -1.0}
    results = runner.run_many(batch, ["y"])
    error = results.pop(5)
    assert values(results) == [2.0 * i for i in range(30) if i != 5]
    assert isinstance(error, SimulatorError)
    assert "ArithmeticError: negative; inputs were a=-1" in str(error)
    assert runner.runs_made == 31
    made = noted(notes, "made")
    pids = {result["pid"] for result in results}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert len(made) == 3  # one a process and a fresh one
    assert set(made) == pids
    runner.simulator.gain = 3.0
    assert runner.simulator.gain == 3.0
    again = runner.run_many(points(20, nap=0.02), ["y"])
    assert values(again) == [3.0 * i for i in range(20)]
    assert len(noted(notes, "made")) == 3
    runner.reset()
    assert values(runner.run_many(points(4), ["y"])) == [0.0, 2.0, 4.0, 6.0]


def test_process_pool(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        check(ExecutorRunner(lambda: Toy(notes), executor), notes)


def test_process_pool_that_breaks_costs_errors(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        runner = ExecutorRunner(lambda: Toy(tmp_path / "notes"), executor)
        results = runner.run_many([{"a": 1.0}, {"a": 1001.0}, {"a": 2.0}], ["y"])
        assert "the executor failed: BrokenProcessPool" in str(results[1])
        assert results[1].inputs == {"a": 1001.0}  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Dask and what it runs on
def test_dask_cluster(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs Dask: pip install lume-diff[dask]")
    notes = tmp_path / "notes"
    options = {"dashboard_address": None, "local_directory": str(tmp_path)}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        check(ExecutorRunner(lambda: Toy(notes), client.get_executor()), notes)
