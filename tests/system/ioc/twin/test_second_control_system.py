"""A control system that lume_diff does not know: one file for its server, one for its client, two entry points."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lume_diff as ld
from lume_diff.control import Condition, ControlClient, Severity
from lume_diff.errors import ControlError
from lume_diff.registry import plugin
from tests.system.ioc.twin.conftest import free_ports
from tests.system.ioc.twin.served_machine import Magnet

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("time_limit", "lines")]

ENTRY_POINTS = """
[lume_diff.servers]
lines = tests.system.ioc.twin.line_server:LineServer

[lume_diff.clients]
lines = tests.system.ioc.twin.line_client:LineClient
"""


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Announce the second control system as an installed package does."""
    package = tmp_path / "lines-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: lines\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("LINE_SERVER_PORT", str(free_ports(1)[0]))


@pytest.fixture
def operator(lines: None) -> Iterator[ControlClient]:
    with plugin("clients", "lines")() as made:
        yield made


def soon(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20.0
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_it_serves_a_model_through_the_same_runtime(operator):
    with ld.serve(Magnet(), "L:", ["lines"]) as server:
        server.wait_ready(20.0)
        operator.put({"L:current": 2.0, "L:polarity": "reversed"})
        found = operator.get(["L:field", "L:map", "L:none"])
        assert (found["L:field"].value, found["L:map"].value[3][5]) == (-2.0, 2.0)
        assert found["L:none"].condition is Condition.DISCONNECTED
        for values, reason in (({"L:current": 99.0}, "outside value_range"), ({"L:current": 7.0}, "quench")):
            with pytest.raises(ControlError, match=reason):
                operator.put(values)
        assert operator.get(["L:field"])["L:field"].severity is Severity.INVALID


def test_a_twin_follows_it_and_sees_it_go_and_come_back(operator):
    with ld.LiveTwin(Magnet(), {"current": "L:current"}, client="lines") as twin:
        for value in (3.0, 4.0):
            with ld.serve(Magnet(), "L:", ["lines"]):
                operator.put({"L:current": value}, timeout=10.0)
                assert soon(lambda value=value: twin.get("field").value == value)
                twin.wait_settled(10.0)
                assert twin.get("field").severity is Severity.NO_ALARM
            assert soon(lambda: twin.get("field").condition is Condition.DISCONNECTED)
            assert twin.get("field").value == value
