"""Servers in processes of their own, on ports of their own, and the command that talks to them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lume_diff.cli import app

MODEL = f"{Path(__file__).with_name('magnet.py')}:make"
PREFIX = "T:"
_PATIENCE = 120.0  # [s] for a process to come up or to end


def free_ports() -> int:
    """Return the first of four ports in a row that nobody uses."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            base = first.getsockname()[1]
        if base < 60000 and all(_is_free(base + i) for i in range(4)):
            return base


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                return False
    return True


def settings_of(base: int) -> dict[str, str]:
    """Return what tells servers and clients where to find each other."""
    found = {"EPICS_PVA_ADDR_LIST": "127.0.0.1", "EPICS_CA_ADDR_LIST": "127.0.0.1"}
    # On one computer a search by UDP may reach another client's socket, a stopped one's too, instead of the server's.
    found["EPICS_PVA_NAME_SERVERS"] = f"127.0.0.1:{base}"
    found |= {"EPICS_PVA_AUTO_ADDR_LIST": "NO", "EPICS_CA_AUTO_ADDR_LIST": "NO"}
    found |= {name: str(base) for name in ("EPICS_PVA_SERVER_PORT", "EPICS_PVAS_SERVER_PORT")}
    found |= {name: str(base + 1) for name in ("EPICS_PVA_BROADCAST_PORT", "EPICS_PVAS_BROADCAST_PORT")}
    found |= {name: str(base + 2) for name in ("EPICS_CA_SERVER_PORT", "EPICS_CAS_SERVER_PORT")}
    return found | {name: str(base + 3) for name in ("EPICS_CA_REPEATER_PORT", "EPICS_CAS_BEACON_PORT")}


class Place:
    """Processes that share ports.

    Args:
        folder: where their output goes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = free_ports()
        self.settings = settings_of(self.base)
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, command: str = "serve") -> subprocess.Popen[bytes]:
        """Start a command; what it prints is in its ``.log``."""
        log = self.folder / f"{command}-{len(self._started)}.log"
        with log.open("wb") as out:
            made = subprocess.Popen(
                [sys.executable, "-m", "lume_diff.cli", command, *arguments],
                env={**os.environ, **self.settings, "OMP_NUM_THREADS": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        made.log = log  # type: ignore[attr-defined]
        self._started.append(made)
        return made

    def serve(self, *options: str, wait: bool = True) -> subprocess.Popen[bytes]:
        """Serve the magnet; returns when it is ready."""
        made = self.start("--entry", MODEL, "--prefix", PREFIX, "--protocol", "pva,ca", *options)
        if wait:
            self.ready(made)
        return made

    def ready(self, made: subprocess.Popen[bytes]) -> None:
        """Wait until a server can be asked."""
        end = time.monotonic() + _PATIENCE
        while "\nready" not in printed(made):
            assert made.poll() is None, f"the server has ended:\n{printed(made)}"
            assert time.monotonic() < end, f"the server does not come up:\n{printed(made)}"
            time.sleep(0.05)

    def pv(self, *arguments: str) -> Result:
        """Run ``lume-diff pv``, in this process: it is a client like others, and a fresh one takes a second to load."""
        return CliRunner().invoke(app, ["pv", *arguments], env=self.settings)

    def end(self) -> None:
        """Kill what is left."""
        for one in self._started:
            if one.poll() is None:
                one.send_signal(signal.SIGCONT)
                one.kill()
            one.wait(_PATIENCE)


def printed(process: subprocess.Popen[bytes]) -> str:
    """Return what a process has printed."""
    return str(process.log.read_text(errors="replace"))  # type: ignore[attr-defined]


@pytest.fixture
def place(tmp_path: Path, time_limit: None) -> Iterator[Place]:
    """Return a place for processes; all are killed at the end."""
    pytest.importorskip("p4p")
    pytest.importorskip("caproto")
    found = Place(tmp_path)
    yield found
    found.end()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], float], bool]:
    """Return what waits until something holds."""

    def wait(holds: Callable[[], bool], patience: float = 20.0) -> bool:
        end = time.monotonic() + patience
        while not holds():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    return wait
