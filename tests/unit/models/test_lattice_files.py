"""Lattice files of every format: what is read, with which numbers, and what a bad one says."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

from lume_diff.errors import LatticeError, MissingExtraError, PhysicsWarning
from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.models.line.files import read_lattice
from lume_diff.particles import TorchParticleGroup

HAS_OCELOT = importlib.util.find_spec("ocelot") is not None
SIZES = ["final.sigma_x", "final.sigma_y", "final.sigma_px", "final.sigma_energy"]


def number(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def drift(length: float, name: str) -> cheetah.Drift:
    return cheetah.Drift(number(length), name=name, sanitize_name=False)


def quadrupole(length: float, k1: float, name: str) -> cheetah.Quadrupole:
    return cheetah.Quadrupole(number(length), number(k1), name=name, sanitize_name=False, dtype=torch.float64)


def incoming() -> cheetah.ParticleBeam:
    values = {"sigma_x": 1e-4, "sigma_px": 2e-5, "sigma_y": 3e-4, "sigma_py": 1e-5, "sigma_p": 1e-3, "energy": 1e8}
    return cheetah.ParticleBeam.from_parameters(
        500, **{name: number(value) for name, value in values.items()}, dtype=torch.float64
    )


def sizes(segment: cheetah.Segment, beam: Any) -> torch.Tensor:
    return torch.stack([CheetahModel(segment, beam, outputs=SIZES).get(name) for name in SIZES])


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


# -- LatticeJSON ---------------------------------------------------------------------------------------------------

BEND = {"length": number(0.3), "angle": number(0.25), "k1": number(0.1), "tilt": number(0.3), "gap": number(0.02)}
BEND |= {"gap_exit": number(0.03), "fringe_integral": number(0.4), "fringe_integral_exit": number(0.6)}
RF = {"length": number(1.1), "voltage": number(1.7e7), "phase": number(-12.3), "frequency": number(2.998e9)}
SHIFT = number([1.1e-4, -2.3e-5])
PARAMETERS: dict[type[cheetah.Element], dict[str, Any]] = {
    cheetah.Aperture: {"x_max": number(torch.inf), "y_max": number(0.007), "shape": "elliptical", "is_active": False},
    cheetah.BPM: {"is_active": True},
    cheetah.Cavity: {**RF, "cavity_type": "traveling_wave"},
    cheetah.CombinedCorrector: {
        "length": number(0.1),
        "horizontal_angle": number(1e-3),
        "vertical_angle": number(-2e-3),
    },
    cheetah.CustomTransferMap: {"predefined_transfer_map": torch.eye(7, dtype=torch.float64), "length": number(0.7)},
    cheetah.Dipole: {**BEND, "dipole_e1": number(0.1), "dipole_e2": number(0.2), "fringe_at": "exit"},
    cheetah.Drift: {"length": number(0.1), "tracking_method": "drift_kick_drift"},
    cheetah.HorizontalCorrector: {"length": number(0.1), "angle": number(1e-3)},
    cheetah.Marker: {},
    cheetah.Quadrupole: {
        **{"length": number(0.122), "k1": number(-4.3), "misalignment": SHIFT, "tilt": number(0.2)},
        **{"num_steps": 3, "tracking_method": "drift_kick_drift"},
    },
    cheetah.RBend: {**BEND, "rbend_e1": number(0.5), "rbend_e2": number(-0.25), "tracking_method": "second_order"},
    cheetah.Screen: {
        **{"resolution": (100, 80), "pixel_size": number([3.3e-6, 2.2e-6]), "binning": 2, "misalignment": SHIFT},
        **{"method": "kde", "kde_bandwidth": number(1e-5), "is_active": True},
    },
    cheetah.Sextupole: {"length": number(0.2), "k2": number(31.0), "misalignment": SHIFT, "tilt": number(0.1)},
    cheetah.Solenoid: {"length": number(0.3), "k": number(0.7), "misalignment": SHIFT},
    cheetah.SpaceChargeKick: {"effect_length": number(0.4), "grid_shape": (8, 16, 32), "grid_extent_x": number(4.1)},
    cheetah.Superimposed: {
        "base_element": quadrupole(0.2, 1.3, "Q9"),
        "superimposed_element": cheetah.Marker(name="M9", dtype=torch.float64),
    },
    cheetah.TransverseDeflectingCavity: {**RF, "misalignment": SHIFT, "tilt": number(0.3), "num_steps": 2},
    cheetah.Undulator: {"length": number(0.25), "period": number(0.03), "kx": number(1.1), "ky": number(0.2)},
    cheetah.VerticalCorrector: {"length": number(0.1), "angle": number(1e-3)},
}


def assert_same(read: cheetah.Element, original: cheetah.Element) -> None:
    assert type(read) is type(original)
    assert read.metadata == original.metadata
    for feature in original.defining_features:
        found, expected = getattr(read, feature), getattr(original, feature)
        if isinstance(expected, cheetah.Element):
            assert_same(found, expected)
        elif isinstance(expected, torch.Tensor):
            assert found.dtype == torch.float64
            assert torch.equal(found, expected), feature
        else:
            assert found == expected, feature


def test_every_class_has_a_case() -> None:
    classes = {v for v in vars(cheetah).values() if isinstance(v, type) and issubclass(v, cheetah.Element)}
    assert set(PARAMETERS) == classes - {cheetah.Element, cheetah.Segment}


@pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
def test_latticejson_round_trip(kind: type[cheetah.Element], tmp_path: Path) -> None:
    element = kind(**PARAMETERS[kind], name="E.1", metadata={"pv": "A:B"}, sanitize_name=False, dtype=torch.float64)
    inner = cheetah.Segment([drift(0.1, "D-1"), element], name="in ner", sanitize_name=False)
    path = tmp_path / "line.json"
    cheetah.Segment([inner, drift(0.2, "D2"), element], name="line", sanitize_name=False).to_lattice_json(str(path))
    read = read_lattice(path)
    assert read.name == "line"
    assert [part.name for part in read.elements] == ["in ner", "D2", "E.1"]
    assert_same(read.elements[0].elements[1], element)
    assert_same(read.elements[2], element)


def test_latticejson_without_what_cheetah_does_not_save(tmp_path: Path) -> None:
    path = tmp_path / "line.json"
    bpm = cheetah.BPM(misalignment=SHIFT, name="B1", dtype=torch.float64)
    screen = cheetah.Screen(is_blocking=True, name="S1", dtype=torch.float64)
    cheetah.Segment([bpm, screen], name="line").to_lattice_json(str(path))
    read = read_lattice(path)
    assert read.B1.misalignment.tolist() == [0.0, 0.0]
    assert not read.S1.is_blocking


def test_latticejson_takes_whole_numbers_and_another_lattice(tmp_path: Path) -> None:
    elements = '{"Q1": ["Quadrupole", {"length": 1, "k1": 0, "misalignment": [0, 1], "tilt": null}]}'
    path = written(
        tmp_path / "line.json", f'{{"root": "a", "lattices": {{"a": ["b"], "b": ["Q1"]}}, "elements": {elements}}}'
    )
    read = read_lattice(path, name="b")
    assert read.name == "b"
    assert read.Q1.length.item() == 1.0
    assert {value.dtype for value in read.buffers()} == {torch.float64}


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


# -- what fails ----------------------------------------------------------------------------------------------------


def lattice_json(element: str, lattices: str = '"cell": ["Q1"]', root: str = "cell") -> str:
    return f'{{\n"root": "{root}",\n"lattices": {{\n{lattices}\n}},\n"elements": {{\n"Q1": {element}\n}}\n}}'


QUAD = '["Quadrupole", {"length": 0.2}]'
NX = "NAME,CLASS,Z_beam\nQ1,MQZM,0.1\n"
# id: (file, content, options, line or None, words of the message, whether another error is behind it)
FAILURES: dict[str, tuple[str, str | bytes, dict[str, Any], int | None, str, bool]] = {
    "unknown suffix": ("a.madx", "x", {}, None, r"suffix '\.madx'.*'latticejson' \(\.json\).*'nxtables'", False),
    "unknown format": ("a.json", "{}", {"format": "sad"}, None, "format is 'sad'; expected one of", False),
    "empty file": ("a.json", " \n", {}, None, "is empty", False),
    "binary file": ("a.bmad", b"q1: drift\n\x89HDF\x00\x01", {}, 2, "is not text: byte 0x00", False),
    "json that does not parse": ("a.json", '{\n"root": "a",\n}', {}, 3, "is not JSON: .*column 1", True),
    "json cut off": ("a.json", lattice_json(QUAD)[:60], {}, 6, "is not JSON", True),
    "json list": ("a.json", "[]", {}, None, "not LatticeJSON: 'root' is missing", False),
    "json without root": ("a.json", "{}", {}, None, "'root' is missing or not a name", False),
    "json without lattices": ("a.json", '{"root": "a"}', {}, None, "'lattices' is missing", False),
    "json without elements": ("a.json", '{"root": "a", "lattices": {}}', {}, None, "'elements' is missing", False),
    "json with a name twice": ("a.json", '{"root": "a", "root": "b"}', {}, None, "'root' is defined twice", False),
    "json too deep": ("a.json", "[" * 100_000, {}, None, "is nested too deeply", True),
    "json root not there": ("a.json", lattice_json(QUAD, root="cel"), {}, None, "root is 'cel'.*'cell'", False),
    "json name not there": ("a.json", lattice_json(QUAD), {"name": "x"}, None, "name is 'x'.*'cell'", False),
    "json lattice of numbers": ("a.json", lattice_json(QUAD, '"cell": [1]'), {}, 4, "expected a list of names", False),
    "json lattice in itself": ("a.json", lattice_json(QUAD, '"cell": ["cell"]'), {}, 4, "contains itself", False),
    "json lattice empty": ("a.json", lattice_json(QUAD, '"cell": []'), {}, None, "has no elements", False),
    "json element not there": ("a.json", lattice_json(QUAD, '"cell": ["Q2"]'), {}, 4, "'Q2'.*nearest: 'Q1'", False),
    "json element no pair": ("a.json", lattice_json('["Drift"]'), {}, 7, r"'Q1' is .*expected \[class", False),
    "json unknown class": ("a.json", lattice_json('["Quad", {}]'), {}, 7, "'Q1'.*'Quad'; nearest: 'Quadr", False),
    "json class of no element": ("a.json", lattice_json('["Species", {}]'), {}, 7, "unknown class 'Species'", False),
    "json unknown parameter": (
        *("a.json", lattice_json('["Drift", {"length": 1.0, "k": 1}]'), {}, 7),
        *("Drift 'Q1' has no parameter 'k'", False),
    ),
    "json missing parameter": ("a.json", lattice_json('["Drift", {}]'), {}, 7, "Drift 'Q1' has no 'length'", False),
    "json word for a number": (
        *("a.json", lattice_json('["Drift", {"length": "long"}]'), {}, 7),
        *("length of 'Q1' is 'long'; expected a number", False),
    ),
    "json NaN": ("a.json", lattice_json('["Drift", {"length": NaN}]'), {}, 7, "length of 'Q1' is nan", False),
    "json one misalignment": (
        *("a.json", lattice_json('["BPM", {"misalignment": 0.1}]'), {}, 7),
        *("misalignment of 'Q1' is 0.1; expected two numbers", False),
    ),
    "json wrong choice": (
        *("a.json", lattice_json('["Drift", {"length": 1, "tracking_method": "bmadx"}]'), {}, 7),
        *("'bmadx'; expected 'linear' or", False),
    ),
    "json word for a switch": (
        *("a.json", lattice_json('["BPM", {"is_active": "yes"}]'), {}, 7),
        *("is_active of 'Q1' is 'yes'; expected true or false", False),
    ),
    "json one resolution": (
        *("a.json", lattice_json('["Screen", {"resolution": [100]}]'), {}, 7),
        *(r"resolution of 'Q1' is \[100\]; expected 2 whole numbers", False),
    ),
    "json element in itself": (
        *("a.json", lattice_json('["Superimposed", {"base_element": "Q1", "superimposed_element": "Q1"}]'), {}, 7),
        *("element 'Q1' contains itself", False),
    ),
    "json element Cheetah refuses": (
        *("a.json", lattice_json('["CustomTransferMap", {"predefined_transfer_map": [[1.0]]}]'), {}, 7),
        *("CustomTransferMap 'Q1' cannot be built: Cheetah checks .*shape", True),
    ),
    "json infinity": (
        "a.json",
        lattice_json('["Drift", {"length": Infinity}]'),
        {},
        None,
        "length of 'Q1' is inf",
        False,
    ),
    "bmad NaN": ("a.bmad", "d1: drift, l = nan\ncell: line = (d1)", {}, None, "length of 'd1' is nan", False),
    "bmad not understood": ("a.bmad", "a = 1\n\nq1 quadrupole, l = 1", {}, 3, "cannot read 'q1 quad.*expected", True),
    "bmad division by zero": ("a.bmad", "a = 0\nb = 1 / a\nc = 2", {}, 2, "ZeroDivisionError.*; expected", True),
    "bmad cut off": ("a.bmad", "d1: drift, l = 1\ncell: line = (d1,\n", {}, 2, "cannot read 'cell: line", True),
    "bmad no line": ("a.bmad", "d1: drift, l = 1", {}, None, "defines no line", False),
    "bmad line not there": ("a.bmad", "d1: drift, l=1\ncell: line=(d1)\nuse, cel", {}, None, "'cel'.*'cell'", False),
    "bmad element not there": ("a.bmad", "d1: drift, l=1\ncell: line=(d1, d2)", {}, 2, "'d2', which is not def", False),
    "bmad line in itself": ("a.bmad", "a: line=(b)\nb: line=(a)\nuse, a", {}, 1, "'a' contains itself", False),
    "bmad attribute missing": ("a.bmad", "b1: sbend, l=1\nc: line=(b1)", {}, 1, "sbend 'b1' has no 'e1'", True),
    "bmad called file missing": ("a.bmad", "call, file = b.bmad", {}, 1, r"calls '.*b\.bmad', which is not a", False),
    "bmad file that calls itself": ("a.bmad", "call, file = a.bmad", {}, 1, "being read already", False),
    "elegant two lines": (
        "a.lte",
        "D: DRIF\nA: LINE=(D)\nB: LINE=(D)",
        {},
        None,
        "lines 'a', 'b'; say with name",
        False,
    ),
    "elegant name not there": ("a.lte", "D: DRIF\nA: LINE=(D)", {"name": "C"}, None, "no line 'c'; known: 'a'", False),
    "elegant commands": ("a.ele", "&run_setup\n lattice=a.lte\n&end", {}, 1, "command of Elegant", True),
    "elegant no linear map": ("a.lte", "M: EMATRIX, ORDER=2\nA: LINE=(M)", {}, 1, "'m' cannot be .*first order", True),
    "table with a name": ("a.csv", NX, {"name": "Q1"}, None, "name is 'Q1', but an NX table has one line", False),
    "table without a column": ("a.csv", "NAME,CLASS\n", {}, 1, "has no column 'Z_beam'", False),
    "table short row": ("a.csv", NX + "Q2,MQZM\n", {}, 3, "has 2 columns; expected 3", False),
    "table open quote": ("a.csv", NX + '"Q2,MQZM,1.0\n', {}, 3, "is not CSV", True),
    "table word for a position": ("a.csv", NX + "Q2,MQZM,here\n", {}, 3, "Z_beam of 'Q2' is 'here'", False),
    "table unknown class": ("a.csv", NX + "Q2,MQZZ,1.0\n", {}, 3, "'Q2' of class 'MQZZ' cannot", True),
    "table corrector": ("a.csv", NX + "ABCDEFG,MCXG,1.0\n", {}, 3, 'Cheetah checks .*== "X"', True),
    "table overlap": ("a.csv", NX + "Q2,MQZM,0.2\n", {}, 3, "'Q2' overlaps 'Q1' by 0.022 m", False),
    "table without elements": ("a.csv", "NAME,CLASS,Z_beam\n", {}, None, "has no elements", False),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
def test_failure_names_file_line_and_fix(case: tuple[str, str | bytes, dict, int | None, str, bool], tmp_path: Path):
    file, content, options, line, words, is_chained = case
    path = tmp_path / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LatticeError) as caught:
        read_lattice(path, **options)
    message = str(caught.value)
    assert message.startswith(f"lattice file {str(path)!r}{'' if line is None else f', line {line}'}: ")
    assert re.search(words, message), message
    assert (caught.value.__cause__ is not None) == is_chained


@pytest.mark.parametrize("file, k1", [("a.bmad", "kq"), ("a.lte", '"1 2 /"')], ids=["undefined", "quoted"])
def test_expression_that_cheetah_cannot_evaluate(file: str, k1: str, tmp_path: Path) -> None:
    path = written(tmp_path / file, f"q1: quad, l=0.1, k1={k1}\nquad1: quadrupole, l=0.1, k1={k1}\ncell: line=(quad1)")
    words = re.escape(f"{file}', line 2: quadrupole 'quad1' has k1={k1!r}; expected a number")
    with pytest.warns(cheetah.PhysicsWarning, match=re.escape(k1)), pytest.raises(LatticeError, match=words):
        read_lattice(path)


@pytest.mark.parametrize("name", ["line.json", "line.bmad", "line.lte", "line.csv", "line.py"])
def test_missing_file_and_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(LatticeError, match=f"{name}': does not exist"):
        read_lattice(tmp_path / name, trust=True)
    (tmp_path / name).mkdir()
    with pytest.raises(LatticeError, match=f"{name}': is a directory; expected a file"):
        read_lattice(tmp_path / name, trust=True)


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
