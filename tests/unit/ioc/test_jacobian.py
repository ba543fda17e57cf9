"""Jacobians of a served black box: what they cost, how good they are, where they stop, and who goes first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lume_diff.blackbox import BlackBoxModel, Simulator
from lume_diff.errors import GradientError
from lume_diff.ioc.jacobian_job import JacobianResult
from lume_diff.ioc.server import Server
from lume_diff.variables import TorchScalarVariable

NAMES = ("a", "b", "c")


class Cubes(Simulator):
    """One output, the sum of the cubes of three inputs; a run of it can be held."""

    def __init__(self, gate: threading.Semaphore, runs: list[dict[str, Any]]) -> None:
        self.gate, self.runs = gate, runs

    def run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        """Wait for the gate if the point is away from the round numbers that clients write."""
        self.runs.append(dict(inputs))
        if any(value != round(value) for value in inputs.values()):
            assert self.gate.acquire(timeout=30.0)
        return {"y": sum(value**3 for value in inputs.values())}

    def identity(self) -> str:
        """Return what tells it from others."""
        return "cubes"


class Place:
    """A server of the black box, whose runs for derivatives wait for `gate`."""

    def __init__(self) -> None:
        self.gate, self.runs = threading.Semaphore(0), []
        inputs = [TorchScalarVariable(name=name, default_value=2.0, scale=0.1) for name in NAMES]
        variables = [*inputs, TorchScalarVariable(name="y", read_only=True)]
        self.model = BlackBoxModel(lambda: Cubes(self.gate, self.runs), variables)
        self.server = Server(self.model, "B:", [])

    def ask(self, **arguments: Any) -> Callable[[], Any]:
        """Ask for a Jacobian, and return what waits for the answer."""
        from lume_diff.ioc.procedures import Procedures

        answers: list[Any] = []
        answered = threading.Event()

        def answer(result: Any) -> None:
            answers.append(result)
            answered.set()

        asked = {"outputs": ["y"], "inputs": list(NAMES), **arguments}
        Procedures(self.server.served).call("JACOBIAN", asked, "test", answer)

        def wait() -> Any:
            assert answered.wait(30.0)
            return answers[0]

        return wait


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    with found.server:
        found.server.wait_ready(30.0)
        yield found
        found.gate.release(1000)


def test_runs_and_errors_are_told(place):
    place.gate.release(1000)
    result = place.ask()()
    assert isinstance(result, JacobianResult)
    np.testing.assert_allclose(result.values, [[12.0, 12.0, 12.0]], rtol=1e-6)
    assert result.runs >= 6
    assert np.all(result.errors > 0.0)
    assert np.all(np.abs(result.values - 12.0) <= 10.0 * result.errors)
    assert (result.cycle, result.point) == (place.server.get("y").cycle, dict.fromkeys(NAMES, 2.0))


def test_it_is_given_up_when_the_runs_are_spent(place):
    place.gate.release(1000)
    error = place.ask(max_runs=1)()
    assert isinstance(error, GradientError)
    assert "given up" in str(error)
    assert "1 of 3 pieces" in str(error)
    assert all(run["b"] == run["c"] == 2.0 for run in place.runs)  # none for the second piece


def test_puts_go_first_and_do_not_move_the_point(place):
    wait = place.ask()
    while len(place.runs) < 2:
        threading.Event().wait(0.01)
    written: list[int] = []
    putting = threading.Thread(target=lambda: written.append(place.server.set({"a": 1.0}, 30.0)))
    putting.start()
    while not place.server.runtime._waiting:
        threading.Event().wait(0.01)
    while not written:  # runs of the piece that is under way, and then the put
        place.gate.release()
        putting.join(0.05)
    spent = len(place.runs)
    assert place.server.get("y").value == 17.0
    place.gate.release(1000)
    result = wait()
    np.testing.assert_allclose(result.values, [[12.0, 12.0, 12.0]], rtol=1e-6)
    assert (result.point["a"], place.server.get("a").value) == (2.0, 1.0)
    assert len(place.runs) > spent


def test_a_matrix_that_there_is_not_is_invalid_and_says_why():
    pytest.importorskip("p4p")
    from lume_diff.ioc.pva.calls import JacobianTable

    table, place = JacobianTable(["a"]), np.ones((1, 1))
    undefined = table.value()
    assert (undefined.alarm.severity, undefined.alarm.status, len(undefined.value.output)) == (3, 6, 0)
    well = table.value(JacobianResult(["y"], ["a"], 12.0 * place, 0.0 * place, 4, {"a": 2.0}, 2, 0.1))
    assert (well.alarm.severity, list(well.value.d0)) == (0, [12.0])
    failed = table.value(GradientError("given up"))
    assert (failed.alarm.severity, failed.alarm.message) == (3, "given up")
    assert not failed.changed("value")  # what was shown stays, as INVALID


def test_a_matrix_that_is_not_finite_is_invalid():
    pytest.importorskip("p4p")
    from lume_diff.ioc.pva.calls import JacobianTable

    values = np.array([[1.0, np.nan]])
    kink = JacobianTable(["a", "b"]).value(JacobianResult(["y"], ["a", "b"], values, 0.0 * values, 4, {}, 0, 0.1))
    assert (kink.alarm.severity, kink.alarm.status) == (3, 6)
    assert kink.alarm.message == "the derivative of y by b is not finite"
    assert list(kink.value.d0) == [1.0]
