"""A served model lives through kills, signals, rivals and clients that must not write."""

from __future__ import annotations

import json
import signal
import urllib.request

import pytest

from tests.system.ioc.conftest import MODEL, PREFIX, printed

pytestmark = pytest.mark.system


@pytest.fixture
def client(place):
    from lume_diff.control.pva import PVAClient

    with PVAClient(place.settings) as made:
        yield made


def value(client, name):
    return client.get([PREFIX + name], timeout=5.0)[PREFIX + name].value


def test_setpoints_come_back_after_a_kill(place, client, tmp_path, children, exists, eventually):
    saved = tmp_path / "saved.json"
    options = ("--autosave", str(saved), "--restore", "last", "--isolation", "process")
    server = place.serve(*options)
    client.put({f"{PREFIX}current": 2.5, f"{PREFIX}polarity": "reversed", f"{PREFIX}gap": 0.25}, timeout=20.0)
    assert eventually(lambda: json.loads(saved.read_text())["values"]["gap"] == 0.25, 5.0)
    families = children(server.pid)
    server.send_signal(signal.SIGKILL)
    server.wait(10.0)
    assert eventually(lambda: not any(map(exists, families)), 10.0)

    content = json.loads(saved.read_text())
    content["values"] |= {"gap": 55.0, "gone": 1.0}  # out of its limits; of no variable
    saved.write_text(json.dumps(content))
    again = place.serve(*options)
    assert eventually(lambda: value(client, "field") == -5.0)
    assert eventually(lambda: value(client, "current") == 2.5)
    assert (value(client, "polarity"), value(client, "gap")) == ("reversed", 0.1)
    assert "gap is not restored" in printed(again)
    assert "gone is not restored" in printed(again)


def test_a_signal_ends_it_cleanly_and_the_last_write_is_saved(place, client, tmp_path, children, exists):
    saved, log = tmp_path / "saved.json", tmp_path / "writes.jsonl"
    server = place.serve("--autosave", str(saved), "--write-log", str(log), "--health-port", str(place.base + 3))
    with urllib.request.urlopen(f"http://127.0.0.1:{place.base + 3}/health", timeout=5.0) as page:
        assert json.load(page)["is_valid"]
    families = children(server.pid)
    assert families
    client.put({f"{PREFIX}current": 3.0}, timeout=20.0)
    server.send_signal(signal.SIGTERM)
    assert server.wait(20.0) == 0, printed(server)
    assert printed(server).endswith("stopped\n")
    assert not any(map(exists, families))
    assert json.loads(saved.read_text())["values"]["current"] == 3.0
    (line,) = map(json.loads, log.read_text().splitlines())
    assert (line["outcome"], line["name"], line["old"], line["new"]) == ("accepted", f"{PREFIX}current", 0.0, 3.0)
    assert "@127.0.0.1" in line["client"]


def test_a_rival_with_the_same_names_does_not_come_up(place, client):
    place.serve("--isolation", "thread", "--read-only")
    rival = place.start("--entry", MODEL, "--prefix", PREFIX, "--protocol", "ca", "--search", "2")
    assert rival.wait(60.0) == 2
    assert f"{PREFIX}current" in printed(rival)
    assert "another server answers" in printed(rival)

    refused = place.pv("put", f"{PREFIX}current", "1.0")
    assert refused.exit_code == 1
    assert "read-only" in refused.stderr
    assert value(client, "current") == 0.0


def test_the_command_reads_writes_follows_and_lists(place):
    place.serve("--isolation", "thread")
    done = place.pv("put", f"{PREFIX}current", "--", "-0.8")
    assert (done.exit_code, done.stdout.strip()) == (0, f"{PREFIX}current 0.0 -> -0.8")
    read = place.pv("get", "--json", f"{PREFIX}field", f"{PREFIX}polarity", f"{PREFIX}lamp")
    assert [json.loads(line)["value"] for line in read.stdout.splitlines()] == [-1.6, "normal", False]
    refused = place.pv("put", f"{PREFIX}current", "11")
    assert refused.exit_code == 1
    assert "outside" in refused.stderr
    mistaken = place.pv("put", f"{PREFIX}lamp", "maybe")
    assert mistaken.exit_code == 2
    listed = place.pv("list", PREFIX)
    assert {f"{PREFIX}current", f"{PREFIX}image", f"{PREFIX}SERVER:STATUS"} <= set(listed.stdout.split())
    told = place.pv("info", f"{PREFIX}current")
    assert "DRVH 10.0" in told.stdout
    followed = place.pv("monitor", f"{PREFIX}SERVER:HEARTBEAT", "-n", "2")
    assert len(followed.stdout.splitlines()) == 2
    lost = place.pv("get", "T:none", "--timeout", "0.5")
    assert lost.exit_code == 1
    done = place.pv("put", f"{PREFIX}current", "-0.8")  # the same without '--'
    assert (done.exit_code, done.output) == (0, f"{PREFIX}current -0.8 -> -0.8\n")
    done = place.pv("put", "-p", "ca", f"{PREFIX}polarity", "reversed")
    assert (done.exit_code, done.stdout.strip()) == (0, f"{PREFIX}polarity normal -> reversed"), done.stderr
    read = place.pv("get", "-p", "ca", "--json", f"{PREFIX}field")
    assert json.loads(read.stdout)["value"] == 1.6
    refused = place.pv("put", "-p", "ca", f"{PREFIX}current", "11")
    assert refused.exit_code == 1
