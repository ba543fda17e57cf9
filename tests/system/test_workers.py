"""Worker processes: real ones, at work and at their end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from lume_diff.blackbox.runners.pool import WorkerPool
from lume_diff.blackbox.simulator import FunctionSimulator, Simulator
from lume_diff.errors import SimulatorError
from tests.system.toys import Toy, noted, points, values

# Tests are not importable in a worker, so their classes go there by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("time_limit"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

Make = Callable[..., Any]


def test_results_come_in_order_from_all_workers(pool_of: Callable[..., WorkerPool], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    pool = pool_of(lambda: Toy(notes))
    pool.start()
    results = [pool.run_many(points(20, nap=0.005), ["y"]) for _ in range(2)]
    assert [values(r) for r in results] == [[2.0 * i for i in range(20)]] * 2
    assert len({r["pid"] for r in results[0]}) == 2
    assert os.getpid() not in {r["pid"] for r in results[0]}
    assert len(noted(notes, "made")) == 2  # one simulator a worker, made once
    assert pool.runs_made == 40
    assert pool.run_many([], ["y"]) == []


def test_workers_start_when_wanted(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of(workers=3)
    assert pool.pids() == []
    pool.run_many(points(1), ["y"])
    assert len(pool.pids()) == 1
    pool.run_many(points(2), ["y"])
    assert len(pool.pids()) == 2


def test_a_free_worker_takes_the_next_point(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    slow, *quick = pool.run_many([{"a": 0.0, "nap": 1.0}, *points(20, nap=0.01)], ["y"])
    assert {r["pid"] for r in quick} == set(pool.pids()) - {slow["pid"]}


@pytest.mark.parametrize(
    "value",
    [1.5, 7, "text", True, np.float32(0.5), np.arange(5), np.ones((300, 1000)), np.array(["a", "b"]), (1, [2.0, "x"])],
    ids=["float", "int", "str", "bool", "numpy number", "array", "large array", "strings", "nested"],
)
def test_values_pass_unchanged(pool_of: Callable[..., WorkerPool], value: Any) -> None:
    (result,) = pool_of(workers=1).run_many([{"a": 0.0, "echo": value}], ["echo"])
    echo = result["echo"]
    assert type(echo) is type(value)
    np.testing.assert_array_equal(np.asarray(echo, dtype=object), np.asarray(value, dtype=object))
    if isinstance(value, np.ndarray):
        assert echo.dtype == value.dtype
        echo[:] = echo[::-1].copy()  # it can be written


def test_bunches_pass_unchanged(pool_of: Callable[..., WorkerPool]) -> None:
    beamphysics = pytest.importorskip("beamphysics")
    rng = np.random.default_rng(1)
    keys = ("x", "y", "z", "px", "py", "pz", "t", "weight")
    data = {key: rng.normal(size=10_000) for key in keys} | {
        "status": np.ones(10_000, dtype=int),
        "species": "electron",
    }
    bunch = beamphysics.ParticleGroup(data=data)
    for result in pool_of().run_many([{"a": 1.0, "echo": bunch}] * 4, ["echo"]):
        assert all(np.array_equal(result["echo"][key], bunch[key]) for key in (*keys, "status"))


def test_local_classes_and_closures_work(pool_of: Callable[..., WorkerPool]) -> None:
    offset = 10.0

    class Local(Simulator):
        def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {"y": inputs["a"] + offset}

    assert values(pool_of(Local).run_many(points(3), ["y"])) == [10.0, 11.0, 12.0]
    pool = pool_of(lambda: FunctionSimulator(lambda a: a * offset, ["y"]))
    assert values(pool.run_many(points(3), ["y"])) == [0.0, 10.0, 20.0]


def test_relative_paths_hold_for_workers_that_start_later(
    pool_of: Callable[..., WorkerPool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deck.in").write_text("3.0")
    monkeypatch.chdir(tmp_path)
    pool = pool_of(lambda: FunctionSimulator(lambda a: a * float(Path("deck.in").read_text()), ["y"]))
    monkeypatch.chdir("/")
    assert values(pool.run_many(points(2), ["y"])) == [0.0, 3.0]


def test_threads_share_a_pool(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    found: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        found[number] = values(pool.run_many(points(10), ["y"]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [2.0 * i for i in range(10)] for number in range(4)}
    assert pool.runs_made == 40
    before = pool.pids()
    pool.run_many(points(10), ["y"])
    assert pool.pids() == before  # they outlive the thread that started them


def test_long_output_is_cut(pool_of: Callable[..., WorkerPool]) -> None:
    def talk(a: float) -> float:
        for _ in range(100):
            print("x" * 500_000)
            time.sleep(0.002)
        if a < 0.0:
            raise ArithmeticError("talked enough")
        return a

    pool = pool_of(lambda: FunctionSimulator(talk, ["y"]), workers=1)
    for _ in range(3):
        pool.run_many(points(1), ["y"])
    (pid,) = pool.pids()
    assert os.stat(f"/proc/{pid}/fd/1").st_size < 60_000_000  # of 150 MB
    (error,) = pool.run_many([{"a": -1.0}], ["y"])
    assert "talked enough" in error.log
    assert len(error.log) <= 5000


def test_close_ends_simulators_and_their_children(
    pool_of: Callable[..., WorkerPool], tmp_path: Path, exists: Make, wait_until: Make, children: Make
) -> None:
    notes = tmp_path / "notes"

    class Parent(Toy):
        def __init__(self) -> None:
            super().__init__(notes)
            self.child = subprocess.Popen(["sleep", "1000"])

        def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {"y": self.child.pid}

    pool = pool_of(Parent)
    pool.start()
    children = values(pool.run_many(points(10), ["y"]))
    pids = pool.pids()
    pool.close()
    assert not [pid for pid in pids if exists(pid)]
    assert wait_until(lambda: not [pid for pid in children if exists(pid)])
    assert len(noted(notes, "closed")) == 2
    pool.close()
    assert isinstance(pool.run_many(points(1), ["y"])[0]["y"], int)  # a closed pool starts again


def test_close_from_another_thread_ends_a_run(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    closer = threading.Timer(0.3, pool.close)
    closer.start()
    with pytest.raises(SimulatorError, match="closed during a run"):
        pool.run_many(points(4, nap=100.0), ["y"])
    closer.join()
    assert pool.pids() == []


def test_a_pool_that_is_dropped_ends_its_workers(exists: Make) -> None:
    pool = WorkerPool(Toy, 2)
    pool.start()
    pids = pool.pids()
    del pool
    gc.collect()
    assert not [pid for pid in pids if exists(pid)]


def test_interrupt_leaves_the_pool_usable(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    before = pool.pids()
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.run_many(points(1, nap=100.0), ["y"])
        timer.join()
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(set(pool.pids()) & set(before)) == 1  # who had nothing to do lives on
    assert values(pool.run_many(points(4), ["y"])) == [0.0, 2.0, 4.0, 6.0]
