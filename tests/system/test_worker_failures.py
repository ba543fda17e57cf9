"""Worker processes that crash, hang, exit and are killed."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
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
from lume_diff.errors import SimulatorError, ValidationError
from tests.system import toys
from tests.system.toys import noted, points, values

# Tests are not importable in a worker, so their classes go there by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("time_limit"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

Make = Callable[..., Any]


def misbehave(what: str) -> Any:
    """Go wrong in one of the ways that simulators do."""
    match what:
        case "raise":
            raise ArithmeticError("unstable lattice")
        case "NaN":
            return {"y": float("nan")}
        case "NaN in array":
            return {"y": np.array([1.0, np.nan])}
        case "None":
            return {"y": None}
        case "nothing":
            return {}
        case "no dictionary":
            return 3.0
        case "cannot be sent":
            return {"y": threading.Lock()}
        case "os._exit":
            os._exit(3)
        case "sys.exit":
            sys.exit(4)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segmentation fault":
            faulthandler._sigsegv()  # type: ignore[attr-defined]
        case "hang":
            time.sleep(1000.0)
        case "hang in C":  # holds the interpreter lock, so no thread and no signal handler runs
            ctypes.PyDLL(None).sleep(1000)
    raise AssertionError(what)


class Toy(toys.Toy):
    """Multiply, after whatever the inputs ask for, which may be done once only."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        found = super().run(inputs, outputs)
        what, once = inputs.get("do"), inputs.get("once")
        if once is not None and Path(once).exists():
            what = None
        elif once is not None:
            Path(once).touch()
        return found if what is None else misbehave(what)


SOFT = ["raise", "NaN", "NaN in array", "None", "nothing", "no dictionary", "cannot be sent"]

HARD = {
    "os._exit": (3, "ended with exit code 3"),
    "sys.exit": (4, "ended with exit code 4"),
    "kill": (-9, "was killed by signal 9 (SIGKILL)"),
    "segmentation fault": (-11, "was killed by signal 11 (SIGSEGV)"),
    "hang": (-9, "did not finish within 1 s and was killed"),
    "hang in C": (-9, "did not finish within 1 s and was killed"),
}


@pytest.mark.parametrize("what", [*SOFT, *HARD])
def test_failure_is_tried_twice_and_costs_one_error(pool_of: Callable[..., WorkerPool], what: str) -> None:
    pool = pool_of(timeout=1.0 if "hang" in what else None)
    pool.start()
    batch = points(10)
    batch[4] = {"a": 4.25, "do": what, "word": "here"}
    start = time.monotonic()
    results = pool.run_many(batch, ["y"])
    took = time.monotonic() - start
    error = results.pop(4)
    assert values(results) == [2.0 * i for i in range(10) if i != 4]
    assert isinstance(error, SimulatorError)
    assert error.inputs == batch[4]  # type: ignore[attr-defined]
    text = str(error)
    assert all(part in text for part in ("inputs were a=4.25", "word=here", "tried twice", "run at 4.25")), text
    code, words = HARD.get(what, (None, ""))
    assert error.exit_code == code  # type: ignore[attr-defined]
    assert words in text
    if "hang" in what:
        assert took < 1.0 + 2.0
    assert pool.runs_made in ((10, 11) if "hang" in what else (11,))
    assert values(pool.run_many(points(4), ["y"])) == [0.0, 2.0, 4.0, 6.0]


def test_error_shows_what_was_raised_and_where(pool_of: Callable[..., WorkerPool]) -> None:
    (error,) = pool_of(workers=1).run_many([{"a": 1.0, "do": "raise"}], ["y"])
    assert "ArithmeticError: unstable lattice" in str(error)
    assert "in misbehave" in error.log  # the traceback
    assert isinstance(pickle.loads(pickle.dumps(error)), SimulatorError)


@pytest.mark.parametrize("what", ["raise", "NaN", "os._exit", "kill", "hang"])
def test_second_try_on_a_fresh_simulator_succeeds(
    pool_of: Callable[..., WorkerPool], tmp_path: Path, what: str
) -> None:
    pool = pool_of(lambda: Toy(tmp_path / "notes"), timeout=3.0 if what == "hang" else None)
    pool.start()
    batch = points(10)
    batch[4] |= {"do": what, "once": str(tmp_path / "once")}
    assert values(pool.run_many(batch, ["y"])) == [2.0 * i for i in range(10)]
    assert pool.runs_made == 11
    assert len(noted(tmp_path / "notes", "made")) == 3


def test_slow_start_leaves_time_for_the_second_try_after_a_hang(
    pool_of: Callable[..., WorkerPool], tmp_path: Path
) -> None:
    def factory() -> Simulator:
        time.sleep(1.2)
        return Toy()

    pool = pool_of(factory, workers=1, timeout=4.0, grace=1.0)  # less than a start takes
    pool.start()
    start = time.monotonic()
    assert values(pool.run_many([{"a": 1.0, "do": "hang", "once": str(tmp_path / "once")}], ["y"])) == [2.0]
    assert time.monotonic() - start < 4.0 + 1.0
    assert pool.runs_made == 2


def test_kill_in_the_middle_of_a_batch(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    victim = pool.pids()[0]
    killer = threading.Timer(0.25, os.kill, (victim, signal.SIGKILL))
    killer.start()
    results = pool.run_many(points(50, nap=0.02), ["y"])
    killer.join()
    assert values(results) == [2.0 * i for i in range(50)]
    assert pool.runs_made <= 52
    assert victim not in pool.pids()


def test_failures_of_all_kinds_at_once(pool_of: Callable[..., WorkerPool], tmp_path: Path, seed: int) -> None:
    kinds = ["raise", "NaN", "os._exit", "kill"]
    rng = np.random.default_rng(seed)
    batch = points(80, nap=0.001)
    bad = {int(index): kinds[number % 4] for number, index in enumerate(rng.choice(80, 16, replace=False))}
    for number, (index, what) in enumerate(bad.items()):
        batch[index]["do"] = what
        if number % 2:
            batch[index]["once"] = str(tmp_path / str(index))
    lasting = {index for index in bad if "once" not in batch[index]}
    pool = pool_of()
    results = pool.run_many(batch, ["y"])
    assert {index for index, result in enumerate(results) if isinstance(result, SimulatorError)} == lasting
    assert all(result["y"] == 2.0 * index for index, result in enumerate(results) if index not in lasting)
    assert pool.runs_made == 80 + 16


def test_worker_that_died_at_rest_is_replaced(
    pool_of: Callable[..., WorkerPool], exists: Make, wait_until: Make
) -> None:
    pool = pool_of()
    pool.start()
    before = pool.pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: pool.pids() == [])
    assert values(pool.run_many(points(5), ["y"])) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert pool.runs_made == 5
    assert not [pid for pid in before if exists(pid)]


@pytest.mark.parametrize("what", ["raise", "os._exit", "hang"])
def test_simulator_that_cannot_be_made(pool_of: Callable[..., WorkerPool], what: str) -> None:
    def factory() -> Simulator:
        print("reading the deck")
        return misbehave(what)

    pool = pool_of(factory, start_timeout=3.0 if what == "hang" else 60.0)
    results = pool.run_many(points(20), ["y"])
    assert all(isinstance(result, SimulatorError) for result in results)
    assert "a worker could not make the simulator" in str(results[0])
    assert "reading the deck" in str(results[0])
    assert pool.runs_made == 0
    if what == "hang":
        return
    with pytest.raises(SimulatorError, match="could not make the simulator"):
        pool.identity()


def test_what_cannot_be_sent_is_named(pool_of: Callable[..., WorkerPool]) -> None:
    lock = threading.Lock()
    with pytest.raises(ValidationError, match=r"factory .* cannot be sent to another process"):
        WorkerPool(lambda: FunctionSimulator(lambda a: lock, ["y"]))
    good, bad = pool_of(workers=1).run_many([{"a": 1.0}, {"a": lock}], ["y"])
    assert good["y"] == 2.0
    assert "inputs cannot be sent" in str(bad)


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"workers": True}, {"workers": 1.5}, {"timeout": 0.0}, {"grace": None}], ids=str
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"{next(iter(options))} is"):
        WorkerPool(Toy, **options)
