"""Fits that are killed or stopped by real signals: what was done is kept, and the end is the same bit by bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lume_diff.calibration import CalibrationResult, Reconstruction
from lume_diff.calibration.fit.configuration import CalibrationConfig
from lume_diff.calibration.fit.yaml_files import read_config
from lume_diff.calibration.reconstruction.configuration import ReconstructionConfig

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.usefixtures("time_limit"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

Make = Callable[..., Any]

# Whoever runs the tests in the background has the signal ignored, and the command would inherit that.
_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lume_diff.cli import main
main()
"""
_MACHINE = """
import math, os, time
from pathlib import Path
import cheetah, numpy as np, torch
import lume_diff as ld

HERE = Path(__file__).parent
D = torch.float64
PIXEL = 2e-4

def counted(a, b):
    with open(HERE / "runs.txt", "a") as file:
        file.write("run\\n")
    time.sleep(float(os.environ.get("RUN_SECONDS", "0")))
    return math.exp(a * b) + a

def code():
    number = ld.TorchScalarVariable
    inputs = [number(name="a", default_value=1.0), number(name="b", default_value=1.0)]
    return ld.BlackBoxModel.from_function(counted, inputs, [number(name="y")], archive=os.environ["ARCHIVE"])

def line(emittance=8e-6):
    twiss = dict(beta_x=8.0, norm_emit_x=emittance, beta_y=8.0, norm_emit_y=emittance)
    gun = ld.BunchFromMoments(2000, mean_energy=1e8, sigma_energy=1e4, sigma_t=1e-12, charge=1e-10, **twiss)
    number = lambda value: torch.tensor(value, dtype=D)
    parts = [
        cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D),
        cheetah.Drift(number(1.5), name="D1", dtype=D),
        cheetah.Screen((30, 30), torch.tensor([PIXEL, PIXEL], dtype=D), is_active=True, name="SCR1", dtype=D),
    ]
    return ld.CheetahModel(cheetah.Segment(parts, name="line"), gun.get("final_particles"), controls=["Q1.k1"])

def measure():
    k1 = np.linspace(-8.0, 8.0, 5)
    light = line(1.2e-5)({"Q1.k1": torch.tensor(k1)}, outputs=["SCR1.image"])["SCR1.image"].numpy()
    np.savez(HERE / "scan.npz", k1=k1, images=1000.0 * light / light.max())
"""
_CONFIGS = {
    "calibrate": """
        model: {entry: "machine.py:code"}
        data:
          - {file: scan.csv, settings: {a: a}, outputs: {y: y}, sigma: {y: 0.01}}
        parameters:
          - {kind: scale, inputs: a, prior: {kind: normal, mean: 1.0, std: 0.2}}
          - {kind: offset, inputs: b, prior: {kind: normal, mean: 0.0, std: 0.3}}
        """,
    "reconstruct": """
        model: {entry: "machine.py:line"}
        data: {file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.2 mm}
        n_particles: 400
        epochs: 60
        ensemble: 2
        """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a machine, what was measured, and what is to be fitted."""
    import runpy

    (tmp_path / "machine.py").write_text(_MACHINE)
    for command, text in _CONFIGS.items():
        (tmp_path / f"{command}.yaml").write_text(textwrap.dedent(text))
    a = np.linspace(0.2, 1.5, 6)
    rows = [f"{x!r},{float(np.exp(1.15 * x * 0.8)) + 1.15 * x!r}" for x in a.tolist()]
    (tmp_path / "scan.csv").write_text("\n".join(["a,y", *rows]) + "\n")
    runpy.run_path(str(tmp_path / "machine.py"))["measure"]()
    return tmp_path


def start(command: str, folder: Path) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    words = [command, f"{folder / command}.yaml", "--out", folder / "result", "--checkpoint", folder / "fit.ckpt"]
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str], how: signal.Signals) -> str:
    """Send a signal to a process that runs, and return what it has printed."""
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(how)
    return process.communicate(timeout=120)[0]


def runs(folder: Path) -> int:
    """Return how often the code has run, in whatever process."""
    file = folder / "runs.txt"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_calibrate_goes_on_after_signals(folder: Path, wait_until: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(folder / "calibrate.yaml", CalibrationConfig)
    monkeypatch.setenv("ARCHIVE", str(folder / "whole.db"))
    whole = config.build(folder).run(progress=False)
    needed = runs(folder)
    (folder / "runs.txt").unlink()

    monkeypatch.setenv("ARCHIVE", str(folder / "runs.db"))
    monkeypatch.setenv("RUN_SECONDS", "0.02")  # to be caught in the middle
    killed = start("calibrate", folder)
    assert wait_until(lambda: runs(folder) > needed // 3, 60.0)
    end(killed, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "result" / "result.yaml").exists()

    stopped = start("calibrate", folder)
    assert wait_until(lambda: runs(folder) > 3 * needed // 4, 60.0)
    text = end(stopped, signal.SIGINT)
    assert stopped.returncode == 1, text
    assert "stopped by Ctrl-C" in text
    assert not CalibrationResult.load(folder / "result" / "result.yaml")["converged"]

    again = config.build(folder).run(checkpoint=folder / "fit.ckpt", progress=False)
    assert again.u.equal(whole.u)
    assert again.errors == whole.errors
    assert again.cost == whole.cost
    # Each process that was ended loses the run that it was in the middle of, and nothing else.
    assert needed <= runs(folder) <= needed + 2


def test_reconstruct_goes_on_after_signals(folder: Path, wait_until: Make) -> None:
    config = read_config(folder / "reconstruct.yaml", ReconstructionConfig)
    whole = config.build(folder).run(**config.options, progress=False)
    checkpoint = folder / "fit.ckpt"

    killed = start("reconstruct", folder)
    assert wait_until(checkpoint.exists, 60.0)
    end(killed, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "result" / "result.yaml").exists()

    written = checkpoint.stat().st_mtime_ns
    stopped = start("reconstruct", folder)
    assert wait_until(lambda: checkpoint.stat().st_mtime_ns > written, 60.0)
    text = end(stopped, signal.SIGINT)
    assert stopped.returncode == 1, text
    assert "STOPPED" in text
    kept = Reconstruction.load(folder / "result" / "result.yaml")
    assert not kept["finished"]
    assert len(kept["beam"]) == 400

    again = config.build(folder).run(**config.options, checkpoint=checkpoint, progress=False)
    assert again.history == whole.history
    assert len(whole.history) > len(kept["history"])
    for beam, other in zip(again.beams, whole.beams, strict=True):
        for name in ("x", "px", "y", "py"):
            assert beam[name].equal(other[name])
    assert again.runs < whole.runs
