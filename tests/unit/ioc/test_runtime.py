"""Cycles of a served model: what is published, what is refused, and what an error does."""

from __future__ import annotations

import threading

import pytest

from lume_diff.control import Condition, Severity
from lume_diff.errors import ReadOnlyError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.ioc.engine import Engine
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.process_engine import ProcessEngine
from lume_diff.ioc.runtime import Runtime
from lume_diff.ioc.service import Service
from lume_diff.ioc.thread_engine import ThreadEngine
from lume_diff.models import LUMEModel
from tests.unit.ioc.conftest import DIE, HANG, QUENCH


def engine_of(kind: str, model: LUMEModel) -> Engine:
    names = list(model.supported_variables)
    if kind == "thread":
        return ThreadEngine(model, names)
    return ProcessEngine(lambda: model, model.supported_variables, names, timeout=1.0)


@pytest.fixture(params=["thread", "process"])
def engine(request, magnet):
    return engine_of(request.param, magnet)


def test_a_write_publishes_the_input_and_the_outputs_that_change_with_one_time_and_number(console, engine):
    place = console(engine)
    error, cycle = place.ask(current=2.0)()
    update = place.log.updates[-1]
    assert error is None
    assert update.cycle == cycle
    assert set(update.readings) == {"current", "field", "force", "map"}
    assert {reading.time for reading in update.readings.values()} == {update.time}
    assert place["field"].value == 4.0
    assert place["map"].value.shape == (40, 60)
    assert place["map"].value[3, 4] == 2.0


def test_a_write_of_the_same_value_is_published_with_a_new_time_and_no_output(console, engine):
    place = console(engine)
    place.write(current=2.0)
    before = place["current"].time
    place.write(current=2.0)
    assert set(place.log.updates[-1].readings) == {"current"}
    assert place["current"].time > before


@pytest.mark.parametrize(
    "current, severity, condition",
    [
        (2.5, Severity.NO_ALARM, Condition.FINE),
        (2.6, Severity.MINOR, Condition.HIGH),
        (4.1, Severity.MAJOR, Condition.HIHI),
        (-2.6, Severity.MINOR, Condition.LOW),
        (-4.1, Severity.MAJOR, Condition.LOLO),
    ],
)
def test_outputs_are_judged_by_their_limits(console, magnet, current, severity, condition):
    place = console(engine_of("thread", magnet))
    place.write(current=current)
    assert (place["field"].severity, place["field"].condition) == (severity, condition)


def test_an_exception_fails_the_write_and_marks_the_outputs_until_a_run_succeeds(console, engine):
    place = console(engine)
    place.write(current=2.0)
    error = place.write(current=QUENCH)
    assert isinstance(error, SimulatorError)
    assert "quench" in str(error)
    assert place["current"].value == 2.0
    assert place["current"].severity is Severity.NO_ALARM
    assert "current" in place.log.updates[-1].readings  # posted again at its last good value
    for name in ("field", "force", "map"):
        assert (place[name].severity, place[name].condition) == (Severity.INVALID, Condition.FAILED)
        assert "quench" in place[name].message
    assert place["field"].value == 4.0
    assert place.write(current=2.0) is None  # the same value as before
    assert (place["field"].severity, place["field"].value) == (Severity.NO_ALARM, 4.0)


@pytest.mark.parametrize("value, phrase", [(HANG, "did not answer within 1 s"), (DIE, "exit code 3")])
def test_a_model_that_hangs_or_dies_is_started_anew_at_its_last_good_set_points(console, magnet, value, phrase):
    place = console(engine_of("process", magnet))
    place.write(current=2.0, gap=0.5)
    error = place.write(current=value)
    assert phrase in str(error)
    assert place["field"].severity is Severity.INVALID
    assert place.write(current=3.0) is None
    assert place["force"].value == 6.0  # the gap of before
    assert place["force"].severity is Severity.NO_ALARM


def test_a_killed_process_costs_one_write(console, magnet):
    engine = engine_of("process", magnet)
    place = console(engine)
    place.write(gap=0.5)
    first = engine.pid
    engine.interrupt()
    errors = [place.write(current=1.0), place.write(current=1.0)]
    assert errors[1] is None
    assert engine.pid != first
    assert place["force"].value == 2.0


def test_an_output_that_is_not_finite_is_invalid_and_the_write_succeeds(console, engine):
    place = console(engine)
    assert place.write(current=1.0, gap=0.0) is None
    assert (place["force"].severity, place["force"].condition) == (Severity.INVALID, Condition.NOT_FINITE)
    assert place["field"].severity is Severity.NO_ALARM


@pytest.mark.parametrize(
    "values, error",
    [
        ({"current": 11.0}, ValidationError),
        ({"current": float("nan")}, ValidationError),
        ({"current": "ten"}, ValidationError),
        ({"current": [1.0, 2.0]}, ValueError),
        ({"polarity": "sideways"}, ValidationError),
        ({"field": 1.0}, ReadOnlyError),
        ({"curent": 1.0}, UnknownVariableError),
        ({"gap": 0.2, "current": 11.0}, ValidationError),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused_at_once_and_changes_nothing(console, magnet, values, error):
    place = console(engine_of("thread", magnet))
    published = len(place.log.updates)
    with pytest.raises(error):
        place.ask(**values)
    assert place.write(current=1.0) is None
    assert len(place.log.updates) == published + 1
    assert place["gap"].value == 0.1


class Gate(Engine):
    """Hold evaluations until told to go on, and count them."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.open, self.asked = inner, threading.Event(), []
        self.busy = threading.Event()
        self.open.set()

    variables = property(lambda self: self.inner.variables)

    def start(self):
        self.inner.start()

    def evaluate(self, values):
        self.asked.append(dict(values))
        self.busy.set()
        assert self.open.wait(20.0)
        return self.inner.evaluate(values)

    def reset(self):
        return self.inner.reset()

    def restore(self, snapshot):
        return self.inner.restore(snapshot)

    def snapshot(self):
        return self.inner.snapshot()

    def jacobian(self, outputs, inputs):
        return self.inner.jacobian(outputs, inputs)

    def stop(self):
        self.inner.stop()


@pytest.fixture
def held(console, magnet):
    """Return a console whose model is busy with one write, and what counts its evaluations."""

    def begin(ordered=False):
        gate = Gate(engine_of("thread", magnet))
        place = console(gate, ordered)
        gate.asked.clear()
        gate.busy.clear()
        gate.open.clear()
        first = place.ask(gap=0.3)
        assert gate.busy.wait(10.0)
        return place, gate, first

    return begin


def test_writes_that_arrive_while_the_model_is_busy_are_evaluated_together(held):
    place, gate, first = held()
    waits = [place.ask(current=float(k)) for k in range(5)] + [place.ask(polarity="reversed")]
    gate.open.set()
    assert first()[0] is None
    assert {wait() for wait in waits} == {(None, place.runtime.cycle)}
    assert gate.asked == [{"gap": 0.3}, {"current": 4.0, "polarity": "reversed"}]
    assert place["field"].value == -8.0


def test_ordered_writes_are_evaluated_in_turn(held):
    place, gate, first = held(ordered=True)
    waits = [place.ask(current=float(k)) for k in range(3)]
    gate.open.set()
    first()
    assert [wait()[1] for wait in waits] == [place.runtime.cycle - 2, place.runtime.cycle - 1, place.runtime.cycle]
    assert gate.asked[1:] == [{"current": 0.0}, {"current": 1.0}, {"current": 2.0}]


def test_of_a_group_that_fails_only_the_culprit_gets_the_error(held):
    place, gate, _ = held()
    good = place.ask(polarity="reversed")
    overtaken = place.ask(current=1.0)
    bad = place.ask(current=QUENCH)
    both = place.ask(gap=0.5, polarity="normal")
    gate.open.set()
    assert good()[0] is None
    assert "quench" in str(bad()[0])
    assert "quench" in str(overtaken()[0])  # it shares the fate of what overtook it
    assert both()[0] is None
    assert place["gap"].value == 0.5
    assert place["current"].value == 0.0
    assert place["field"].severity is Severity.NO_ALARM  # the last of the group has succeeded


def test_what_waits_when_the_server_stops_is_told(held):
    place, gate, first = held()
    waiting = place.ask(current=1.0)
    stopper = threading.Thread(target=place.runtime.stop)
    stopper.start()
    gate.open.set()
    stopper.join(10.0)
    assert first()[0] is None
    assert "stopped" in str(waiting()[0])
    with pytest.raises(SimulatorError, match="stopping"):
        place.ask(current=1.0)


def test_what_is_written_to_the_model_itself_is_published(console, magnet):
    place = console(engine_of("thread", magnet))
    magnet.set({"current": 1.5})
    for _ in range(200):
        if place["field"].value == 3.0:
            break
        threading.Event().wait(0.01)
    assert (place["current"].value, place["field"].value) == (1.5, 3.0)


def test_reset_and_restore_go_alone_and_are_published(console, engine):
    place = console(engine)
    place.write(current=3.0)
    kept = engine.snapshot()
    for action in (place.runtime.reset, lambda *args: place.runtime.restore(kept, *args)):
        finished = threading.Event()
        action("test", lambda error, cycle, finished=finished: finished.set())
        assert finished.wait(10.0)
        place.log.updates.append(place.log.updates[-1])
    assert [u.readings["field"].value for u in place.log.updates[-3::2]] == [0.0, 6.0]


def test_limits_that_change_judge_what_is_shown(console, magnet):
    place = console(engine_of("thread", magnet))
    place.write(current=2.0)
    place.runtime._limits.change("field", "alarm", high=3.0)
    place.runtime.limits_changed("field")
    assert place["field"].severity is Severity.MAJOR
    place.runtime._limits.change("current", "drive", high=1.0)
    with pytest.raises(ValidationError, match="drive limits"):
        place.ask(current=1.5)


def test_work_for_idle_times_waits_for_writes(console, magnet):
    place = console(engine_of("thread", magnet))
    steps: list[int] = []
    finished = threading.Event()

    def work(engine: Engine) -> bool:
        steps.append(place.runtime.cycle)
        if len(steps) == 3:
            finished.set()
        return len(steps) == 3

    place.runtime.when_idle(work)
    assert finished.wait(10.0)
    assert place.write(current=1.0) is None


def test_an_input_that_must_not_be_trusted_marks_itself_and_every_output(console, magnet):
    place = console(engine_of("thread", magnet))
    place.write(current=2.0)
    place.runtime.fault("current", Condition.DISCONNECTED, "the magnet is away")
    for name in ("current", "field", "force", "map"):
        assert (place[name].severity, place[name].condition) == (Severity.INVALID, Condition.DISCONNECTED)
        assert "away" in place[name].message
    place.write(gap=0.5)  # a cycle does not whitewash it
    assert (place["force"].value, place["force"].severity) == (4.0, Severity.INVALID)
    assert place["gap"].severity is Severity.NO_ALARM
    place.runtime.clear_fault("current")
    assert {place[name].severity for name in ("current", "field", "force", "map")} == {Severity.NO_ALARM}


def test_an_input_that_is_called_into_question_while_its_write_fails_is_not_shown_as_good(magnet):
    class Doubt(Service):
        def after(self, cycle, evaluated, error=""):
            if evaluated is None:
                runtime.fault("current", Condition.DISCONNECTED, "not connected")
            return super().after(cycle, evaluated, error)

    names, service = list(magnet.supported_variables), Doubt({})
    limits = LimitStore({**magnet.supported_variables, **service.variables})
    runtime = Runtime(ThreadEngine(magnet, names), names, limits, service=service)
    runtime.start()
    answered = threading.Event()
    try:
        runtime.write({"current": QUENCH}, "test", lambda error, cycle: answered.set())
        assert answered.wait(20.0)
        found = runtime.reading("current")
    finally:
        runtime.stop()
    assert (found.value, found.severity, found.condition) == (0.0, Severity.INVALID, Condition.DISCONNECTED)


def test_what_is_written_to_the_model_while_the_server_stops_is_no_error_of_the_writer(magnet, console):
    place = console(engine_of("thread", magnet))
    place.runtime._stopping = True  # and the thread, which sleeps, has not noticed
    magnet.set({"current": 1.0})
    assert float(magnet.get("current")) == 1.0
