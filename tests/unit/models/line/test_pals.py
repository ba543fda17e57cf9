"""Lattices of the PALS standard: the line made by hand, the structure of files, and what cannot be read."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import cheetah
import pytest
import torch
import yaml

from lume_diff.errors import LatticeError, MissingExtraError
from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.models.line.files import read_lattice
from tests.unit.models.line.pals_lines import C, bunch, line, t, written

pytest.importorskip("pals", reason="pals-schema is not installed")

# -- the same line by hand --------------------------------------------------------------------------------------------

D: dict[str, Any] = {"sanitize_name": False, "dtype": torch.float64}
CASES: dict[str, tuple[str, list[cheetah.Element]]] = {
    "drift": ("D1: {kind: Drift, length: 0.25}", [cheetah.Drift(t(0.25), name="D1", **D)]),
    "marker": ("M1: {kind: Marker}", [cheetah.Marker(name="M1", **D)]),
    "quadrupole": (
        "Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1: 1.5}}",
        [cheetah.Quadrupole(t(0.2), t(1.5), name="Q1", **D)],
    ),
    "integrated": (
        "Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1L: 0.3}}",
        [cheetah.Quadrupole(t(0.2), t(1.5), name="Q1", **D)],
    ),
    "turned and moved": (
        "Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1: 1.5, tilt1: 0.1}, "
        "BodyShiftP: {x_offset: 1.0e-4, y_offset: -2.0e-4, z_rot: 0.05}}",
        [cheetah.Quadrupole(t(0.2), t(1.5), t([1e-4, -2e-4]), t(0.15), name="Q1", **D)],
    ),
    "skew": (
        "Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Ks1: 1.5}}",
        [cheetah.Quadrupole(t(0.2), t(1.5), tilt=t(-math.pi / 4), name="Q1", **D)],
    ),
    "sextupole": (
        "S1: {kind: Sextupole, length: 0.1, MagneticMultipoleP: {Kn2: 40.0}}",
        [cheetah.Sextupole(t(0.1), t(40.0), name="S1", **D)],
    ),
    "sector bend": (
        "B1: {kind: SBend, length: 0.5, BendP: {g_ref: 0.4, e1: 0.05, e2: 0.1, edge_int1: 0.01, tilt_ref: 0.3}, "
        "MagneticMultipoleP: {Kn1: 0.2}}",
        [
            cheetah.Dipole(
                *(t(value) for value in (0.5, 0.2, 0.2, 0.05, 0.1)),
                tilt=t(0.3),
                gap=t(0.04),
                gap_exit=t(0.0),
                fringe_integral=t(0.5),
                fringe_integral_exit=t(0.5),
                name="B1",
                **D,
            )
        ],
    ),
    "rectangular bend": (
        "B1: {kind: RBend, length: 0.5, BendP: {g_ref: 0.4, e1_rect: 0.01}}",
        [
            cheetah.Dipole(
                *(t(value) for value in (0.5, 0.2, 0.0, 0.11, 0.1)),
                fringe_integral=t(0.5),
                fringe_integral_exit=t(0.5),
                gap=t(0.0),
                name="B1",
                **D,
            )
        ],
    ),
    "bend of the later standard": (
        "B1: {kind: Bend, length: 0.5, BendP: {radius_ref: 2.5, edge1_int: 0.01, edge2_int: 0.02}}",
        [
            cheetah.Dipole(
                *(t(value) for value in (0.5, 0.2, 0.0, 0.0, 0.0)),
                fringe_integral=t(0.5),
                fringe_integral_exit=t(0.5),
                gap=t(0.04),
                gap_exit=t(0.08),
                name="B1",
                **D,
            )
        ],
    ),
    "solenoid": (
        "S1: {kind: Solenoid, length: 0.3, SolenoidP: {Ksol: 0.8}}",
        [cheetah.Solenoid(t(0.3), t(0.4), name="S1", **D)],
    ),
    "cavity": (
        "C1: {kind: RFCavity, length: 1.0, RFP: {voltage: 5.0e6, phase: 0.05, frequency: 2.856e9}}",
        [cheetah.Cavity(t(1.0), t(5e6), t(-18.0), t(2.856e9), name="C1", **D)],
    ),
    "cavity by gradient": (
        "C1: {kind: RFCavity, length: 2.0, RFP: {gradient: 5.0e6, frequency: 2.856e9, n_cell: 9}}",
        [cheetah.Cavity(t(2.0), t(1e7), t(0.0), t(2.856e9), name="C1", **D)],
    ),
    "kicker": (
        "K1: {kind: Kicker, length: 0.1, MagneticMultipoleP: {Kn0L: 1.0e-3, Ks0: 0.02}}",
        [cheetah.CombinedCorrector(t(0.1), t(-1e-3), t(2e-3), name="K1", **D)],
    ),
    "monitor": ("BPM1: {kind: Instrument}", [cheetah.BPM(is_active=True, name="BPM1", **D)]),
    "long monitor": (
        "BPM1: {kind: Instrument, length: 0.2, BodyShiftP: {x_offset: 1.0e-4}}",
        [
            cheetah.Drift(t(0.1), name="BPM1_before", **D),
            cheetah.BPM(is_active=True, misalignment=t([1e-4, 0.0]), name="BPM1", **D),
            cheetah.Drift(t(0.1), name="BPM1_after", **D),
        ],
    ),
    "collimator": (
        "COL1: {kind: Mask, ApertureP: {x_limits: [-2.0e-3, 2.0e-3], shape: ELLIPTICAL, y_limits: [-1.0e-3, 1.0e-3]}}",
        [cheetah.Aperture(t(2e-3), t(1e-3), "elliptical", True, name="COL1", **D)],
    ),
    "wide drift": (
        "D1: {kind: Drift, length: 1, ApertureP: {y_limits: [-1, 1], shape: RECTANGULAR}}",
        [
            cheetah.Aperture(t(math.inf), t(1.0), "rectangular", True, name="D1_aperture", **D),
            cheetah.Drift(t(1.0), name="D1", **D),
        ],
    ),
    "aperture at both ends": (
        "D1: {kind: Drift, length: 0.5, "
        "ApertureP: {x_limits: [-2.0e-3, 2.0e-3], shape: RECTANGULAR, location: BOTH_ENDS, aperture_active: false}}",
        [
            cheetah.Aperture(t(2e-3), t(math.inf), "rectangular", False, name="D1_aperture", **D),
            cheetah.Drift(t(0.5), name="D1", **D),
            cheetah.Aperture(t(2e-3), t(math.inf), "rectangular", False, name="D1_aperture_exit", **D),
        ],
    ),
}


@pytest.mark.filterwarnings("ignore:PALS lattice:lume_diff.errors.PhysicsWarning")
@pytest.mark.parametrize("text, expected", CASES.values(), ids=CASES)
def test_an_element_is_the_one_made_by_hand(tmp_path: Path, text: str, expected: list[cheetah.Element]) -> None:
    found = line(tmp_path, text).elements
    assert [(type(e).__name__, e.name) for e in found] == [(type(e).__name__, e.name) for e in expected]
    for one, other in zip(found, expected, strict=True):
        for feature in one.defining_tensors:
            value = getattr(one, feature)
            assert value.dtype == torch.float64
            torch.testing.assert_close(value, getattr(other, feature), rtol=1e-14, atol=1e-18, msg=feature)
        assert getattr(one, "shape", None) == getattr(other, "shape", None)
        assert getattr(one, "is_active", None) == getattr(other, "is_active", None)


@pytest.mark.parametrize("format", ["yaml", "json"])
def test_a_whole_line_tracks_as_the_one_made_by_hand(tmp_path: Path, format: str) -> None:
    names = [
        "drift",
        "turned and moved",
        "sector bend",
        "solenoid",
        "kicker",
        "monitor",
        "sextupole",
        "rectangular bend",
    ]
    entries = [CASES[name][0].replace("1:", f"{i}:", 1) for i, name in enumerate(names)]
    parts = [part for name in names for part in CASES[name][1]]
    text = "{PALS: {facility: [{cell: {kind: BeamLine, line: [" + ", ".join(f"{{{e}}}" for e in entries) + "]}}]}}"
    if format == "json":
        text = json.dumps(yaml.safe_load(text))
    model = CheetahModel.from_file(written(tmp_path, text, f"line.pals.{format}"), bunch())
    by_hand = CheetahModel(cheetah.Segment(parts, name="by_hand"), bunch())
    for name in ("final.sigma_x", "final.mean_x", "final.mean_px", "final.mean_y", "final.sigma_y"):
        torch.testing.assert_close(model.get(name), by_hand.get(name), rtol=1e-13, atol=0.0, msg=name)


# -- structure -----------------------------------------------------------------------------------------------------

CHANNEL = """
PALS:
  version: null
  extension_labels: {names: {ImpactX: what another program wants}}
  facility:
    - run: {ImpactX: {npart: 10000}}
    - drift1: {kind: Drift, length: 0.25}
    - quad1: {kind: Quadrupole, MagneticMultipoleP: {Kn1: 1.0}, length: 1.0}
    - cell:
        kind: BeamLine
        line:
          - drift1
          - quad1
          - drift2: {kind: Drift, length: 0.5}
          - quad2: {inherit: quad1, MagneticMultipoleP: {Kn1: -1.0}}
          - use: drift1
    - channel: {kind: BeamLine, line: [begin: {kind: BeginningEle}, cell: {repeat: 2}, drift1: {length: 0.1}]}
    - back: {kind: BeamLine, line: [cell: {repeat: -1}]}
    - lattice: {kind: Lattice, branches: [channel]}
    - use: lattice
"""


def test_lines_repeat_inherit_and_are_placed_in_lines(tmp_path: Path) -> None:
    path = written(tmp_path, CHANNEL)
    found = read_lattice(path)
    cell = ["drift1", "quad1", "drift2", "quad2", "drift1"]
    assert [element.name for element in found.elements] == ["begin", *cell, *cell, "drift1"]
    assert [float(e.k1) for e in found.elements if e.name.startswith("quad")] == [1.0, -1.0, 1.0, -1.0]
    assert float(found.elements[-1].length) == 0.1
    assert found.name == "channel"
    assert [element.name for element in read_lattice(path, "back").elements] == cell[::-1]


def test_a_file_of_one_line_needs_no_facility(tmp_path: Path) -> None:
    path = written(tmp_path, "cell: {kind: BeamLine, line: [d: {kind: Drift, length: 1.0}]}")
    assert [element.name for element in read_lattice(path).elements] == ["d"]


def test_the_format_can_be_said(tmp_path: Path) -> None:
    path = written(tmp_path, "cell: {kind: BeamLine, line: [d: {kind: Drift, length: 1.0}]}", "line.txt")
    assert len(read_lattice(path, format="pals").elements) == 1


def test_the_fields_of_the_file_need_a_reference(tmp_path: Path) -> None:
    text = "Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Bn1: 0.7}}"
    with pytest.raises(LatticeError, match=r"'Q1'.*Bn1 needs the reference momentum.*E_tot_ref and species_ref"):
        line(tmp_path, text)
    assert float(line(tmp_path, text, beam=bunch()).elements[0].k1) == pytest.approx(-0.7 * C / 1e8, rel=1e-4)


def test_everything_unknown_is_named_at_once(tmp_path: Path) -> None:
    text = """
    Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1: 1.0, Kn3: 2.0}}
    Q2: {kind: Quadrupole, length: -0.2, MagneticMultipoleP: {Kn1: 1.0}}
    Q3: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1: 2*pi}, ElectricMultipoleP: {En1: 1.0}}
    Q4: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1: 1.0, Kn1L: 0.2}}
    O1: {kind: Octupole, length: 0.2}
    W1: {kind: Wigler, length: 0.2}
    B1: {kind: SBend, length: 0.2, BendP: {g_ref: 0.1, h1: 0.3}, MagneticMultipoleP: {Kn0: 0.2}}
    D1: {kind: Drift, length: 0.2, ApertureP: {x_limits: [-1.0, 2.0], shape: RECTANGULAR, location: EVERYWHERE}}
    D2: {kind: Drift}
    K1: {kind: Kicker, length: 0.1, lenght: 0.2}
    nowhere: {}
    """
    with pytest.raises(LatticeError) as caught:
        line(tmp_path, text)
    message = str(caught.value)
    for part in (
        "'Q1': MagneticMultipoleP has Kn3",
        "'Q2': length: Input should be greater than or equal to 0",
        "'Q3': MagneticMultipoleP Kn1 is '2*pi'; expected a finite number",
        "'Q3': has ElectricMultipoleP",
        "'Q4': MagneticMultipoleP has Kn1 and Kn1L; give one",
        "'O1' is of the kind 'Octupole', which Cheetah has nothing for",
        "'W1' is of the kind 'Wigler'",
        "'B1': its own field differs from the reference field",
        "'B1': BendP has h1",
        "'D1': ApertureP x_limits is [-1.0, 2.0]; expected limits as far on either side",
        "'D1': ApertureP location is 'EVERYWHERE'",
        "'D2': has no length",
        "'K1': has lenght",
        "'nowhere' is not defined",
    ):
        assert part in message


WRONG = {
    "not YAML": ("PALS: [", "is not YAML"),
    "not a mapping": ("- a\n- b", "is a list; expected a mapping"),
    "no line": ("PALS: {facility: [d: {kind: Drift, length: 1.0}]}", "say with name= which one to read"),
    "unknown beside the facility": ("PALS: {facility: [], load: x.yaml}", "has 'load' beside the facility"),
    "a command": (
        "PALS: {facility: [set: {parameter: a}, {c: {kind: BeamLine, line: [m: {kind: Marker}]}}]}",
        "'set' has neither kind",
    ),
    "defined twice": (
        "PALS: {facility: [a: {kind: Marker}, a: {kind: Marker}, c: {kind: BeamLine, line: [a]}]}",
        "'a' is defined twice",
    ),
    "a line in itself": ("PALS: {facility: [c: {kind: BeamLine, line: [c]}, use: c]}", "'c' contains itself"),
    "no such line": (
        "PALS: {facility: [c: {kind: BeamLine, line: []}, use: d]}",
        "has no lattice or line 'd'; known: 'c'",
    ),
    "reversed": (
        "PALS: {facility: [c: {kind: BeamLine, line: [m: {kind: Marker, direction: -1}]}]}",
        "'m' in line 'c' is reversed",
    ),
    "placed": (
        "PALS: {facility: [c: {kind: BeamLine, line: [m: {kind: Marker, placement: {offset: 1.0}}]}]}",
        "'m': has placement",
    ),
    "too many": (
        "PALS: {facility: [c: {kind: BeamLine, line: [m: {kind: Marker, repeat: 1000000}]}]}",
        "more than 100000",
    ),
    "inherits from itself": (
        "PALS: {facility: [a: {inherit: b}, b: {inherit: a}, c: {kind: BeamLine, line: [a]}]}",
        "inherits from itself",
    ),
    "two branches": (
        "PALS: {facility: [c: {kind: BeamLine, line: []}, l: {kind: Lattice, branches: [c, d]}]}",
        r"has the branches \['c', 'd'\]",
    ),
    "below the rest energy": (
        "PALS: {facility: [c: {kind: BeamLine, line: "
        "[b: {kind: BeginningEle, ReferenceP: {species_ref: proton, E_tot_ref: 1.0e8}}]}]}",
        "E_tot_ref is 1e.08 eV, which is not above the rest energy",
    ),
    "positive particles in a cavity": (
        "PALS: {facility: [c: {kind: BeamLine, line: "
        "[b: {kind: BeginningEle, ReferenceP: {species_ref: proton, E_tot_ref: 1.0e9}}, "
        "r: {kind: RFCavity, length: 1.0, RFP: {frequency: 1.0e9}}]}]}",
        "accelerates positive particles",
    ),
}


@pytest.mark.parametrize("text, match", WRONG.values(), ids=WRONG)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(LatticeError, match=match) as caught:
        read_lattice(written(tmp_path, text))
    assert "line.pals.yaml" in str(caught.value)


def test_without_the_schema_the_error_has_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pals", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lume_diff\[pals\]"'):
        line(tmp_path, "D1: {kind: Drift, length: 1.0}")
