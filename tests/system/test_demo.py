"""The demonstration as a user starts it: in a process of its own, from an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lume_diff.cli import app
from lume_diff.cli import demo as demo_command
from lume_diff.particles import TorchParticleGroup

pytestmark = [pytest.mark.slow, pytest.mark.system]

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    return subprocess.run(
        [sys.executable, "-m", "lume_diff.cli", "demo", *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=180,
    )


@pytest.fixture(scope="module")
def default_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """Return the demonstration without options, and its folder."""
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder, "--out", "result"), folder / "result"


@pytest.mark.parametrize("target", [200.0, 150.0], ids=["default", "other"])
def test_demo_checks_its_gradient_and_makes_the_beam_round(
    tmp_path: Path, target: float, request: pytest.FixtureRequest
) -> None:
    if target == 200.0:
        done, folder = request.getfixturevalue("default_run")
    else:
        done, folder = run_demo(tmp_path, "--out", "result", "--seed", "7", "--target", "150"), tmp_path / "result"
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("warning:|error:|failed:|Traceback", done.stderr), done.stderr

    knobs = re.findall(
        r"^(Q\w+\.k1) +(injector|linac|diagnostics) +\S+ +([-+]\S+e\S+) +([-+]\S+e\S+) +(\S+e\S+)", done.stdout, re.M
    )
    assert {stage for _, stage, *_ in knobs} == {"injector", "linac", "diagnostics"}
    for knob, _, backward, difference, relative in knobs:
        assert float(backward) != 0.0
        assert float(backward) == pytest.approx(float(difference), rel=1e-6), knob
        assert float(relative) < 1e-6
    sizes = re.findall(r"^sigma_[xy] \[µm\] +screen +(\S+) +(\S+) +(\S+)", done.stdout, re.M)
    for before, after, wanted in sizes:
        assert float(wanted) == target
        assert abs(float(before) - target) > 1.0
        assert float(after) == pytest.approx(target, rel=1e-3)
    assert len(sizes) == 2
    assert "runs of a stage" in done.stdout

    for name in ("beam_before_after.png", "envelope.png", "calibration.png", "quadrupole_scan.png"):
        assert (folder / name).read_bytes().startswith(PNG)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["passed"] == {"gradient": True, "matching": True, "calibration": True, "machine": True}
    found = summary["calibration"]
    assert set(found["found"]) == {knob for knob, *_ in knobs}
    for knob, value in found["found"].items():
        assert abs(value - found["truth"][knob]) < 4.0 * found["standard_errors"][knob], knob
        assert found["standard_errors"][knob] < 0.7 * 0.02, knob
    assert summary["gradient"]["worst_relative_difference"] < 1e-6
    assert len(summary["gradient"]["knobs"]) == len(knobs) == 8
    assert summary["matching"]["history"][-1]["charge"] > 0.99
    assert "They agree" in (folder / "summary.txt").read_text(encoding="utf-8")


def test_shipped_files_are_what_the_tool_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_demo_data.py"), str(tmp_path)], check=True, timeout=120)
    shipped = ROOT / "lume_diff" / "data"
    names = {path.name for path in shipped.iterdir() if path.is_file()}
    assert names == {path.name for path in tmp_path.iterdir()}
    for name in names - {"beam.h5"}:
        assert json.loads((shipped / name).read_text()) == json.loads((tmp_path / name).read_text())
    ours, fresh = (TorchParticleGroup.from_openpmd(folder / "beam.h5") for folder in (shipped, tmp_path))
    for name in ("x", "px", "y", "py", "z", "pz", "t", "weight"):
        torch.testing.assert_close(getattr(ours, name), getattr(fresh, name), rtol=1e-9, atol=0.0)
    assert (shipped / "beam.h5").stat().st_size <= 300_000


def test_demo_fails_where_its_check_does_and_repeats_itself(
    default_run: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same seed gives the same settings, to the last digit, whatever is demanded of the gradient."""
    monkeypatch.setattr(demo_command, "_AGREEMENT", 1e-30)
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "failed: backpropagation and differences differ" in result.stderr
    first, again = (json.loads((folder / "summary.json").read_text()) for folder in (default_run[1], tmp_path))
    assert again["passed"] == {"gradient": False, "matching": True, "calibration": True, "machine": True}
    assert again["gradient"].pop("allowed") != first["gradient"].pop("allowed")
    for part in ("matching", "gradient", "calibration"):
        assert again[part] == first[part]
