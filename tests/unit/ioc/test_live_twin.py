"""A twin of a machine that a test plays itself: trust, merges, dead subscriptions, saved states."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from lume_diff.control import Condition, ControlClient, Reading, Severity, Subscription
from lume_diff.errors import ControlError, ReadOnlyError, SimulatorError, ValidationError
from lume_diff.ioc import LiveTwin
from lume_diff.ioc.update_command import UpdateCommand
from tests.unit.ioc.conftest import QUENCH, Magnet


class Machine(ControlClient):
    """A machine in this process, and its own client; it may be deaf to its subscribers, or answer to nobody."""

    def __init__(self, **values: Any) -> None:
        self.shown = {name: Reading(value, time.time(), 0) for name, value in values.items()}
        self.listeners: list[tuple[str, Any]] = []
        self.written: dict[str, Any] = {}
        self.is_deaf = self.is_stopped = False
        self.lock = threading.RLock()

    def show(self, name: str, value: Any, **alarm: Any) -> None:
        """Show something, with a time stamp of now unless another is given."""
        reading = Reading(value, alarm.pop("time", time.time()), 0, **alarm)
        with self.lock:
            self.shown[name] = reading
            if not self.is_deaf:
                for followed, listener in self.listeners:
                    if followed == name:
                        listener(name, reading)

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        with self.lock:
            return {name: away(name) if self.is_stopped else self.shown.get(name, away(name)) for name in names}

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        if self.is_stopped:
            raise ControlError("stopped")
        self.written.update(values)

    def monitor(self, names: Sequence[str], listener: Any) -> Subscription:
        entries = [(name, listener) for name in names]
        with self.lock:
            self.is_deaf = False
            self.listeners += entries
            for name in names:
                listener(name, self.shown.get(name, away(name)))
        return Ending(self, entries)

    def close(self) -> None:
        """Nothing to let go of."""


class Ending(Subscription):
    def __init__(self, machine: Machine, entries: list[tuple[str, Any]]) -> None:
        self._machine, self._entries = machine, entries

    def close(self) -> None:
        with self._machine.lock:
            self._machine.listeners = [one for one in self._machine.listeners if one not in self._entries]


def away(name: str) -> Reading:
    return Reading(None, time.time(), 0, Severity.INVALID, Condition.DISCONNECTED, f"{name}: not connected")


LINKS = {"current": "PS:I", "gap": "POT:GAP"}


@pytest.fixture
def machine() -> Machine:
    return Machine(**{"PS:I": 1.0, "POT:GAP": 0.5})


@pytest.fixture
def follow(machine: Machine) -> Iterator[Callable[..., LiveTwin]]:
    """Return what starts a twin; all are stopped at the end."""
    started: list[LiveTwin] = []

    def begin(remote: Any = LINKS, **options: Any) -> LiveTwin:
        options = {"client": machine, "watch_every": 0.05, **options}
        started.append(LiveTwin(Magnet(), remote, **options).start())
        return started[-1]

    yield begin
    for twin in started:
        twin.stop()
        twin.stop()


def soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_a_twin_shows_what_the_model_gives_at_the_machines_values(follow, machine):
    twin = follow()
    twin.wait_settled(10.0)
    assert (twin.get("field").value, twin.get("force").value) == (2.0, 2.0)
    machine.show("PS:I", 2.0)
    assert soon(lambda: twin.get("field").value == 4.0)
    assert twin.get("field").severity is Severity.NO_ALARM


def test_before_the_machine_is_heard_everything_is_in_alarm(machine):
    machine.shown.clear()
    twin = LiveTwin(Magnet(), LINKS, client=machine)
    for name in ("current", "gap"):
        assert (twin.get(name).severity, twin.get(name).condition) == (Severity.INVALID, Condition.DISCONNECTED)
    with twin:
        twin.server.wait_ready(10.0)
        assert soon(lambda: twin.get("field").condition is Condition.DISCONNECTED)
        assert twin.get("polarity").severity is Severity.NO_ALARM
        with pytest.raises(TimeoutError, match="PS:I: not connected"):
            twin.wait_settled(0.05)


@pytest.mark.parametrize(
    "value, alarm, condition, phrase",
    [
        (None, away("PS:I"), Condition.DISCONNECTED, "not connected"),
        (5.0, Reading(5.0, 0.0, 0, Severity.INVALID, Condition.FAILED, "broken"), Condition.UNTRUSTED, "broken"),
        (11.0, None, Condition.UNTRUSTED, "outside value_range"),
        (float("nan"), None, Condition.UNTRUSTED, "finite"),
        ("two", None, Condition.UNTRUSTED, "cannot be taken"),
        (QUENCH, None, Condition.UNTRUSTED, "quench"),
    ],
    ids=["away", "invalid", "out of range", "nan", "word", "failing"],
)
def test_what_cannot_be_trusted_is_not_used_and_alarms_until_it_is_good_again(
    follow, machine, value, alarm, condition, phrase
):
    twin = follow()
    twin.wait_settled(10.0)
    extra = (
        {} if alarm is None else {"severity": alarm.severity, "condition": alarm.condition, "message": alarm.message}
    )
    machine.show("PS:I", value, **extra)
    assert soon(lambda: twin.get("current").condition is condition)
    assert phrase in twin.get("current").message
    assert twin.get("current").value == 1.0
    assert soon(lambda: twin.get("field").severity is Severity.INVALID)
    assert twin.get("field").value == 2.0
    assert list(twin.report().untrusted) == ["current"]
    assert twin.get("TWIN:UNTRUSTED").value == 1
    machine.show("POT:GAP", 0.25)  # another input does not whitewash it
    assert soon(lambda: twin.get("gap").value == 0.25)
    assert twin.get("field").severity is Severity.INVALID
    machine.show("PS:I", 1.0)  # the value that the model has
    twin.wait_settled(10.0)
    assert {twin.get(name).severity for name in ("current", "field", "force")} == {Severity.NO_ALARM}
    assert twin.get("force").value == 4.0
    assert twin.get("TWIN:UNTRUSTED").value == 0


def test_minor_and_major_alarms_are_real_values(follow, machine):
    twin = follow()
    twin.wait_settled(10.0)
    machine.show("PS:I", 2.0, severity=Severity.MAJOR, condition=Condition.HIHI)
    assert soon(lambda: twin.get("field").value == 4.0)
    assert twin.report().untrusted == {}


def test_a_dead_subscription_is_made_anew(follow, machine):
    twin = follow()
    twin.wait_settled(10.0)
    machine.is_deaf = True
    machine.show("PS:I", 3.0)
    assert soon(lambda: twin.get("field").value == 6.0)
    assert soon(lambda: twin.report().renewed == 1)
    machine.show("PS:I", 4.0)
    assert soon(lambda: twin.get("field").value == 8.0, 0.4)  # by the subscription, before the next look is over
    assert len(machine.listeners) == 2


def test_a_machine_that_does_not_answer_alarms_though_its_connection_stands(follow, machine):
    twin = follow()
    twin.wait_settled(10.0)
    machine.is_stopped = True
    assert soon(lambda: twin.get("field").condition is Condition.DISCONNECTED)
    machine.is_stopped = False
    twin.wait_settled(10.0)
    assert twin.get("field").severity is Severity.NO_ALARM


def test_what_is_too_old_is_stale(follow, machine):
    twin = follow(max_age=0.3)
    machine.show("PS:I", 1.0)
    assert soon(lambda: twin.get("current").condition is Condition.STALE)
    assert "older than the 0.3 s" in twin.get("field").message
    machine.show("POT:GAP", 0.5)
    machine.show("PS:I", 2.0)
    assert soon(lambda: twin.get("field").value == 4.0 and twin.get("field").severity is Severity.NO_ALARM)


def test_the_skew_of_time_stamps_is_reported(follow, machine):
    now = time.time()
    machine.show("PS:I", 1.0, time=now - 100.0)
    machine.show("POT:GAP", 0.5, time=now - 58.0)
    twin = follow()
    assert twin.wait_settled(10.0).skew == pytest.approx(42.0, abs=1e-6)
    assert soon(lambda: twin.get("TWIN:SKEW").value == pytest.approx(42.0, abs=1e-6))
    assert "time skew 42.000 s" in str(twin.report())


def test_writes_of_followed_inputs_are_refused_and_others_are_not(follow, machine):
    twin = follow({"current": "PS:I"})
    twin.wait_settled(10.0)
    snapshot = {"SERVER:SNAPSHOT": '{"gap": 0.5}'}  # the inputs that are not in it would go to their baseline
    for values in ({"current": 2.0}, {"gap": 0.2, "current": 2.0}, {"SERVER:RESET": True}, snapshot):
        with pytest.raises(ReadOnlyError, match="follows PS:I"):
            twin.set(values)
    twin.set({"gap": 0.2}, 10.0)
    assert twin.get("force").value == 5.0


def test_what_is_written_to_the_model_past_the_twin_is_put_right(follow):
    twin = follow()
    twin.wait_settled(10.0)
    twin.model.set({"current": 5.0})
    assert soon(lambda: twin.model.get(["current"])["current"].item() == 1.0)
    assert soon(lambda: twin.get("current").value == 1.0)


def test_values_that_fail_together_are_tried_alone(follow, machine):
    twin = follow(mode="snapshot")
    twin.update(10.0)
    machine.show("PS:I", QUENCH)
    machine.show("POT:GAP", 0.25)
    report = twin.update(10.0)
    assert list(report.untrusted) == ["current"]
    assert (twin.get("gap").value, twin.get("current").value) == (0.25, 1.0)
    machine.show("POT:GAP", 0.2)  # the other goes on alone
    assert list(twin.update(10.0).untrusted) == ["current"]
    assert twin.get("gap").value == 0.2
    machine.show("PS:I", 2.0)
    assert twin.update(10.0).settled
    assert twin.get("force").value == 10.0


def test_an_input_that_a_local_one_made_fail_is_tried_again(follow, machine):
    twin = follow({"current": "PS:I"}, watch_every=0.05)
    twin.wait_settled(10.0)
    machine.show("PS:I", QUENCH)
    assert soon(lambda: "quench" in twin.get("field").message)
    cycle = twin.report().cycle
    time.sleep(0.3)
    assert twin.report().cycle == cycle  # not tried again for nothing
    twin.set({"gap": 0.4}, 10.0)
    assert soon(lambda: twin.report().cycle >= cycle + 2)
    assert twin.get("field").severity is Severity.INVALID


def test_results_are_written_back_by_name_and_never_an_invalid_one(follow, machine):
    twin = follow(write_back={"field": "VA:FIELD"})
    twin.wait_settled(10.0)
    assert soon(lambda: machine.written == {"VA:FIELD": 2.0})
    machine.show("PS:I", None, severity=Severity.INVALID, condition=Condition.DISCONNECTED)
    assert soon(lambda: twin.get("field").severity is Severity.INVALID)
    machine.show("POT:GAP", 0.25)
    assert soon(lambda: twin.get("force").value == 4.0)
    assert machine.written == {"VA:FIELD": 2.0}
    machine.show("PS:I", 2.0)
    assert soon(lambda: machine.written == {"VA:FIELD": 4.0})


def test_a_snapshot_and_a_saved_state_are_evaluated_once(follow, machine, tmp_path):
    twin = follow(mode="snapshot")
    assert twin.update(10.0).settled
    assert twin.get("force").value == 2.0
    machine.show("PS:I", 9.0)
    state = tmp_path / "state.yaml"
    state.write_text("PS:I: 2.0\nPOT:GAP: {value: 0.1, severity: 0}\nOTHER: 5\n")
    assert twin.load(state, 10.0).settled
    assert twin.get("force").value == 20.0
    report = twin.load({"PS:I": Reading(3.0, time.time(), 0)}, 10.0)
    assert report.untrusted == {"gap": "POT:GAP is INVALID: POT:GAP is not in the saved state"}
    assert (twin.get("current").value, twin.get("force").severity) == (3.0, Severity.INVALID)


def test_a_twin_that_follows_takes_no_snapshot(follow):
    twin = follow()
    for ask in (twin.update, lambda: twin.load({})):
        with pytest.raises(ValidationError, match="mode='snapshot'"):
            ask()


@pytest.mark.parametrize(
    "remote, options, phrases",
    [
        ({}, {}, ["nothing is followed"]),
        (
            {"curent": "A", "field": "B", "gap": " "},
            {"write_back": {"gap": "C", "feld": "D"}},
            ["'curent' is no variable", "nearest: 'current'", "'field' is an output", "'gap' follows ' '", "'feld'"],
        ),
        ({"current": "A"}, {"write_back": {"field": "A"}}, ["'A' is followed and cannot be written to"]),
        ({"current": "A"}, {"names": ["field"]}, ["'current' is followed and must be among 'names'"]),
        (["current"], {"protocols": ["pva"]}, ["'current', which the twin itself serves"]),
        ("all", {}, ["'same'"]),
        (["current"], {"mode": "follow"}, ["'monitor' or 'snapshot'"]),
        (["current"], {"watch_every": 0.0}, ["watch_every"]),
        (["current"], {"max_age": -1.0}, ["max_age"]),
        (["current"], {"client": "tango"}, ["'tango' is none of the clients"]),
    ],
    ids=["nothing", "names", "loop", "served", "itself", "word", "mode", "time", "age", "client"],
)
def test_what_cannot_be_followed_is_refused_all_at_once(machine, remote, options, phrases):
    with pytest.raises(ValidationError) as caught:
        LiveTwin(Magnet(), remote, **{"client": machine, **options})
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_equal_names_are_said_in_one_word(machine):
    twin = LiveTwin(Magnet(), "same", client=machine)
    assert twin.remotes == ["current", "gap", "polarity"]
    assert LiveTwin(Magnet(), ["gap"], client=machine).remotes == ["gap"]


def test_many_changes_are_merged_and_the_last_wins(follow, machine):
    twin = follow()
    twin.wait_settled(10.0)
    before = twin.report().cycle
    for step in range(2000):
        machine.show("PS:I", step / 1000.0)
    twin.wait_settled(10.0)
    assert twin.get("field").value == pytest.approx(2.0 * 1.999)
    assert twin.report().cycle - before < 2000


def test_a_twin_is_brought_up_to_date_when_a_client_writes_its_command(machine: Machine) -> None:
    with LiveTwin(Magnet(), LINKS, "snapshot", machine) as twin:
        machine.show("PS:I", 2.0)
        assert twin.get("field").severity is Severity.INVALID
        cycle = twin.set({"TWIN:UPDATE": True}, 20.0)
        assert (twin.get("field").value, twin.get("field").severity) == (4.0, Severity.NO_ALARM)
        assert twin.get("field").cycle <= cycle
        machine.show("PS:I", 1.0)
        assert twin.set({"TWIN:UPDATE": False}, 20.0) == cycle
        assert twin.get("field").value == 4.0
        machine.is_stopped = True
        twin.set({"TWIN:UPDATE": True}, 20.0)
        assert twin.get("field").severity is Severity.INVALID


def test_requests_that_come_while_a_twin_is_read_share_the_next_reading() -> None:
    begun, go_on, told = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)
    readings: list[int] = []

    def update() -> None:
        readings.append(len(readings))
        begun.release()
        assert go_on.acquire(timeout=20.0)
        if len(readings) == 2:
            raise ValueError("the second fails")

    errors: list[Exception | None] = []

    def done(error: Exception | None, cycle: int) -> None:
        errors.append(error)
        told.release()

    command = UpdateCommand(update, lambda: 7)
    command.ask(True, "test", done)
    assert begun.acquire(timeout=20.0)
    command.ask(True, "test", done)
    command.ask(True, "test", done)
    go_on.release(2)
    assert all(told.acquire(timeout=20.0) for _ in range(3))
    assert [type(error) for error in errors] == [type(None), ValueError, ValueError]
    assert readings == [0, 1]


def test_a_twin_that_is_started_again_refuses_and_goes_on(follow):
    twin = follow()
    with pytest.raises(SimulatorError, match="started before"):
        twin.start()
    assert twin.wait_settled(10.0).settled
