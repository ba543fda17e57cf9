"""The response matrix of a served model: begun anew when an input has moved, and only then."""

from __future__ import annotations

import threading
import time

import pytest

from lume_diff.control import Condition
from lume_diff.errors import ValidationError
from lume_diff.ioc import Server
from lume_diff.models import TorchModel
from lume_diff.variables import TorchScalarVariable


@pytest.fixture
def server():
    inputs = [TorchScalarVariable(name="current", default_value=2.0, value_range=(-10.0, 10.0))]
    model = TorchModel(lambda current: current**2, inputs, [TorchScalarVariable(name="field", read_only=True)])
    with Server(model, protocols=(), response_matrix=True, changeable_limits=["current"]) as made:
        yield made.wait_ready(60.0)


def slope(server):
    """Return the derivative when nothing is left to do."""
    end = time.monotonic() + 20.0
    while server.response._working or server.response.result is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    return float(server.response.result.values[0, 0])


def test_an_input_that_is_published_as_it_was_costs_no_new_matrix(server):
    assert slope(server) == 4.0
    first = server.response.result
    server.runtime.fault("current", Condition.DISCONNECTED, "not connected")
    server.runtime.clear_fault("current")
    server.limits.change("current", "warning", high=5.0)
    server.runtime.limits_changed("current")
    server.set({"current": 2.0}, 20.0)
    assert slope(server) == 4.0
    assert server.response.result is first
    server.set({"current": 3.0}, 20.0)
    assert slope(server) == 6.0


def test_a_matrix_that_failed_is_tried_again_with_whatever_is_published_next(server):
    slope(server)
    first = server.response.result
    server.response._done(ValidationError("given up"))
    server.set({"current": 2.0}, 20.0)
    end = time.monotonic() + 20.0
    while server.response.result is first:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_reset_goes_to_no_baseline_outside_of_limits_that_were_narrowed(server):
    outcome = []
    answered = threading.Event()

    def done(error, cycle):
        outcome.append(error)
        answered.set()

    server.set({"current": 1.0}, 20.0)
    server.limits.change("current", "drive", high=1.5)
    with pytest.raises(ValidationError, match="'current': 2 is outside its drive limits"):
        server.runtime.reset("test", done)
    assert server.get("current").value == 1.0
    server.limits.change("current", "drive", high=2.0)
    server.runtime.reset("test", done)
    assert answered.wait(20.0)
    assert (outcome, server.get("current").value) == ([None], 2.0)
