"""``lume-diff check`` in a process of its own: what it prints, and that no code is imported or run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

LINE = {"Q1": ["Quadrupole", {"length": 0.1, "k1": 0.0}], "D1": ["Drift", {"length": 1.5}]}
MACHINE = """\
stages:
  a:
    backend: cheetah
    lattice: line.json
    beam: {mean_energy: 1e8, charge: 1e-10, beta_x: 8, beta_y: 6, norm_emit_x: 1e-6, norm_emit_y: 1e-6}
  b: {backend: at, lattice: line.json}
  c: {backend: impactx, lattice: line.json}
  d: {backend: madx, deck: line.json, trust: true}
  e: {backend: bmad, deck: line.json, trust: true}
  f: {backend: cheetah, lattice: line.py, trust: true}
"""
WATCHED = """\
import sys
from lume_diff.models.line.tracking import LineRun
def run(*_): raise SystemExit("tracked")
LineRun.__init__ = run
from lume_diff.cli import main
try:
    main()
finally:
    print(sorted({"at", "impactx", "cpymad", "pytao", "ocelot"} & set(sys.modules)))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a machine with a stage of every kind."""
    text = json.dumps({"root": "line", "elements": LINE, "lattices": {"line": list(LINE)}})
    (tmp_path / "line.json").write_text(text)
    (tmp_path / "line.py").write_text("raise SystemExit('this was run')\n")
    (tmp_path / "machine.yaml").write_text(MACHINE)
    return tmp_path


def test_check_tracks_nothing_and_loads_no_code(folder: Path, time_limit: None) -> None:
    command = [sys.executable, "-c", WATCHED, "check", str(folder / "machine.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("could not be checked without running its codes")
    assert done.stdout.splitlines()[1] == "[]"


def test_mistakes_are_lines_and_the_exit_code_is_not_zero(folder: Path, time_limit: None) -> None:
    command = [sys.executable, "-m", "lume_diff.cli", "check", str(folder / "machine.yaml"), "--no-trust"]
    command += ["--set", "stages.a.lattice=line.jsn"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 1
    places = [line.split(": ")[:2] for line in done.stdout.splitlines()]
    assert places == [
        ["command line", "stages.a.lattice"],
        ["line 8", "stages.d"],
        ["line 9", "stages.e"],
        ["line 10", "stages.f"],
    ]
    assert "4 mistakes" in done.stderr
