"""The command ``lume-diff twin``: with a served machine, with a saved state, and with what cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lume_diff as ld
from lume_diff.cli import app
from lume_diff.control import Condition, ControlClient, Severity
from lume_diff.errors import ControlError
from lume_diff.registry import plugin
from tests.system.ioc.twin.conftest import epics_settings

pytest.importorskip("p4p")
pytest.importorskip("caproto")
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("time_limit")]

ELEMENTS = {"Q1": ["Quadrupole", {"length": 0.1, "k1": 0.0}], "D1": ["Drift", {"length": 1.5}]}
MACHINE = """\
stages:
  gun: {backend: bunch-from-moments, n_particles: 100, mean_energy: 1e8, charge: 1e-10, beta_x: 8, beta_y: 6,
        norm_emit_x: 1e-6, norm_emit_y: 1e-6, sigma_t: 1e-12}
  line: {backend: cheetah, lattice: line.json}
variables:
  Q1.k1: {value_range: [-5, 5]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = json.dumps({"root": "line", "elements": ELEMENTS, "lattices": {"line": list(ELEMENTS)}})
    (tmp_path / "line.json").write_text(text)
    (tmp_path / "machine.yaml").write_text(MACHINE)
    return tmp_path / "machine.yaml"


def size_at(file: Path, k1: float) -> float:
    """Return what the model itself says."""
    model = ld.load_model(file)
    model.set({"Q1.k1": k1})
    return model.get(["final.sigma_x"])["final.sigma_x"].item()


def test_a_saved_state_is_evaluated_and_printed(file, tmp_path):
    state = tmp_path / "state.yaml"
    state.write_text("QUAD:1: 2.5\n")
    options = ["--remote", "Q1.k1=QUAD:1", "--state", str(state), "--isolation", "thread"]
    done = CliRunner().invoke(app, ["twin", str(file), *options])
    assert done.exit_code == 0, done.output
    (line,) = [line for line in done.output.splitlines() if line.split()[:1] == ["final.sigma_x"]]
    assert float(line.split()[1]) == pytest.approx(size_at(file, 2.5), rel=1e-9)
    assert "1 inputs followed, settled" in done.output


def test_a_state_that_lacks_something_fails(file, tmp_path):
    state = tmp_path / "state.yaml"
    state.write_text("QUAD:2: 2.5\n")
    options = ["--remote", "Q1.k1=QUAD:1", "--state", str(state), "--isolation", "thread"]
    done = CliRunner().invoke(app, ["twin", str(file), *options])
    assert done.exit_code == 1
    assert "QUAD:1 is not in the saved state" in done.output


@pytest.mark.parametrize(
    "options, phrase",
    [
        (["--remote", "Q1.k2=A"], "'Q1.k2' is no variable"),
        (["--remote", "Q1.k1=A,Q1.k1=B"], "follows both 'A' and 'B'"),
        (["--remote", "Q1.k1=A", "--write-back", "final.sigma_x"], "expected NAME=PV"),
        (["--remote", "Q1.k1=A", "--archiver", "http://localhost"], "belong together"),
        (["--remote", "Q1.k1=A", "--client", "tango"], "none of the clients"),
    ],
    ids=["unknown", "twice", "pair", "archiver", "client"],
)
def test_what_cannot_be_is_one_line(file, options, phrase):
    done = CliRunner().invoke(app, ["twin", str(file), *options])
    assert done.exit_code == 2
    assert phrase in done.output


Twin = tuple[subprocess.Popen[str], dict[str, str]]


@pytest.fixture
def twin(file: Path, settings: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Twin]]:
    """Return what starts a twin of the machine, served on ports of its own; its output is shown afterwards."""
    own, log = epics_settings(), tmp_path / "log.txt"
    servers = ("EPICS_PVAS_SERVER_PORT", "EPICS_PVAS_BROADCAST_PORT", "EPICS_CAS_SERVER_PORT", "EPICS_CA_SERVER_PORT")
    environment = {**os.environ, **settings, **{name: own[name] for name in servers}, "OMP_NUM_THREADS": "1"}
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> Twin:
        command = [sys.executable, "-m", "lume_diff.cli", "twin", str(file), "--remote", "Q1.k1=M:current"]
        command += ["--prefix", "T:", "--isolation", "thread", *options]
        with log.open("w") as out:
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, text=True))
        return started[-1], own

    yield start
    for process in started:
        process.kill()
        process.wait()
        print(log.read_text())


@pytest.mark.slow
def test_a_served_twin_follows_the_machine_until_it_is_told_to_end(machine, console, twin, file, monkeypatch, tmp_path):
    log = tmp_path / "log.txt"
    console.put({"M:current": 2.0})
    process, own = twin()
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with plugin("clients", "pva")() as pva, plugin("clients", "ca")() as ca:
        for client in (pva, ca):
            wait_for(client, "T:Q1.k1", 2.0)
            reading = client.get(["T:final.sigma_x"])["T:final.sigma_x"]
            assert reading.severity is Severity.NO_ALARM
            assert reading.value == pytest.approx(size_at(file, 2.0), rel=1e-9)
            with pytest.raises(ControlError, match=r"T:Q1\.k1"):
                client.put({"T:Q1.k1": 1.0})
        console.put({"M:current": 6.0})  # beyond the twin's range
        for client in (pva, ca):
            wait_for(client, "T:Q1.k1", 2.0, Condition.FAILED if client is pva else Condition.UNTRUSTED)
        console.put({"M:current": -1.0})
        wait_for(ca, "T:Q1.k1", -1.0)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20.0) == 0
    assert log.read_text().count("Q1.k1: M:current: ") == 0  # nobody is told of it while it is only being connected
    assert "served under T: by pva and ca on 127.0.0.1" in log.read_text()
    console.put({"M:current": 0.0})


@pytest.mark.slow
def test_a_twin_on_request_reads_the_machine_when_it_is_told_to(machine, console, twin, file, monkeypatch):
    console.put({"M:current": 2.0})
    process, own = twin("--on-request", "--protocol", "pva")
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    with plugin("clients", "pva")() as client:
        wait_for(client, "T:Q1.k1", 0.0, Condition.FAILED)  # nothing has been read yet
        client.put({"T:TWIN:UPDATE": True})
        assert shown(client) == (2.0, Severity.NO_ALARM, pytest.approx(size_at(file, 2.0), rel=1e-9), Severity.NO_ALARM)

        console.put({"M:current": -1.0})  # which nobody has asked for
        assert shown(client)[0] == 2.0
        client.put({"T:TWIN:UPDATE": True})
        good = (-1.0, pytest.approx(size_at(file, -1.0), rel=1e-9))
        assert shown(client) == (good[0], Severity.NO_ALARM, good[1], Severity.NO_ALARM)

        machine.signal(signal.SIGSTOP)
        client.put({"T:TWIN:UPDATE": True}, timeout=20.0)  # reads what there is
        assert shown(client) == (good[0], Severity.INVALID, good[1], Severity.INVALID)
        assert "M:current" in client.get(["T:final.sigma_x"])["T:final.sigma_x"].message
        machine.signal(signal.SIGCONT)
        client.put({"T:TWIN:UPDATE": True}, timeout=20.0)
        assert shown(client) == (good[0], Severity.NO_ALARM, good[1], Severity.NO_ALARM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)  # the second signal ends it at once
    assert process.wait(20.0) == 128 + signal.SIGTERM


def shown(client: ControlClient) -> tuple[float, Severity, float, Severity]:
    """Return what the twin shows of an input and an output."""
    found = client.get(["T:Q1.k1", "T:final.sigma_x"])
    return tuple(part for one in found.values() for part in (one.value, one.severity))


def wait_for(client: ControlClient, name: str, value: float, condition: Condition = Condition.FINE) -> None:
    end = time.monotonic() + 60.0
    while True:
        reading = client.get([name])[name]
        if (reading.value, reading.condition) == (value, condition):
            return
        assert time.monotonic() < end, reading
        time.sleep(0.1)
