"""Lattice files of Bmad, Elegant, NX tables and Ocelot: what is read, with which numbers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import cheetah
import numpy as np
import pytest
import torch

from lume_diff.errors import LatticeError, MissingExtraError, PhysicsWarning
from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.models.line.files import read_lattice
from lume_diff.particles import TorchParticleGroup
from tests.unit.models.line.lattices import drift, incoming, number, quadrupole, sizes, written

HAS_OCELOT = importlib.util.find_spec("ocelot") is not None

# -- Bmad and Elegant ----------------------------------------------------------------------------------------------

BMAD = """
! a comment, and µ in Latin-1 or UTF-8
lq = 0.2 ; strength = 3.1
call, file = magnets/parts.bmad
"Q:1": quadrupole, l = lq,
    k1 = strength / 2,  ! continued
    tilt = 0.1
q2: quadrupole, l = lq, k1 = -1.3
Q2[K1] = -1.7
half: line = (d1, "Q:1", d1)
cell: line = (half, b1, &
  m1, q2)
use, cell
"""
ELEGANT = """
! a comment
"Q:1": KQUAD, L=0.2, &
   K1=3.1 / 2, TILT=0.1
Q.2: QUAD, L=0.2, K1=-1.7
#INCLUDE: magnets/parts.lte
HALF: LINE=("Q:1", D1, D1)
CELL: LINE=(D1, "Q:1", D1, B1, M1, Q.2)
BACK: LINE=(-HALF, CELL)
"""
DIPOLE = {"length": 0.3, "angle": 0.1, "dipole_e1": 0.02, "dipole_e2": 0.03, "gap": 0.02, "fringe_integral": 0.5}


def cell_by_hand() -> list[cheetah.Element]:
    first = quadrupole(0.2, 1.55, "Q1")
    first.tilt = number(0.1)
    bend = cheetah.Dipole(**{key: number(value) for key, value in DIPOLE.items()}, name="B1", dtype=torch.float64)
    bend.fringe_integral_exit = number(0.5)
    return [drift(0.4, "D1"), first, drift(0.4, "D2"), bend, quadrupole(0.2, -1.7, "Q2")]


@pytest.fixture
def bmad(tmp_path: Path) -> Path:
    parts = "D1: drift, l = 2 * lq\nB1: sbend, l = 0.3, angle = 0.1, e1 = 0.02, e2 = 0.03, hgap = 0.01, fint = 0.5\n"
    written(tmp_path / "magnets/parts.bmad", parts + "m1: marker")
    return written(tmp_path / "line.bmad", BMAD)


@pytest.fixture
def elegant(tmp_path: Path) -> Path:
    parts = "D1: DRIF, L=0.4\nB1: CSBEND, L=0.3, ANGLE=0.1, E1=0.02, E2=0.03, HGAP=0.01, FINT=0.5\nM1: MARK\n"
    written(tmp_path / "magnets/parts.lte", parts)
    return written(tmp_path / "line.lte", ELEGANT)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_bmad_tracks_like_the_line_by_hand(bmad: Path, encoding: str) -> None:
    bmad.write_bytes(BMAD.encode(encoding))
    read = read_lattice(bmad)
    assert [element.name for element in read.flattened().elements] == ["d1", "q:1", "d1", "b1", "m1", "q2"]
    assert {value.dtype for value in read.buffers()} == {torch.float64}
    beam = incoming()
    torch.testing.assert_close(sizes(read, beam), sizes(cheetah.Segment(cell_by_hand()), beam), rtol=1e-12, atol=0)


def test_elegant_tracks_like_the_line_by_hand(elegant: Path) -> None:
    beam = incoming()
    cell = sizes(cheetah.Segment(cell_by_hand()), beam)
    torch.testing.assert_close(sizes(read_lattice(elegant, name="CELL"), beam), cell, rtol=1e-12, atol=0)


def test_elegant_takes_the_line_that_no_other_uses(elegant: Path) -> None:
    read = read_lattice(elegant)
    names = [element.name for element in read.flattened().elements]
    assert read.name == "back"
    assert names == ["d1", "d1", "q:1", "d1", "q:1", "d1", "b1", "m1", "q.2"]
    assert {value.dtype for value in read.buffers()} == {torch.float64}


def test_bmad_line_can_be_named_and_format_given(bmad: Path) -> None:
    other = bmad.rename(bmad.with_suffix(".txt"))
    assert [element.name for element in read_lattice(other, name="Half", format="bmad").elements] == ["d1", "q:1", "d1"]


def test_warnings_of_the_converter_pass(tmp_path: Path) -> None:
    path = written(tmp_path / "line.lte", "Q-1: QUADRAPOLE, L=0.1\nCELL: LINE=(Q-1)")
    with pytest.warns(cheetah.UnknownElementWarning, match="quadrapole"):
        read_lattice(path)
    with pytest.raises(cheetah.UnknownElementWarning):
        read_lattice(path)


def test_elegant_deflecting_cavity_warns_of_its_phase(tmp_path: Path) -> None:
    path = written(tmp_path / "line.lte", "T1: RFDF, L=0.5, PHASE=45\nCELL: LINE=(T1)")
    with pytest.warns(PhysicsWarning, match="degrees, for turns: set t1.phase"):
        read_lattice(path)


# -- NX tables -----------------------------------------------------------------------------------------------------


def test_nx_table_of_ares(shared_data: Path) -> None:
    path = shared_data / "ares_stage4_nxtables.csv"
    read, original = read_lattice(path), cheetah.Segment.from_nx_tables(path)
    assert len(read.elements) == 226
    for element, expected in zip(read.elements, original.elements, strict=True):
        assert (element.name, type(element)) == (expected.name, type(expected))
        assert element.length.item() == pytest.approx(expected.length.item(), abs=1e-5)
    assert {value.dtype for value in read.buffers()} == {torch.float64}
    assert read.AREAMQZM1.length.item() == 0.122
    assert read.ARLIBSCX1.pixel_size.tolist() == [0.00343e-3, 0.00247e-3]


def test_nx_table_keeps_positions(tmp_path: Path) -> None:
    rows = "NAME,CLASS,Z_beam\nQ-2,MQZM,1.0\n\nQ1,MQZM,0.1\nQ3,MQZM,1.122\nEND,TORF,2.0\nX,RSBG,0.0\n"
    read = read_lattice(written(tmp_path / "my-table.csv", rows))
    assert [element.name for element in read.elements] == ["Q1", "DRIFT_Q1_Q-2", "Q-2", "Q3", "DRIFT_Q3_END", "END"]
    assert read.length.item() == pytest.approx(2.0 - 0.1 + 0.061, abs=1e-15)


# -- Ocelot --------------------------------------------------------------------------------------------------------

OCELOT = """from ocelot import Drift, Quadrupole
d = Drift(l=0.5, eid="D-1")
cell = (d, [Quadrupole(l=0.2, k1=1.5, eid="Q.1"), d])
other = [d]
bad = [1]
"""


def test_ocelot_is_not_run_without_trust(tmp_path: Path) -> None:
    path = written(tmp_path / "line.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(LatticeError, match=r"line\.py': an Ocelot lattice is a Python program.*trust=True"):
        read_lattice(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(HAS_OCELOT, reason="Ocelot is installed")
def test_ocelot_missing_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="pip install ocelot-collab") as caught:
        read_lattice(written(tmp_path / "line.py", OCELOT), trust=True)
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.skipif(HAS_OCELOT, reason="Ocelot is installed")
def test_other_package_called_ocelot_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "ocelot.py", "class Animal: ...")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        with pytest.raises(MissingExtraError, match="is not the accelerator code"):
            read_lattice(written(tmp_path / "line.py", OCELOT), trust=True)
    finally:
        sys.modules.pop("ocelot", None)


@pytest.mark.skipif(not HAS_OCELOT, reason="Ocelot is not installed: pip install ocelot-collab")
def test_ocelot_cell(tmp_path: Path) -> None:
    path = written(tmp_path / "line.py", OCELOT)
    read = read_lattice(path, trust=True)
    assert [(element.name, element.length.item()) for element in read.elements] == [
        *(("D-1", 0.5), ("Q.1", 0.2), ("D-1", 0.5))
    ]
    assert {value.dtype for value in read.buffers()} == {torch.float64}
    assert len(read_lattice(path, name="other", trust=True).elements) == 1
    for name, words in {"cel": "nearest: 'cell'", "bad": "expected elements of Ocelot"}.items():
        with pytest.raises(LatticeError, match=words):
            read_lattice(path, name=name, trust=True)


@pytest.mark.skipif(not HAS_OCELOT, reason="Ocelot is not installed: pip install ocelot-collab")
@pytest.mark.parametrize(
    "statement", ["1 / 0", "cell = (", "raise SystemExit(3)"], ids=["exception", "syntax error", "exit"]
)
def test_ocelot_program_that_fails(statement: str, tmp_path: Path) -> None:
    with pytest.raises(LatticeError, match=r"line\.py', line 2: raises ") as caught:
        read_lattice(written(tmp_path / "line.py", f"a = 1\n{statement}\n"), trust=True)
    assert caught.value.__cause__ is not None


# -- end to end ----------------------------------------------------------------------------------------------------


@pytest.fixture
def line(tmp_path: Path) -> Path:
    path = tmp_path / "line.json"
    cheetah.Segment([drift(0.1, "D1"), quadrupole(0.1, 2.0, "Q1"), drift(0.3, "D2")]).to_lattice_json(str(path))
    return path


def sigma_x(beam: cheetah.ParticleBeam) -> torch.Tensor:
    weight = beam.particle_charges / beam.particle_charges.sum()
    mean = (weight * beam.x).sum()
    return (weight * (beam.x - mean).square()).sum().sqrt()


def test_model_from_files_with_an_openpmd_beam(line: Path, shared_data: Path) -> None:
    file = shared_data / "lcls_injector_impact_10000.h5"
    model = CheetahModel.from_file(line, file, controls=["Q1.k1"], outputs=["final.sigma_x"])
    beam = TorchParticleGroup.from_openpmd(file).on_z_plane().to_cheetah()
    expected = sigma_x(read_lattice(line).track(beam))
    torch.testing.assert_close(model.get("final.sigma_x"), expected, rtol=1e-10, atol=0)


def test_model_from_files_with_an_astra_beam(elegant: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    count, momentum = 200, 5e7
    rows = np.zeros((count, 10))  # x, y, z [m], px, py, pz [eV/c], clock [ns], charge [nC], species, status
    rows[1:, :2] = generator.normal(scale=1e-4, size=(count - 1, 2))
    rows[1:, 3:5] = generator.normal(scale=1e3, size=(count - 1, 2))
    rows[0, 5], rows[:, 7], rows[:, 8], rows[:, 9] = momentum, -1e-3, 1, 5
    np.savetxt(tmp_path / "bunch.astra", rows, fmt="%.17g")
    path = written(tmp_path / "drift.lte", "D: DRIF, L=2\nCELL: LINE=(D)")
    model = CheetahModel.from_file(path, tmp_path / "bunch.astra", name="CELL", outputs=["final.sigma_x"])
    expected = (rows[:, 0] + 2.0 * rows[:, 3] / momentum).std()
    assert model.get("final.sigma_x").item() == pytest.approx(expected, rel=1e-12)


def test_model_from_bad_file_names_it(tmp_path: Path, line: Path) -> None:
    with pytest.raises(LatticeError, match=r"bad\.json', line 1: is not JSON"):
        CheetahModel.from_file(written(tmp_path / "bad.json", "nonsense"), incoming())
    with pytest.raises(LatticeError, match=r"beam\.astra"):
        CheetahModel.from_file(line, written(tmp_path / "beam.astra", "nonsense"))
