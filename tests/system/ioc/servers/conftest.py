"""A served machine and its clients, each in a process of its own, that meet on this computer only."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
START, LIMIT = 90.0, 60.0  # [s] for a server to be ready, for a client to end
LOOPBACK = "127.0.0.1"


def free_ports(count: int) -> list[str]:
    """Return ports that nobody has; all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def settings() -> dict[str, str]:
    """Return settings of a server and its clients."""
    pva, pva_udp, ca, repeater = free_ports(4)
    return {
        "OMP_NUM_THREADS": "1",
        "EPICS_PVAS_SERVER_PORT": pva,
        "EPICS_PVA_SERVER_PORT": pva,
        "EPICS_PVAS_BROADCAST_PORT": pva_udp,
        "EPICS_PVA_BROADCAST_PORT": pva_udp,
        "EPICS_PVA_ADDR_LIST": LOOPBACK,
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_PVA_NAME_SERVERS": f"{LOOPBACK}:{pva}",
        "EPICS_CA_SERVER_PORT": ca,
        "EPICS_CA_REPEATER_PORT": repeater,
        "EPICS_CAS_BEACON_PORT": repeater,
        "EPICS_CA_ADDR_LIST": LOOPBACK,
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_MAX_ARRAY_BYTES": "20000000",
    }


class Running:
    """A process that says when it is ready, and ends with its input."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.settings, self._log = dict(environment), folder / "server.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, **environment}
            )

    def wait_ready(self, sign: str = "ready") -> None:
        """Wait until it says so."""
        end = time.monotonic() + START
        while sign not in self.log().splitlines():
            assert self.process.poll() is None, f"the server has ended\n{self.log()}"
            assert time.monotonic() < end, f"the server is not ready\n{self.log()}"
            time.sleep(0.02)

    def log(self) -> str:
        """Return what it has printed."""
        return self._log.read_text()

    def memory(self) -> float:
        """Return its memory [MB]."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    def end(self) -> None:
        """End it, and show its output, which pytest shows if the test has failed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        print(f"-- log of the server\n{self.log()}")


@contextlib.contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Running]:
    """Serve the machine."""
    command = [sys.executable, str(HERE / "served_machine.py"), json.dumps(options)]
    running = Running(command, folder, settings())
    try:
        running.wait_ready()
        yield running
    finally:
        running.end()


def ask(script: str, environment: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """Run a client and return what it prints."""
    done = subprocess.run(
        [sys.executable, str(HERE / "clients" / script), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Return a served machine, one for all tests of a file, which leave its inputs as they find them."""
    pytest.importorskip("p4p")
    pytest.importorskip("caproto")
    with serving(tmp_path_factory.mktemp("served"), response_matrix=True) as running:
        yield running


@pytest.fixture
def pva(machine: Running) -> Iterator[Any]:
    """Return a p4p client of the machine that gives whole structures."""
    from p4p.client.thread import Context

    environment = {key: value for key, value in machine.settings.items() if key.startswith("EPICS_PVA_")}
    with Context("pva", conf=environment, useenv=False, nt=False) as context:
        yield context
