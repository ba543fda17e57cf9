"""Crowds, nonsense, clients that take nothing, kills: short here, long by ``make soak``."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.system.ioc.conftest import PREFIX, printed

pytestmark = pytest.mark.system

LONG = bool(os.environ.get("LUME_DIFF_SOAK"))
CLIENTS, SECONDS = (50, 20.0) if LONG else (8, 2.0)
MALFORMED = 400 if LONG else 40
IMAGES = 300 if LONG else 60  # of 2 MB each
MEGABYTE = 2**20

CROWD = """\
import sys, threading, time
from lume_diff.control import Severity
from lume_diff.control.pva import PVAClient

count, seconds = int(sys.argv[1]), float(sys.argv[2])
end, wrong, done = time.monotonic() + seconds, [], [0] * count

def work(number):
    with PVAClient() as client:
        while time.monotonic() < end:
            found = client.get(["T:current", "T:field", "T:SERVER:CYCLE"], timeout=20.0)
            if any(reading.severity is Severity.INVALID for reading in found.values()):
                wrong.append(str(found))
            if number % 5 == 0:
                client.put({"T:gap": 0.1 + 0.001 * number}, timeout=20.0)
            done[number] += 1

threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(min(done), sum(done), len(wrong), *wrong[:3])
"""

FOLLOWERS = {
    "pva": ["-m", "lume_diff.cli", "pv", "monitor", f"{PREFIX}image"],
    "ca": ["-m", "caproto.commandline.monitor", "--no-repeater", f"{PREFIX}image"],
}


def memory_of(server: subprocess.Popen[bytes]) -> int:
    """Return the memory that a process holds [bytes]."""
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def client(place):
    from lume_diff.control.pva import PVAClient

    with PVAClient(place.settings) as made:
        yield made


def answers(client) -> bool:
    name = f"{PREFIX}SERVER:STATUS"
    return client.get([name], timeout=5.0)[name].value == "READY"


def test_a_crowd_reads_and_writes_and_none_is_left_unanswered(place, client):
    server = place.serve("--isolation", "thread")
    assert answers(client)
    before = memory_of(server)
    crowd = subprocess.run(
        [sys.executable, "-c", CROWD, str(CLIENTS), str(SECONDS)],
        env={**os.environ, **place.settings},
        capture_output=True,
        text=True,
        timeout=120.0,
    )
    least, done, wrong, *examples = crowd.stdout.split(maxsplit=3)
    print(f"{CLIENTS} clients, {SECONDS:g} s: {done} rounds, {(memory_of(server) - before) / MEGABYTE:.1f} MB more")
    assert (int(wrong), examples, crowd.returncode) == (0, [], 0), crowd.stderr
    assert int(least) > 0
    assert memory_of(server) - before < 60 * MEGABYTE


def test_nonsense_on_the_wire_leaves_the_server_serving(place, client):
    server = place.serve("--isolation", "thread")
    assert answers(client)
    before, dice = memory_of(server), random.Random(1)
    for number in range(MALFORMED):
        port = place.base + 2 * (number % 2)  # PVAccess, Channel Access
        with socket.create_connection(("127.0.0.1", port), timeout=10.0) as one:
            head = (b"\xca\x02\x00\x01\xff\xff\xff\x7f", b"\x00\x0f\xff\xff\x00\x00\x00\x01", b"")[number % 3]
            one.sendall(head + dice.randbytes(dice.choice((1, 20, 500))))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.sendto(dice.randbytes(dice.choice((1, 20, 500))), ("127.0.0.1", place.base + 1 + number % 2))
    assert answers(client)
    from caproto.sync.client import read

    environment = dict(os.environ)
    try:
        os.environ.update(place.settings)
        assert read(f"{PREFIX}current", timeout=10.0, repeater=False).data[0] == 0.0
    finally:
        os.environ.clear()
        os.environ.update(environment)
    print(f"{MALFORMED} connections: {(memory_of(server) - before) / MEGABYTE:.1f} MB more")
    assert memory_of(server) - before < 60 * MEGABYTE


@pytest.mark.parametrize("protocol", ["pva", "ca"])
def test_a_client_that_is_stopped_holds_nobody_up(place, client, eventually, protocol):
    server = place.serve("--isolation", "thread", "--rate", "20")
    log = (place.folder / "follower.log").open("wb")
    follower = subprocess.Popen(
        [sys.executable, *FOLLOWERS[protocol]],
        env={**os.environ, **place.settings, "PYTHONUNBUFFERED": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        assert eventually(lambda: (place.folder / "follower.log").stat().st_size > 200, 30.0), printed(server)
        name, knob = f"{PREFIX}SERVER:CYCLE", f"{PREFIX}current"
        # Both are found before: a search by UDP may reach the stopped client's socket instead of the server's.
        assert eventually(lambda: all(r.value is not None for r in client.get([name, knob]).values()), 30.0), printed(
            server
        )
        follower.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        first, before = client.get([name])[name].value, memory_of(server)
        assert first is not None, printed(server)
        assert eventually(lambda: client.get([name])[name].value >= first + IMAGES, 120.0)
        begun = time.monotonic()
        client.put({knob: 1.0}, timeout=10.0)
        print(f"{IMAGES} images past a stopped client of {protocol}: put takes {time.monotonic() - begun:.3f} s, ")
        print(f"{(memory_of(server) - before) / MEGABYTE:.1f} MB more")
        assert memory_of(server) - before < 60 * MEGABYTE
    finally:
        follower.kill()
        follower.wait(10.0)
        log.close()


def test_followers_are_back_after_a_kill(place, client, tmp_path):
    options = ("--isolation", "thread", "--autosave", str(tmp_path / "s.json"), "--restore", "last")
    server = place.serve(*options)
    client.put({f"{PREFIX}current": 4.0}, timeout=20.0)
    time.sleep(1.5)
    seen, back = [], threading.Event()

    def show(name, reading):
        seen.append(reading)
        if reading.value == 8.0 and any(one.value is None for one in seen):
            back.set()

    following = client.monitor([f"{PREFIX}field"], show)
    server.kill()
    server.wait(10.0)
    place.serve(*options)
    begun = time.monotonic()
    assert back.wait(30.0), f"{seen}"
    print(f"back {time.monotonic() - begun:.1f} s after the server was ready")
    following.close()
