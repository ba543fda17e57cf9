"""Codes of others as backends: a file makes the model that their function makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lume_diff as ld
from lume_diff.machine import check

TWISS = "beta_x: 8, beta_y: 6, norm_emit_x: 1e-6, norm_emit_y: 1e-6"
BEAM = f"beam: {{n_particles: 50, mean_energy: 1e8, charge: 1e-10, {TWISS}}}"
MADX = """\
qf: quadrupole, l=0.5, k1=1.2; qd: quadrupole, l=0.5, k1=-1.2;
cell: sequence, l=4; qf, at=0.5; qd, at=2.5; endsequence;
beam, particle=electron, energy=1; use, sequence=cell;
"""


def test_a_ring_of_pyat(tmp_path: Path) -> None:
    at = pytest.importorskip("at")
    qf, qd, drift = at.Quadrupole("QF", 0.5, 1.2), at.Quadrupole("QD", 0.5, -1.2), at.Drift("D", 1.0)
    ring = at.Lattice([qf, drift, qd, drift], energy=1e9)
    at.save_lattice(ring, str(tmp_path / "ring.json"))
    (tmp_path / "ring.yaml").write_text(
        "model:\n  backend: at\n  lattice: ring.json\n  controls: [QF.k1]\n  outputs: [tune_x]\n"
        "  gradient: {step: 1e-3, check: false}\nset: {QF.k1: 1.25}\n"
    )
    assert check(tmp_path / "ring.yaml") == []
    model = ld.load_model(tmp_path / "ring.yaml")
    expected = ld.ATModel(ring, ["QF.k1"], ["tune_x"])
    expected.set({"QF.k1": 1.25})
    assert float(model.get("tune_x")) == float(expected.get("tune_x"))
    ld.save_model(model, tmp_path / "again.yaml")
    assert float(ld.load_model(tmp_path / "again.yaml").get("tune_x")) == float(model.get("tune_x"))


def test_a_trusted_deck_of_madx(tmp_path: Path) -> None:
    pytest.importorskip("cpymad")
    (tmp_path / "cell.madx").write_text(MADX)
    asked = "sequence: cell, controls: [qf.k1], outputs: [tune_x]"
    text = f"model: {{backend: madx, deck: cell.madx, {asked}, trust: true}}\n"
    (tmp_path / "cell.yaml").write_text(text)
    model = ld.load_model(tmp_path / "cell.yaml")
    assert 0.0 < float(model.get("tune_x")) < 0.5


def test_particles_through_a_line_of_impactx(tmp_path: Path) -> None:
    pytest.importorskip("impactx")
    (tmp_path / "line.in").write_text(
        "lattice.elements = d1 q1\nd1.type = drift\nd1.ds = 1.0\nq1.type = quad\nq1.ds = 0.2\nq1.k = 1.5\n"
    )
    options = "workers: 1, outputs: [final_particles, final.sigma_x], gradient: native"
    (tmp_path / "line.yaml").write_text(
        f"model: {{backend: impactx, lattice: line.in, {options}, {BEAM}}}\nset: {{q1.k1: 2.0}}\n"
    )
    model = ld.load_model(tmp_path / "line.yaml")
    assert float(model.get("q1.k1")) == 2.0
    assert np.isfinite(float(model.get("final.sigma_x")))
