"""A machine of two stages in a folder: moments to a bunch, and a line with a quadrupole and a screen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ELEMENTS = {
    "Q1": ["Quadrupole", {"length": 0.1, "k1": 0.0}],
    "D1": ["Drift", {"length": 1.5}],
    "C1": ["HorizontalCorrector", {"length": 0.1, "angle": 0.0}],
    "D2": ["Drift", {"length": 0.5}],
    "SCR1": ["Screen", {"resolution": [20, 16], "pixel_size": [2e-4, 2e-4], "is_active": True, "is_blocking": False}],
}
TWISS = "mean_energy: 1e8, charge: 1e-10, beta_x: 8, beta_y: 6, norm_emit_x: 1e-6, norm_emit_y: 1e-6, sigma_t: 1e-12"
MACHINE = f"""\
description: a gun and a line
stages:
  gun: {{backend: bunch-from-moments, n_particles: 200, {TWISS}}}
  line:
    backend: cheetah
    lattice: line.json
    set: {{Q1.k1: 2.0}}
variables:
  Q1.k1: {{value_range: [-5, 5], alarm_range: [-4, 4], description: the only quadrupole}}
set:
  alpha_x: 0.5
ioc: {{prefix: "VA:", protocols: [pva, ca], timeout: 60}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write the machine and its lattice."""
    place = tmp_path / "machine"
    place.mkdir()
    text = json.dumps({"root": "line", "elements": ELEMENTS, "lattices": {"line": list(ELEMENTS)}})
    (place / "line.json").write_text(text)
    (place / "machine.yaml").write_text(MACHINE)
    return place
