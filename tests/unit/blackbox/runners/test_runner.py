"""Runners without processes: in this process, in threads, and what workers and executors have in common."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lume_diff.blackbox.runners.executors import ExecutorRunner
from lume_diff.blackbox.runners.host import Change, Host, Reference
from lume_diff.blackbox.runners.proxy import identity_with, records
from lume_diff.blackbox.runners.runner import InProcess, attempt, describe, run_error
from lume_diff.blackbox.simulator import FunctionSimulator, Simulator
from lume_diff.errors import SimulatorError, ValidationError

COUNTS: Counter[tuple[str, str]] = Counter()


class Toy(Simulator):
    """Multiply; fail at negative inputs the given number of times."""

    def __init__(self, test: str = "", failures: int = 10**6) -> None:
        self.gain = 2.0
        self.test = test
        self.left = failures
        COUNTS[test, "made"] += 1

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if inputs["a"] < 0 and self.left > 0:
            self.left -= 1
            raise ArithmeticError("negative")
        return {"y": self.gain * inputs["a"], "thread": threading.get_ident()}

    def close(self) -> None:
        COUNTS[self.test, "closed"] += 1

    def set_gain(self, gain: float) -> float:
        self.gain = gain
        return gain


@dataclass(frozen=True)
class ToyFactory:
    """Make toys and count those of one test."""

    test: str

    def __call__(self, failures: int = 10**6) -> Toy:
        return Toy(self.test, failures)

    @property
    def made(self) -> int:
        return COUNTS[self.test, "made"]

    @property
    def closed(self) -> int:
        return COUNTS[self.test, "closed"]


@pytest.fixture
def toy(request: pytest.FixtureRequest) -> ToyFactory:
    """A factory whose counts nothing that is left of other tests can touch."""
    return ToyFactory(request.node.name)


def plain_toy() -> Toy:
    return Toy()


def points(*values: float) -> list[dict[str, Any]]:
    return [{"a": value} for value in values]


def values(results: Sequence[Any]) -> list[Any]:
    return [result["y"] for result in results]


# -- one attempt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.5,
        "text",
        True,
        np.float32(1.0),
        np.ones(3),
        np.array(["a"]),
        np.array([None]),
        np.arange(3),
        [1.0, "x"],
        (),
    ],
    ids=repr,
)
def test_what_is_no_bad_number_passes(value: Any) -> None:
    found = attempt(FunctionSimulator(lambda a: value, ["y"]), {"a": 1.0}, ["y"])
    assert isinstance(found, dict)
    assert found["y"] is value


@pytest.mark.parametrize(
    "value",
    [np.nan, np.inf, -np.inf, None, complex(0, np.nan), np.float32(np.nan), np.array([1.0, np.nan]), [1.0, [np.inf]]],
    ids=repr,
)
def test_bad_numbers_are_errors(value: Any) -> None:
    found = attempt(FunctionSimulator(lambda a: {"y": value}, ["y"]), {"a": 0.1}, ["y"])
    assert isinstance(found, SimulatorError)
    assert "output 'y' is not finite" in str(found)
    assert "inputs were a=0.10000000000000001" in str(found)


def test_outputs_that_nobody_wants_may_be_anything() -> None:
    found = attempt(FunctionSimulator(lambda a: {"y": 1.0, "z": np.nan}, ["y"]), {"a": 1.0}, ["y"])
    assert isinstance(found, dict)


@pytest.mark.parametrize(
    "returned, words",
    [
        ({}, "did not return 'y'; it returned []"),
        ({"z": 1}, "it returned ['z']"),
        (3.0, "returned float; expected a dict"),
    ],
)
def test_missing_outputs_are_errors(returned: Any, words: str) -> None:
    class Bad(Simulator):
        def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
            return returned

    assert words in str(attempt(Bad(), {"a": 1.0}, ["y"]))


def test_errors_carry_what_a_caller_needs() -> None:
    error = run_error("it broke", {"a": 1.0}, log="one\ntwo", exit_code=3)
    for found in (error, pickle.loads(pickle.dumps(error))):
        assert str(found) == "it broke; inputs were a=1; last lines of its log:\n  | one\n  | two"
        assert (found.what, found.inputs, found.log, found.exit_code) == ("it broke", {"a": 1.0}, "one\ntwo", 3)


def test_inputs_are_shown_in_short() -> None:
    assert describe({"a": 0.1, "n": 3, "s": "x" * 100}) == f"a=0.10000000000000001, n=3, s={'x' * 60}"
    assert describe({str(i): i for i in range(20)}).endswith("11=11, ...")


# -- in this process -----------------------------------------------------------------------------------------


def test_in_process_makes_one_simulator_and_counts(toy: ToyFactory) -> None:
    runner = InProcess(toy)
    assert values(runner.run_many(points(1.0, 2.0), ["y"])) == [2.0, 4.0]
    assert (toy.made, runner.runs_made) == (1, 2)


def test_in_process_tries_again_on_a_fresh_simulator(toy: ToyFactory) -> None:
    runner = InProcess(lambda: toy(failures=0 if toy.made else 1))
    assert values(runner.run_many(points(1.0, -1.0, 2.0), ["y"])) == [2.0, -2.0, 4.0]
    assert (toy.made, toy.closed, runner.runs_made) == (2, 1, 4)


def test_in_process_keeps_the_other_runs() -> None:
    runner = InProcess(Toy)
    first, bad, last = runner.run_many(points(1.0, -1.0, 2.0), ["y"])
    assert values([first, last]) == [2.0, 4.0]
    assert "ArithmeticError: negative; inputs were a=-1" in str(bad)
    assert isinstance(bad.__cause__, ArithmeticError)
    assert runner.runs_made == 4


def test_in_process_without_a_second_simulator(toy: ToyFactory) -> None:
    def factory() -> Simulator:
        if toy.made:
            raise OSError("no licence")
        return toy()

    (error,) = InProcess(factory).run_many(points(-1.0), ["y"])
    assert "no fresh simulator could be made: OSError: no licence" in str(error)


def test_in_process_can_be_pickled_and_copied() -> None:
    runner = InProcess(plain_toy)
    runner.run_many(points(1.0), ["y"])
    for twin in (copy.deepcopy(runner), pickle.loads(pickle.dumps(runner))):
        assert twin.simulator is not runner.simulator
        assert twin.runs_made == 1
        assert values(twin.run_many(points(1.0), ["y"])) == [2.0]


def test_in_process_results_outlive_a_simulator_that_writes_over_its_own() -> None:
    class Camera(Simulator):
        def __init__(self) -> None:
            self.image = np.zeros(3)

        def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            self.image[:] = inputs["a"]
            return {"y": self.image}

    assert [found.tolist() for found in values(InProcess(Camera).run_many(points(1.0, 2.0), ["y"]))] == [
        [1.0, 1.0, 1.0],
        [2.0, 2.0, 2.0],
    ]


# -- in threads ----------------------------------------------------------------------------------------------


def test_threads_make_one_simulator_each_and_keep_it(toy: ToyFactory) -> None:
    with ThreadPoolExecutor(2) as executor:
        runner = ExecutorRunner(toy, executor)
        for _ in range(3):
            assert values(runner.run_many(points(*range(20)), ["y"])) == [2.0 * i for i in range(20)]
        assert toy.made <= 2
        assert runner.runs_made == 60
        runner.close()
        assert toy.closed == toy.made
        assert values(runner.run_many(points(1.0), ["y"])) == [2.0]


def test_threads_try_again_on_a_fresh_simulator() -> None:
    with ThreadPoolExecutor(2) as executor:
        runner = ExecutorRunner(plain_toy, executor)
        first, bad, last = runner.run_many(points(1.0, -1.0, 2.0), ["y"])
        assert values([first, last]) == [2.0, 4.0]
        assert isinstance(bad, SimulatorError)
        assert "ArithmeticError: negative; inputs were a=-1" in str(bad)
        assert runner.runs_made == 4


def test_threads_follow_the_proxy() -> None:
    with ThreadPoolExecutor(2) as executor:
        runner = ExecutorRunner(plain_toy, executor)
        plain = runner.identity()
        runner.run_many(points(*range(10)), ["y"])
        assert runner.simulator.set_gain(3.0) == 3.0
        runner.simulator.gain = 4.0
        assert values(runner.run_many(points(*range(10)), ["y"])) == [4.0 * i for i in range(10)]
        assert [record["do"] for record in runner.simulator.log] == ["call", "set"]
        assert runner.identity() != plain
        with pytest.raises(SimulatorError, match="missing 1 required positional argument"):
            runner.simulator.set_gain()
        assert not hasattr(runner.simulator, "nothing")
        twin = copy.deepcopy(runner)
        runner.reset()
        assert runner.identity() == plain
        assert values(runner.run_many(points(*range(10)), ["y"])) == [2.0 * i for i in range(10)]
        assert values(twin.run_many(points(*range(10)), ["y"])) == [4.0 * i for i in range(10)]


def test_a_worker_keeps_few_simulators(toy: ToyFactory) -> None:
    with ThreadPoolExecutor(1) as executor:
        runners = [ExecutorRunner(toy, executor) for _ in range(12)]
        for _ in range(2):
            for runner in runners:
                assert values(runner.run_many(points(1.0), ["y"])) == [2.0]
        assert toy.made - toy.closed <= 9
        for runner in runners:
            runner.close()
        assert toy.made == toy.closed


def test_an_executor_that_is_shut_down_costs_errors() -> None:
    executor = ThreadPoolExecutor(1)
    runner = ExecutorRunner(plain_toy, executor)
    executor.shutdown()
    (error,) = runner.run_many(points(1.0), ["y"])
    assert "the executor failed: RuntimeError: cannot schedule new futures after shutdown; inputs were a=1" in str(
        error
    )


def test_interrupt_cancels_what_has_not_begun() -> None:
    class Interrupted(Executor):
        """Hand out futures of which the first is interrupted while it is waited for."""

        def __init__(self) -> None:
            self.futures: list[Future[Any]] = []

        def submit(self, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
            future: Future[Any] = Future()
            if not self.futures:
                future.set_exception(KeyboardInterrupt())
            self.futures.append(future)
            return future

    executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        ExecutorRunner(plain_toy, executor).run_many(points(1.0, 2.0, 3.0), ["y"])
    assert [future.cancelled() for future in executor.futures] == [False, True, True]


def test_executor_is_checked() -> None:
    with pytest.raises(ValidationError, match=r"expected a concurrent\.futures\.Executor"):
        ExecutorRunner(plain_toy, object())  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as executor, pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(ExecutorRunner(plain_toy, executor))


# -- what lies between ---------------------------------------------------------------------------------------


def test_host_replays_changes_on_a_fresh_simulator(toy: ToyFactory) -> None:
    host = Host(toy, [Change(1, Reference(), "setattr", ("gain", 5.0))])
    assert host.run({"a": 1.0}, ["y"], False)["y"] == 5.0  # type: ignore[index]
    answer = host.change(Change(2, Reference(None, (("attribute", "set_gain"),)), "call", (7.0,)))
    assert (answer.value, answer.type_name, answer.serial) == (7.0, None, 2)
    assert host.run({"a": 1.0}, ["y"], True)["y"] == 7.0  # type: ignore[index]
    host.reset()
    assert host.run({"a": 1.0}, ["y"], False)["y"] == 2.0  # type: ignore[index]
    assert toy.made == 3


def test_identity_covers_the_content_of_changes() -> None:
    def one(value: Any, serial: int = 1) -> str:
        return identity_with("code", [Change(serial, Reference(), "setattr", ("k", value))])

    different = [1, 1.0, "1", None, True, np.zeros(2), np.zeros((2, 1)), np.zeros(2, dtype=int), [1], ["1"], {"a": 1}]
    assert len({one(value) for value in different}) == len(different)
    assert one(np.arange(3)) == one(np.arange(3), serial=8)
    assert identity_with("code", []) == "code"
    assert records([Change(4, Reference(None, (("item", "q"),)), "delattr", ("k",))]) == [
        {"do": "delete", "on": "simulator['q']", "args": ["k"]}
    ]
