"""Set-points that are reached after a while, and a clock that pulses."""

from __future__ import annotations

import threading
import time

import pytest

from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.runtime import Runtime
from lume_diff.ioc.settling import Settling, SettlingEngine
from lume_diff.ioc.shots import ShotClock
from lume_diff.ioc.thread_engine import ThreadEngine
from lume_diff.models import TorchModel
from lume_diff.variables import IntVariable, TorchScalarVariable
from tests.unit.ioc.conftest import QUENCH


def engine_of(magnet, **settling):
    return SettlingEngine(ThreadEngine(magnet, list(magnet.supported_variables)), settling)


def wait_until(holds, patience=20.0):
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_readback_follows_at_the_rate_and_the_outputs_with_it(magnet, console):
    place = console(engine_of(magnet, current=Settling(rate=4.0, delay=0.2)))
    begun = time.monotonic()
    assert place.write(current=2.0) is None
    assert (place["current"].value, place["current_RBV"].value, place["current_MOVN"].value) == (2.0, 0.0, True)
    wait_until(lambda: not place["current_MOVN"].value)
    assert time.monotonic() - begun >= 0.2 + 0.5
    assert (place["current_RBV"].value, place["field"].value) == (2.0, 4.0)
    on_the_way = [
        (update.readings["current_RBV"].value, update.readings["field"].value)
        for update in place.log.updates
        if "current_RBV" in update.readings and "field" in update.readings
    ]
    assert len(on_the_way) >= 3
    assert all(field == pytest.approx(2.0 * current) for current, field in on_the_way)
    assert [current for current, _ in on_the_way] == sorted(current for current, _ in on_the_way)


def test_a_failure_on_the_way_leaves_the_machine_where_it_was(magnet, console):
    place = console(engine_of(magnet, current=Settling(delay=0.1)))
    assert place.write(current=QUENCH) is None
    wait_until(lambda: place.runtime.cycle >= 4 and place["field"].severity == 0)
    assert (place["current"].value, place["current_RBV"].value, place["current_MOVN"].value) == (0.0, 0.0, False)


def test_a_new_goal_is_taken_on_the_way_and_a_reset_arrives_at_once(magnet, console):
    place = console(engine_of(magnet, current=Settling(rate=1.0)))
    place.write(current=5.0)
    place.write(gap=0.2)
    place.write(current=-5.0)
    assert (place["current"].value, place["current_MOVN"].value) == (-5.0, True)
    done = threading.Event()
    place.runtime.reset("test", lambda error, cycle: done.set())
    assert done.wait(20.0)
    assert (place["current"].value, place["current_RBV"].value, place["current_MOVN"].value) == (0.0, 0.0, False)


@pytest.mark.parametrize("name, error", [("none", UnknownVariableError), ("field", ValidationError)])
def test_only_floating_point_inputs_settle(magnet, name, error):
    with pytest.raises(error, match=name):
        engine_of(magnet, **{name: Settling(rate=1.0)})


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"rate": -1.0}, {"delay": -1.0}])
def test_rates_are_positive(options):
    with pytest.raises(ValidationError, match="positive rate"):
        Settling(**options)


@pytest.fixture
def noisy():
    """Return a runtime of a model whose output depends on the number of the shot."""
    shot = IntVariable(name="SHOT", default_value=0, value_range=(0, None))
    outputs = [TorchScalarVariable(name="x")]
    model = TorchModel(lambda values: {"x": (values["SHOT"] * 7.0) % 5.0}, [shot], outputs, layout="dict")
    runtime = Runtime(ThreadEngine(model, ["SHOT", "x"]), ["SHOT", "x"], LimitStore(model.supported_variables))
    runtime.start()
    assert runtime.first_cycle.wait(20.0)
    yield runtime
    runtime.stop()


def test_a_clock_counts_shots(noisy):
    clock = ShotClock(noisy, 50.0, "SHOT")
    clock.start()
    wait_until(lambda: noisy.reading("SHOT").value >= 5)
    clock.stop()
    stopped = noisy.cycle
    assert noisy.reading("x").value == (noisy.reading("SHOT").value * 7.0) % 5.0
    time.sleep(0.1)
    assert noisy.cycle <= stopped + 1


def test_a_clock_goes_on_where_its_counter_has_no_value_because_the_first_cycle_failed():
    place = {"is_up": False}

    def noise(values):
        if not place["is_up"]:
            raise RuntimeError("not up yet")
        return {"x": values["SHOT"] * 7.0}

    shot = IntVariable(name="SHOT", default_value=0, value_range=(0, 10**6))
    model = TorchModel(noise, [shot], [TorchScalarVariable(name="x", read_only=True)], layout="dict")
    runtime = Runtime(ThreadEngine(model, ["SHOT", "x"]), ["SHOT", "x"], LimitStore(model.supported_variables))
    clock = ShotClock(runtime, 100.0, "SHOT")
    runtime.start()
    clock.start()
    try:
        wait_until(lambda: runtime.cycle >= 3)
        assert runtime.reading("SHOT").value is None
        place["is_up"] = True
        wait_until(lambda: (runtime.reading("SHOT").value or 0) >= 2)
    finally:
        clock.stop()
        runtime.stop()


def test_rates_of_clocks_are_positive(noisy):
    with pytest.raises(ValidationError, match="rate_hz"):
        ShotClock(noisy, 0.0)


def test_a_shot_publishes_every_output_whether_or_not_it_has_changed(magnet, console):
    place = console(ThreadEngine(magnet, list(magnet.supported_variables)))
    done = threading.Event()
    before = place["map"].cycle
    place.runtime.shot(None, lambda error, cycle: done.set())
    assert done.wait(20.0)
    assert set(place.log.updates[-1].readings) == {"field", "force", "map"}
    assert place["map"].cycle == before + 1


def test_what_fails_beside_a_set_point_on_its_way_does_not_end_the_way(console):
    def field(values):
        if values[..., 1] == 0.0:
            raise RuntimeError("closed")
        return values[..., :1] / values[..., 1:]

    inputs = [
        TorchScalarVariable(name="current", default_value=0.0),
        TorchScalarVariable(name="gap", default_value=1.0),
    ]
    model = TorchModel(field, inputs, [TorchScalarVariable(name="field", read_only=True)])
    place = console(engine_of(model, current=Settling(rate=4.0)))
    assert place.write(current=1.0) is None
    assert "closed" in str(place.write(gap=0.0))
    wait_until(lambda: not place["current_MOVN"].value)
    assert (place["current"].value, place["current_RBV"].value, place["field"].value) == (1.0, 1.0, 1.0)


def test_readbacks_have_derivatives_beside_those_of_the_model():
    inputs = [TorchScalarVariable(name=name, default_value=1.0) for name in ("current", "gap")]
    model = TorchModel(
        lambda values: 2.0 * values[..., :1], inputs, [TorchScalarVariable(name="field", read_only=True)]
    )
    engine = engine_of(model, current=Settling(rate=1.0))
    found = engine.jacobian(["current_RBV", "field"], ["current", "gap"], {"current": 1.0})
    values = {output: [float(block) for block in row.values()] for output, row in found["values"].items()}
    assert values == {"current_RBV": [1.0, 0.0], "field": [2.0, 0.0]}
    assert engine.jacobian(["current_RBV"], ["current"], {})["errors"] == {("current_RBV", "current"): 0.0}
