"""The contract of control clients, with a machine in a process of its own: every client does the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lume_diff.control import Condition, ControlClient, Reading, Severity
from lume_diff.errors import ControlError
from lume_diff.registry import plugin, plugins
from tests.system.ioc.twin.conftest import MachineProcess

pytest.importorskip("p4p")
pytest.importorskip("caproto")
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("machine", "time_limit")]


class Heard:
    """Keep what a listener is told."""

    def __init__(self) -> None:
        self.readings: list[tuple[str, Reading]] = []
        self._more = threading.Condition()

    def __call__(self, name: str, reading: Reading) -> None:
        with self._more:
            self.readings.append((name, reading))
            self._more.notify_all()

    def wait(self, wanted: Callable[[str, Reading], bool], seconds: float = 30.0) -> bool:
        with self._more:
            return self._more.wait_for(lambda: any(wanted(*one) for one in self.readings), seconds)

    def forget(self) -> None:
        with self._more:
            self.readings.clear()


@pytest.fixture
def heard() -> Heard:
    return Heard()


def test_every_client_that_is_announced_is_tested_here(request):
    assert plugins("clients") == ["ca", "pva"]


@pytest.mark.parametrize(
    "name, value",
    [
        ("current", 1.25),
        ("turns", 3),
        ("polarity", "reversed"),
        ("cooling", False),
        ("label", "dipole µ 2"),
        ("label", ""),
        ("ramp", [0.5, -1.0, 2.0]),
        ("shims", [[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]),
    ],
    ids=["float", "int", "enum", "bool", "text", "empty text", "array", "image"],
)
def test_what_is_put_can_be_read(client, name, value):
    client.put({f"M:{name}": value})
    reading = client.get([f"M:{name}"])[f"M:{name}"]
    if isinstance(value, list):
        np.testing.assert_array_equal(np.reshape(reading.value, np.shape(value)), value)
    else:
        assert reading.value == value
        assert type(reading.value) is type(value)
    assert (reading.severity, reading.condition, reading.message) == (Severity.NO_ALARM, Condition.FINE, "")
    assert reading.time > 1.7e9


def test_several_are_written_and_read_together(client):
    client.put({"M:current": 2.0, "M:polarity": "normal", "M:turns": 1})
    found = client.get(["M:field", "M:map", "M:nothing"], timeout=2.0)
    assert list(found) == ["M:field", "M:map", "M:nothing"]
    assert found["M:field"].value == 2.0
    np.testing.assert_array_equal(np.reshape(found["M:map"].value, (4, 6)), np.full((4, 6), 2.0))
    away = found["M:nothing"]
    assert (away.value, away.severity, away.condition) == (None, Severity.INVALID, Condition.DISCONNECTED)


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("current", 11.0, "outside value_range"),
        ("current", float("nan"), "nan"),
        ("polarity", "sideways", "sideways"),
        ("current", 7.0, "quench"),
        ("field", 1.0, "output of the model"),
    ],
    ids=["out of range", "NaN", "no choice", "failing model", "read-only"],
)
def test_a_refused_put_raises_names_the_variable_and_changes_nothing(client, name, value, reason):
    client.put({"M:current": 2.0, "M:polarity": "normal"})
    with pytest.raises(ControlError, match=f"M:{name}") as caught:
        client.put({f"M:{name}": value})
    has_texts = type(client).__name__ == "PVAClient"  # Channel Access carries no text
    assert (reason in str(caught.value)) or (not has_texts and "refused" in str(caught.value))
    assert client.get(["M:current"])["M:current"].value == 2.0
    client.put({"M:current": 1.0})


def test_a_put_to_nothing_raises(client):
    with pytest.raises(ControlError, match="M:nothing"):
        client.put({"M:nothing": 1.0}, timeout=0.5)


def test_a_monitor_tells_the_present_value_and_every_last_one(client, heard):
    client.put({"M:current": 0.5, "M:polarity": "normal"})
    subscription = client.monitor(["M:current", "M:polarity", "M:map"], heard)
    assert heard.wait(lambda name, r: name == "M:current" and r.value == 0.5)
    assert heard.wait(lambda name, r: name == "M:polarity" and r.value == "normal")
    client.put({"M:current": 1.5, "M:polarity": "reversed"})
    assert heard.wait(lambda name, r: name == "M:current" and r.value == 1.5)
    assert heard.wait(lambda name, r: name == "M:polarity" and r.value == "reversed")
    assert heard.wait(lambda name, r: name == "M:map" and r.value is not None and np.ravel(r.value)[5] == 1.5)
    subscription.close()
    subscription.close()
    heard.forget()
    client.put({"M:current": 2.5})
    assert not heard.wait(lambda name, r: r.value == 2.5, seconds=0.3)


def test_two_listeners_hear_the_same_and_end_by_themselves(client, heard):
    other = Heard()
    first, second = client.monitor(["M:turns"], heard), client.monitor(["M:turns"], other)
    client.put({"M:turns": 5})
    assert heard.wait(lambda name, r: r.value == 5)
    assert other.wait(lambda name, r: r.value == 5)
    first.close()
    client.put({"M:turns": 6})
    assert other.wait(lambda name, r: r.value == 6)
    second.close()
    assert not any(r.value == 6 for _, r in heard.readings)


def test_an_alarm_comes_with_the_reading(client):
    with pytest.raises(ControlError):
        client.put({"M:current": 7.0})
    reading = client.get(["M:field"])["M:field"]
    assert (reading.severity, reading.condition) == (Severity.INVALID, Condition.FAILED)
    client.put({"M:current": 1.0})
    assert client.get(["M:field"])["M:field"].severity is Severity.NO_ALARM


@pytest.fixture
def put_back(machine: MachineProcess) -> Iterator[MachineProcess]:
    """Let a test kill the machine."""
    yield machine
    machine.start()


def test_a_monitor_tells_of_a_lost_machine_and_of_its_return(client, heard, put_back):
    client.put({"M:current": 0.5})
    subscription = client.monitor(["M:current"], heard)
    assert heard.wait(lambda name, r: r.value == 0.5)
    put_back.kill()
    assert heard.wait(lambda name, r: r.condition is Condition.DISCONNECTED)
    heard.forget()
    put_back.start()
    assert heard.wait(lambda name, r: r.value == 0.0 and r.severity is Severity.NO_ALARM, seconds=60.0)
    client.put({"M:current": 3.0}, timeout=10.0)
    assert heard.wait(lambda name, r: r.value == 3.0)
    subscription.close()


def test_a_client_is_closed_twice(settings):
    for name in plugins("clients"):
        one: Any = plugin("clients", name)()
        assert isinstance(one, ControlClient)
        one.close()
        one.close()
