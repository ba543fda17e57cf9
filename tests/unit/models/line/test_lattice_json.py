"""LatticeJSON: every class of Cheetah comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cheetah
import pytest
import torch

from lume_diff.errors import LatticeError
from lume_diff.models.line.files import read_lattice
from lume_diff.models.line.lattice_writing import write_json
from tests.unit.models.line.lattices import drift, number, quadrupole, written

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


@pytest.mark.parametrize("kind", PARAMETERS, ids=lambda kind: kind.__name__)
def test_what_is_written_here_is_read_back(kind: type[cheetah.Element], tmp_path: Path) -> None:
    unsaved_by_cheetah = {cheetah.BPM: {"misalignment": SHIFT}, cheetah.Screen: {"is_blocking": True}}
    parameters = PARAMETERS[kind] | unsaved_by_cheetah.get(kind, {})
    element = kind(**parameters, name="E.1", sanitize_name=False, dtype=torch.float64)
    inner = cheetah.Segment([drift(0.1, "D-1"), element], name="in ner", sanitize_name=False)
    write_json(cheetah.Segment([inner, element], name="line", sanitize_name=False), tmp_path / "line.json")
    read = read_lattice(tmp_path / "line.json")
    assert_same(read.elements[0].elements[1], element)
    assert_same(read.elements[1], element)


@pytest.mark.parametrize(
    "segment, problem",
    [
        (cheetah.Segment([drift(0.1, "D1"), drift(0.2, "D1")], name="line"), "'D1' and differ"),
        (cheetah.Segment([drift(0.1, "line")], name="line"), "a line and an element of it are called 'line'"),
    ],
    ids=["two elements", "line and element"],
)
def test_names_that_a_file_cannot_hold_are_refused(segment: cheetah.Segment, problem: str, tmp_path: Path) -> None:
    with pytest.raises(LatticeError, match=problem):
        write_json(segment, tmp_path / "line.json")


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
