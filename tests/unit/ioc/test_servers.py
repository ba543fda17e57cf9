"""Servers on both protocols in this process: models beside each other, rivals, clients that may not write, probes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("p4p")
pytest.importorskip("caproto")

from lume_diff.errors import ControlError, SimulatorError, ValidationError
from lume_diff.ioc import Server, Servers, Settling
from tests.system.ioc.conftest import free_ports, settings_of
from tests.unit.ioc.conftest import QUENCH, Magnet


@pytest.fixture
def settings(monkeypatch):
    """Return ports that nobody else uses; caproto's client takes them from the environment."""
    found = settings_of(free_ports())
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def client(settings):
    from lume_diff.control.pva import PVAClient

    with PVAClient(settings) as made:
        yield made


def eventually(holds, patience=20.0):
    end = time.monotonic() + patience
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def read(client, *names):
    found = client.get(names, timeout=10.0)
    return tuple(found[name].value for name in names)


def ca_read(name):
    from caproto.sync.client import read

    return read(name, timeout=10.0, repeater=False).data[0]


def test_models_under_prefixes_share_ports_and_live_by_themselves(settings, client):
    first = Server(Magnet(), "A:", settings=settings)
    second = Server(Magnet(), "B:", settings=settings, read_only=True)
    with Servers(first, second) as both:
        both.wait_ready(30.0)
        client.put({"A:current": 2.0})
        assert read(client, "A:field", "B:field") == (4.0, 0.0)
        assert (ca_read("A:field"), ca_read("B:field")) == (4.0, 0.0)
        second.set({"current": 1.0}, 20.0)
        assert read(client, "A:field", "B:field") == (4.0, 2.0)
        assert ca_read("B:field") == 2.0
        with pytest.raises(ControlError, match="read-only"):
            client.put({"B:current": 3.0})
        names = read(client, "B:SERVER:PVS")[0].split("\n")
        assert "current" in names
        assert all(read(client, f"B:{name}") for name in names)


def test_a_name_that_two_models_have_is_refused(settings):
    with pytest.raises(ControlError, match="A:current"), Servers(*(Server(Magnet(), "A:") for _ in range(2))):
        pass
    with pytest.raises(ValidationError, match="same interface"):
        Servers(Server(Magnet(), "A:"), Server(Magnet(), "B:", settings=settings))


@pytest.mark.parametrize("protocol", ["pva", "ca"])
def test_a_rival_is_found_on_either_protocol(settings, protocol):
    with Server(Magnet(), "A:", settings=settings):
        rival = Server(Magnet(), "A:", [protocol], settings=settings, names=["field"], search=2.0)
        with pytest.raises(ControlError, match="A:field"):
            rival.start()
        with pytest.raises(SimulatorError, match="make a new one"):
            rival.start()


def test_who_is_not_on_the_list_is_refused_on_both_protocols(settings, client, tmp_path):
    from caproto.sync.client import write

    log = tmp_path / "writes.jsonl"
    allow = {"users": ["nobody-here"]}
    with Server(Magnet(), "A:", settings=settings, allow=allow, write_log=log, changeable_limits=["current"]) as server:
        server.wait_ready(30.0)
        with pytest.raises(ControlError, match="not among those who may write"):
            client.put({"A:current": 2.0})
        with pytest.raises(ControlError, match="not among those who may write"):
            client.put({"A:current.DRVH": 2.0})
        with pytest.raises(ControlError, match="not among those who may write"):
            client.put({"A:SERVER:RESET": True})
        answer = write("A:current", 2.0, notify=True, timeout=10.0, repeater=False)
        assert "ECA_NOWTACCESS" in str(answer.status)
        assert read(client, "A:current", "A:current.DRVH") == (0.0, 10.0)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["name"] for line in lines[:3]] == ["A:current", "A:current.DRVH", "A:SERVER:RESET"]
    assert {line["outcome"] for line in lines} == {"refused"}


def test_an_image_is_numbered_anew_at_every_shot(settings):
    from p4p.client.thread import Context

    with (
        Server(Magnet(), "A:", ["pva"], settings=settings, rate_hz=20.0) as server,
        Context("pva", conf=settings, useenv=False, nt=False) as context,
    ):
        server.wait_ready(30.0)
        first = context.get("A:map", timeout=10.0)["uniqueId"]
        assert eventually(lambda: context.get("A:map", timeout=10.0)["uniqueId"] >= first + 3)


def test_settings_come_back_in_a_new_server(settings, client, tmp_path):
    options = {"settings": settings, "autosave": tmp_path / "s.json", "settling": {"gap": Settling(rate=100.0)}}
    with Server(Magnet(), "A:", ["pva"], **options) as server:
        server.wait_ready(30.0)
        client.put({"A:current": 2.0, "A:gap": 0.5})
    with Server(Magnet(), "A:", ["pva"], restore="last", **options) as server:
        server.wait_ready(30.0)
        assert (server.get("current").value, server.get("field").value, server.get("gap").value) == (2.0, 4.0, 0.5)
    with pytest.raises(ValidationError, match="needs autosave"):
        Server(Magnet(), "A:", restore="last")


def page_of(server, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.health.port}{path}", timeout=10.0) as page:
            return page.status, json.load(page)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_probe_tells_a_model_that_fails_from_a_server_that_is_gone():
    with Server(Magnet(), "A:", [], health_port=0) as server:
        server.wait_ready(30.0)
        assert page_of(server, "/health")[0] == 200
        with pytest.raises(SimulatorError, match="quench"):
            server.set({"current": QUENCH}, 20.0)
        code, facts = page_of(server, "/health")
        assert (code, facts["is_valid"], "quench" in facts["last_error"]) == (503, False, True)
        assert page_of(server, "/live")[0] == 200
        assert page_of(server, "/else")[0] == 404
        server.set({"current": 1.0}, 20.0)
        assert page_of(server, "/health")[0] == 200


def test_clients_of_channel_access_learn_at_once_that_a_server_has_stopped(settings):
    from lume_diff.control.ca import CAClient

    heard = []
    with CAClient() as client, Server(Magnet(), "A:", ["ca"], settings=settings, search=0.0) as server:
        server.wait_ready(30.0)
        following = client.monitor(["A:field"], lambda _, reading: heard.append(reading.value))
        server.set({"current": 1.0})
        assert eventually(lambda: heard[-1] == 2.0), heard
        server.stop()
        assert eventually(lambda: heard[-1] is None, 5.0), heard
        following.close()
