"""A served machine in a process of its own that can be killed and started again on the same ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from lume_diff.control.client import ControlClient
from lume_diff.registry import plugin

SCRIPT = Path(__file__).parent / "served_machine.py"


def free_ports(count: int) -> list[int]:
    """Return ports that are free for TCP and UDP."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            if port not in found:
                found.append(port)
    return found


def epics_settings() -> dict[str, str]:
    """Return the environment of servers and clients that see only one another."""
    pva, search, ca, repeater = map(str, free_ports(4))
    return {
        "EPICS_PVAS_SERVER_PORT": pva,
        "EPICS_PVAS_BROADCAST_PORT": search,
        "EPICS_PVAS_INTF_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_SERVER_PORT": pva,
        "EPICS_PVA_BROADCAST_PORT": search,
        "EPICS_PVA_ADDR_LIST": "127.0.0.1",
        "EPICS_PVA_AUTO_ADDR_LIST": "NO",
        "EPICS_CA_SERVER_PORT": ca,
        "EPICS_CAS_SERVER_PORT": ca,
        "EPICS_CA_REPEATER_PORT": repeater,
        "EPICS_CA_ADDR_LIST": "127.0.0.1",
        "EPICS_CA_AUTO_ADDR_LIST": "NO",
        "EPICS_CAS_AUTO_BEACON_ADDR_LIST": "NO",
    }


class MachineProcess:
    """A served machine; afterwards its output is shown.

    Args:
        protocols: that it speaks.
        settings: environment of the process.
    """

    prefix = "M:"

    def __init__(self, protocols: Sequence[str], settings: dict[str, str]) -> None:
        self._command = [sys.executable, str(SCRIPT), self.prefix, *protocols]
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> MachineProcess:
        """Start it where it is not running, and wait until it can be used."""
        if self._process is not None:
            return self
        self._process = subprocess.Popen(
            self._command,
            env={**os.environ, **self._settings, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "READY\n", f"the machine says {line!r}; its errors are above"
        return self

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as ``kill -9`` does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="package")
def settings() -> Iterator[dict[str, str]]:
    """Keep what this test file serves and asks to itself."""
    found = epics_settings()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="package")
def machine(settings: dict[str, str]) -> Iterator[MachineProcess]:
    """Return a machine on PVAccess and Channel Access."""
    made = MachineProcess(["pva", "ca"], settings).start()
    yield made
    made.kill()


@pytest.fixture(scope="package", params=["pva", "ca"])
def client(request: pytest.FixtureRequest, settings: dict[str, str]) -> Iterator[ControlClient]:
    """Return a client of each protocol."""
    with plugin("clients", request.param)() as made:
        yield made


@pytest.fixture(scope="package")
def console(settings: dict[str, str]) -> Iterator[ControlClient]:
    """Return what an operator sets the machine with, whatever the twin speaks."""
    with plugin("clients", "pva")() as made:
        yield made
