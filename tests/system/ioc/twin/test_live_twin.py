"""A twin of a machine that is served in a process of its own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

import lume_diff as ld
from lume_diff.control import Condition, ControlClient, Reading, Severity, Subscription
from lume_diff.errors import ControlError, ReadOnlyError
from tests.system.ioc.twin.conftest import MachineProcess
from tests.system.ioc.twin.served_machine import Magnet

pytest.importorskip("p4p")
pytest.importorskip("caproto")
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("time_limit")]

INPUTS = ("current", "gap", "polarity", "cooling", "turns", "label", "ramp", "shims")
REMOTE = {name: f"M:{name}" for name in INPUTS}
AFTER = {"current": 0.0, "gap": 0.1, "polarity": "normal", "cooling": True, "turns": 1}


@pytest.fixture
def operator(machine: MachineProcess, console: ControlClient) -> Iterator[Callable[..., None]]:
    """Return what sets the machine, which is put back afterwards."""

    def write(**values: Any) -> None:
        console.put({f"M:{name}": value for name, value in values.items()}, timeout=20.0)

    write(**AFTER)
    yield write
    write(**AFTER)


class Noting(ControlClient):
    """A client that notes when it is told of which current."""

    def __init__(self, client: ControlClient) -> None:
        self._client, self.told = client, list[tuple[float, Any]]()

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        return self._client.get(names, timeout)

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        self._client.put(values, timeout)

    def monitor(self, names: Sequence[str], listener: Any) -> Subscription:
        def noted(name: str, reading: Reading) -> None:
            if name == "M:current":
                self.told.append((time.monotonic(), reading.value))
            listener(name, reading)

        return self._client.monitor(names, noted)

    def close(self) -> None:
        self._client.close()


def test_a_thousand_changes_are_merged_and_settled_within_one_evaluation_of_the_last(operator, client):
    noting, model = Noting(client), Magnet(seconds=0.01)
    with ld.LiveTwin(model, REMOTE, client=noting) as twin:
        twin.wait_settled(20.0)
        before = len(model.evaluated)
        for step in range(1, 1001):
            operator(current=0.005 * step)
        assert_soon(lambda: twin.get("field").value == 5.0)
        twin.wait_settled(20.0)
        assert twin.get("field").severity is Severity.NO_ALARM
        assert len(model.evaluated) - before < 1000
        heard = next(moment for moment, value in noting.told if value == 5.0)
        late = [current for begun, current in model.evaluated if begun > heard]
        assert late.count(5.0) <= 1
        assert len(late) <= 2  # one may have been handed to the model the moment before it was heard
        assert model.evaluated[-1][1] == 5.0


def test_every_kind_of_input_is_followed(operator, client):
    with ld.LiveTwin(Magnet(), "same", client=Renamed(client)) as twin:
        operator(current=2.0, polarity="reversed", turns=3, cooling=False, label="a1", ramp=[1.0, 2.0, 3.0])
        operator(shims=[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
        assert_soon(lambda: twin.get("field").value == -6.0 and twin.get("shims").value[1, 2] == 5.0)
        twin.wait_settled(10.0)
        assert twin.get("cooling").value is False
        assert (twin.get("label").value, list(twin.get("ramp").value)) == ("a1", [1.0, 2.0, 3.0])
        assert twin.model.get(["turns"])["turns"].item() == 3
        operator(label="spare", ramp=[0.0] * 3, shims=[[0.0] * 3] * 2)


class Renamed(ControlClient):
    """A client that puts the machine's prefix before every name."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, Reading]:
        found = self._client.get([f"M:{name}" for name in names], timeout)
        return {name.removeprefix("M:"): reading for name, reading in found.items()}

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        self._client.put({f"M:{name}": value for name, value in values.items()}, timeout)

    def monitor(self, names: Sequence[str], listener: Any) -> Subscription:
        return self._client.monitor(
            [f"M:{name}" for name in names], lambda name, reading: listener(name.removeprefix("M:"), reading)
        )

    def close(self) -> None:
        """Leave the client to whoever made it."""


def assert_soon(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_a_twin_alarms_while_the_machine_is_away_and_survives_its_restart(machine, operator, client):
    with ld.LiveTwin(Magnet(), REMOTE, client=client, watch_every=0.5, answer_timeout=1.0) as twin:
        operator(current=3.0)
        assert_soon(lambda: twin.get("field").value == 3.0)
        twin.wait_settled(20.0)
        machine.kill()
        try:
            assert_soon(lambda: len(twin.report().untrusted) == len(INPUTS))
            for name in (*INPUTS, "field", "force", "map"):
                assert (twin.get(name).severity, twin.get(name).condition) == (
                    Severity.INVALID,
                    Condition.DISCONNECTED,
                )
            assert twin.get("field").value == 3.0  # the last good one stays
            assert twin.server.get("TWIN:UNTRUSTED").value == len(INPUTS)
            with pytest.raises(TimeoutError, match="M:current"):
                twin.wait_settled(0.1)
        finally:
            machine.start()
        report = twin.wait_settled(60.0)
        assert (twin.get("field").value, twin.get("field").severity) == (0.0, Severity.NO_ALARM)
        assert report.untrusted == {}
        operator(current=4.0)
        assert_soon(lambda: twin.get("field").value == 4.0)


def test_a_machine_that_hangs_alarms_though_its_connection_stands(machine, operator, client):
    with ld.LiveTwin(Magnet(), {"current": "M:current"}, client=client, watch_every=0.5, answer_timeout=1.0) as twin:
        operator(current=3.0)
        assert_soon(lambda: twin.get("field").value == 3.0)
        twin.wait_settled(20.0)
        machine.signal(signal.SIGSTOP)
        try:
            assert_soon(lambda: twin.get("field").severity is Severity.INVALID)
            assert (twin.get("field").condition, twin.get("field").value) == (Condition.DISCONNECTED, 3.0)
        finally:
            machine.signal(signal.SIGCONT)
        twin.wait_settled(30.0)
        assert (twin.get("field").value, twin.get("field").severity) == (3.0, Severity.NO_ALARM)


def test_what_is_invalid_or_out_of_range_or_fails_is_never_used(operator, client):
    model = Magnet(limit=5.0)
    links = {"current": "M:current", "gap": "M:force"}  # the gap follows an output, which can be INVALID
    with ld.LiveTwin(model, links, client=client) as twin:
        operator(current=0.05, gap=0.1)  # force 0.5
        assert_soon(lambda: twin.get("gap").value == pytest.approx(0.5))
        twin.wait_settled(10.0)
        operator(gap=0.5)  # force 0.1
        assert_soon(lambda: twin.get("gap").value == pytest.approx(0.1))
        with pytest.raises(ControlError):
            operator(current=7.0)  # the machine quenches: its outputs are INVALID
        assert_soon(lambda: twin.get("gap").severity is Severity.INVALID)
        assert (twin.get("gap").condition, twin.get("gap").value) == (Condition.UNTRUSTED, pytest.approx(0.1))
        assert twin.get("field").severity is Severity.INVALID
        assert twin.get("current").severity is Severity.NO_ALARM
        operator(current=0.05)
        twin.wait_settled(10.0)
        operator(current=5.5, gap=1.0)  # inside the machine's limits, outside the twin's
        assert_soon(lambda: twin.get("current").severity is Severity.INVALID)
        assert twin.get("current").value == 0.05
        assert "outside value_range" in twin.get("field").message
        operator(**AFTER)
        twin.wait_settled(10.0)


def test_results_are_written_back_where_that_is_allowed_and_nowhere_else(operator, client):
    with ld.LiveTwin(Magnet(), {"current": "M:current"}, client=client, write_back={"force": "M:gap"}) as twin:
        operator(current=0.05)  # force 0.5 with a gap of 0.1
        assert_soon(lambda: client.get(["M:gap"])["M:gap"].value == pytest.approx(0.5))
        operator(current=0.5)  # a force of 5 is refused as a gap
        assert_soon(lambda: "M:gap" in twin.report().write_back)
        assert client.get(["M:gap"])["M:gap"].value == pytest.approx(0.5)
        operator(current=0.02)
        assert_soon(lambda: client.get(["M:gap"])["M:gap"].value == pytest.approx(0.2))
        assert_soon(lambda: twin.report().write_back == "")


def test_a_snapshot_reads_once(operator, client):
    with ld.LiveTwin(
        Magnet(), {"current": "M:current", "gap": "M:nothing"}, "snapshot", client, answer_timeout=1.0
    ) as twin:
        assert twin.get("field").severity is Severity.INVALID
        operator(current=2.0)
        report = twin.update(10.0)
        assert (twin.get("field").value, report.inputs["current"].value) == (2.0, 2.0)
        assert list(report.untrusted) == ["gap"]
        assert twin.get("field").severity is Severity.INVALID
        operator(current=3.0)
        time.sleep(0.2)
        assert twin.get("current").value == 2.0


def test_what_a_twin_follows_can_be_written_by_nobody_else(operator, client):
    with ld.LiveTwin(Magnet(), {"current": "M:current"}, client=client) as twin:
        twin.wait_settled(10.0)
        with pytest.raises(ReadOnlyError, match="follows M:current"):
            twin.set({"current": 1.0})
        for request in ({"SERVER:RESET": True}, {"SERVER:SNAPSHOT": '{"current": 1.0}'}):
            with pytest.raises(ReadOnlyError, match="follows M:current"):
                twin.set(request)
        twin.set({"gap": 0.2}, 10.0)
        twin.model.set({"current": 4.0})  # past the server: it is put right
        assert_soon(lambda: twin.model.get(["current"])["current"].item() == 0.0)
        assert_soon(lambda: twin.get("current").value == 0.0)
