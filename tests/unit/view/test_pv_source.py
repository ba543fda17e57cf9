"""A served magnet that is followed through its process variables, and a twin beside it."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("p4p")

from lume_diff.control.pva import PVAClient
from lume_diff.control.readings import Condition
from lume_diff.errors import ControlError, ReadOnlyError, ValidationError
from lume_diff.ioc import Server
from lume_diff.view.doubt import doubt_of
from lume_diff.view.pv_source import PVSource
from lume_diff.view.twin_source import TwinSource
from tests.system.ioc.conftest import free_ports, settings_of
from tests.unit.ioc.conftest import QUENCH, Magnet
from tests.unit.view.conftest import eventually


@pytest.fixture(scope="module")
def settings():
    return settings_of(free_ports())


@pytest.fixture(scope="module")
def client(settings):
    with PVAClient(settings) as made:
        yield made


def served(settings):
    return Server(Magnet(), "M:", ("pva",), settings=settings, search=0.0)


@pytest.fixture
def server(settings):
    with served(settings) as made:
        yield made.wait_ready(60.0)


@pytest.fixture
def source(server, client):
    with PVSource("M:", client, writable=True, timeout=20.0) as made:
        yield made


def test_a_server_tells_what_it_serves(source, server):
    assert source.variables == {name: server.served.variables[name] for name in server.model_names}
    assert source.latest().value("map").shape == (40, 60)
    assert source.limits("current").drive == (-10.0, 10.0)
    assert source.model is None


def test_writes_go_through_and_errors_come_back(source):
    outcome = []
    source.write({"current": 3.0, "polarity": "reversed"}, "test", outcome.append)
    assert eventually(lambda: source.latest().value("field") == -6.0)
    assert eventually(lambda: outcome == [None])
    source.write({"current": QUENCH}, "test", outcome.append)
    assert eventually(lambda: len(outcome) == 2)
    assert "quench" in str(outcome[1])
    assert eventually(lambda: not source.latest().is_good("field"))
    source.restore({"current": 1.0, "polarity": "normal"}, "test", outcome.append)
    assert eventually(lambda: source.latest().is_good("field") and source.latest().value("field") == 2.0)
    with pytest.raises(ValidationError, match="nothing"):
        source.write({"nothing": 1.0}, "test", print)


def test_a_lost_server_shows_and_comes_back(settings, client):
    server = served(settings).start().wait_ready(60.0)
    with PVSource("M:", client, timeout=20.0) as source:
        before = time.time()
        server.stop()
        assert eventually(lambda: not source.latest().is_good("field"))
        frame = source.latest()
        assert frame.readings["field"].condition is Condition.DISCONNECTED
        assert frame.value("field") == 0.0  # the last value, which does not look fresh
        assert frame.good_until["field"] >= before - 1.0
        with served(settings) as again:
            again.wait_ready(60.0)
            assert eventually(lambda: source.latest().is_good("field"), 40.0)


def test_a_server_whose_heart_stands_still_is_stale(source, monkeypatch):
    assert source.latest().is_good("field")
    monkeypatch.setattr("lume_diff.view.pv_source._SILENCE", -1.0)
    assert eventually(lambda: source.latest().readings["field"].condition is Condition.STALE)
    assert source.latest().good_until["field"] > 0.0
    monkeypatch.setattr("lume_diff.view.pv_source._SILENCE", 30.0)
    assert eventually(lambda: source.latest().is_good("field"))


def test_what_is_not_finite_makes_nothing_else_doubtful(source, server):
    server.set({"gap": 0.0}, 20.0)
    server.set({"current": 1.0}, 20.0)
    assert eventually(lambda: source.latest().readings["force"].condition is Condition.NOT_FINITE)
    assert doubt_of(source.latest()) is None


def test_nobody_there_is_told(client):
    with pytest.raises(ControlError, match="NOBODY:SERVER:VARIABLES"):
        PVSource("NOBODY:", client, timeout=0.5).start()


def test_a_twin_shows_its_model_and_what_is_measured(server, client):
    with TwinSource(Magnet(), "M:", client, isolation="thread") as twin:
        server.set({"current": 2.0}, 20.0)
        assert eventually(lambda: twin.latest().is_good("field") and twin.latest().value("field") == 4.0)
        assert eventually(lambda: twin.latest().measured["field"].value == 4.0)
        assert eventually(lambda: np.array_equal(twin.latest().measured["map"].value, twin.latest().value("map")))
        with pytest.raises(ReadOnlyError):
            twin.write({"current": 1.0}, "test", print)
