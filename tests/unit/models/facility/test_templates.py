"""Templates and tables of elements, and what is told of a mapping that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.models import FacilityMapping, FacilityModel
from lume_diff.models.facility import MappingError, expanded
from tests.unit.models.facility.machines import FIELD, facility, line, quadrupole

QUAD: dict[str, Any] = {
    "BCTRL": {
        "kind": "setpoint",
        "native": "{element}.k1",
        "unit": "kG",
        "conversion": FIELD,
        "length": "{length?}",
        "value_range": ["{low}", 10],
    },
    "BACT": {"kind": "readback", "of": "{name}:BCTRL"},
}
BPM = {"X": {"kind": "reading", "native": "{element}.x", "unit": "mm"}}
CSV = """Element,Control Name,Keyword,Length (m),low,Area
Q0,QUAD:A:1,QUAD,,-5,A
Q1,QUAD:A:2,QUAD,0.2,-6,A
B1,BPMS:A:3,MONI,,,A
D0,DRIFT,DRIF,,,A
Q9,QUAD:B:1,QUAD,,-5,B
"""
COLUMNS = {"element": "Element", "name": "Control Name", "template": "Keyword", "rename": {"length": "Length (m)"}}


def mapping(**elements: Any) -> FacilityMapping:
    table = {"columns": COLUMNS, "select": {"Area": ["A"]}, "ignore": ["DRIF"], **elements}
    return FacilityMapping(templates={"QUAD": QUAD, "MONI": BPM}, elements=table)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "elements.csv").write_text(CSV)
    return tmp_path


def test_a_table_of_elements(folder: Path) -> None:
    model = FacilityModel(line(), mapping(file="elements.csv"), folder=folder)
    assert sorted(model.supported_variables) == [
        *("BPMS:A:3:X", "QUAD:A:1:BACT", "QUAD:A:1:BCTRL", "QUAD:A:2:BACT", "QUAD:A:2:BCTRL"),
    ]
    variable = model.supported_variables["QUAD:A:2:BCTRL"]
    assert variable.value_range == (-6.0, 10.0)
    expected = facility().get("Q1:BCTRL") * 2.0  # 0.2 m instead of the model's 0.1 m
    assert torch.allclose(model.get("QUAD:A:2:BCTRL"), expected, rtol=1e-13)


def test_a_table_in_yaml(tmp_path: Path) -> None:
    (tmp_path / "elements.yaml").write_text("- {element: Q0, name: 'QUAD:1', class: QUAD, low: -5.0}\n")
    table = {"file": "elements.yaml"}
    found = expanded(FacilityMapping(templates={"QUAD": QUAD}, elements=table), tmp_path)
    assert list(found.entries) == ["QUAD:1:BCTRL", "QUAD:1:BACT"]


def test_a_zero_in_a_text_is_a_zero() -> None:
    rows = [{"element": "Q0", "name": "QUAD", "class": "Q", "unit": 0, "suffix": None}]
    template = {"kind": "setpoint", "native": "Q{unit}{suffix?}.k1"}
    found = expanded(FacilityMapping(templates={"Q": {"K1": template}}, elements={"rows": rows}))
    assert found.entries["QUAD:K1"].entry.native == "Q0.k1"


def test_digits_behind_a_zero_stay_in_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("element,name,class,unit,length\nQ0,0420,Q,007,0.10\n")
    template = {"kind": "setpoint", "native": "{element}.k1", "description": "unit {unit}", "length": "{length}"}
    found = expanded(FacilityMapping(templates={"Q": {"K1": template}}, elements={"file": "t.csv"}), tmp_path)
    entry = found.entries["0420:K1"].entry
    assert (entry.description, entry.length) == ("unit 007", 0.1)


def test_one_column_may_be_element_and_name() -> None:
    template = {"kind": "setpoint", "native": "{element}.k1"}
    elements = {"rows": [{"NAME": "Q0", "class": "Q"}], "columns": {"element": "NAME", "name": "NAME"}}
    found = expanded(FacilityMapping(templates={"Q": {"K1": template}}, elements=elements))
    assert found.entries["Q0:K1"].entry.native == "Q0.k1"


def mistakes_of(data: Any, **options: Any) -> list[str]:
    with pytest.raises(MappingError) as caught:
        FacilityModel(line(50), data, **options)
    return [".".join(map(str, where)) + ": " + what for where, what in caught.value.mistakes]


def test_mistakes_in_a_table_are_all_told(folder: Path) -> None:
    rows = [
        {"element": "Q0", "name": "QUAD:1", "class": "QUAD", "low": -5.0},
        {"element": "Q0", "name": "QUAD:2", "class": "QUAD", "low": -5.0},
        {"element": "Q1", "name": "QUAD:1", "class": "QUAD", "low": -5.0},
        {"element": "Q7", "name": "QUAD:7", "class": "QUAD", "low": -5.0},
        {"element": "Q8", "name": "QUAD:8", "class": "QUAD"},
        {"element": "B1", "name": None, "class": "MONI"},
        {"element": "S1", "name": "OTRS:1", "class": "PROF"},
    ]
    found = mistakes_of({"templates": {"QUAD": QUAD, "MONI": BPM}, "elements": {"rows": rows}})
    text = "\n".join(found)
    for words in (
        "these stand in the table twice, as element [Q0]",
        "these stand in the table twice, as name [QUAD:1]",
        "'QUAD:1:BCTRL' is there already, from templates.QUAD.BCTRL of Q0 [Q1]",
        "the model has no input 'Q7.k1'",
        "nothing in column 'low' for these elements [Q8]",
        "nothing stands in column 'name' of these elements [B1]",
        "no template for the class 'PROF'",
        "'Q0.k1' is set by several setpoints: give all but one of them adds: true [QUAD:1:BCTRL, QUAD:2:BCTRL]",
    ):
        assert words in text, words
    absent = {"element": "Elem", "name": "Control Name", "template": "Keyword"}
    assert (
        "no column 'Elem'; nearest: 'Element'"
        in mistakes_of(mapping(file="elements.csv", columns=absent), folder=folder)[0]
    )
    assert "cannot be read" in mistakes_of(mapping(file="nowhere.csv"), folder=folder)[0]


def test_mistakes_of_entries_are_all_told() -> None:
    variables: dict[str, Any] = {
        "A": quadrupole("Q2"),
        "B": {"kind": "setpoint", "native": "Q1.k1", "unit": "mm"},
        "C": quadrupole("Q0", value_range=[-0.1, 0.1]),
        "D": {"kind": "readback", "of": "E"},
        "F": {"kind": "limit", "of": "C0", "end": "low"},
        "G": {"kind": "reading", "native": "B1.z"},
        "H": {"kind": "state", "options": ["IN", "OUT"], "settings": {"IN": {"S0.active": True}}},
        "I": {"kind": "roi", "of": "C", "side": "min_x"},
        "J": {"kind": "derived", "function": {"kind": "sum", "terms": {"NOPE": 1.0}}},
        "K": {"kind": "derived", "function": {"kind": "sum", "terms": {"K": 1.0}}},
        "L": {
            "kind": "setpoint",
            "native": "C0.angle",
            "conversion": {"kind": "polynomial", "coefficients": [0, 1, 1]},
        },
    }
    found = mistakes_of({"variables": variables, "keep": ["nothing*"]})
    for name in "ABDFGHIJKL":
        assert any(text.startswith(f"variables.{name}: ") for text in found), (name, found)
    assert any(text.startswith("keep.0: ") for text in found)
    assert len(found) == 11
    outside = mistakes_of({"variables": {"C": quadrupole("Q0", value_range=[-0.1, 0.1])}})
    assert "outside value_range" in outside[0]


def test_mistakes_of_form_are_all_told() -> None:
    variables = {
        "A": {"kind": "setpoint", "natve": "Q1.k1"},
        "B": {"kind": "magnet"},
        "C": quadrupole("Q1", conversion={"kind": "quadrupole"}),
        "D": {"kind": "state", "options": [True, False]},
    }
    found = mistakes_of({"variables": variables, "speces": "electron"})
    for words in ("A.setpoint.natve", "variables.B", "C.setpoint.conversion", "in YAML quote it", "speces"):
        assert any(words in text for text in found), (words, found)


def test_a_conversion_without_an_energy_is_refused_by_name() -> None:
    from lume_diff.models import TorchModel
    from lume_diff.variables import TorchScalarVariable

    inputs = [TorchScalarVariable(name=f"Q{i}.k1", unit="1/m^2", default_value=0.0) for i in range(2)]
    model = TorchModel(lambda x: x, inputs, [TorchScalarVariable(name=n) for n in "xy"])
    names = {f"Q{i}:B": quadrupole(f"Q{i}", length=0.1) for i in range(2)}
    with pytest.raises(MappingError) as caught:
        FacilityModel(model, {"variables": names})
    assert [where for where, _ in caught.value.mistakes] == [("variables", "Q0:B"), ("variables", "Q1:B")]
    assert "needs the energy at 'Q0'" in str(caught.value)
    with pytest.raises(MappingError, match="no input and no constant"):
        FacilityModel(model, {"variables": names, "energy": {"kind": "variable", "name": "EDES"}})


def test_five_hundred_elements_in_forty_lines() -> None:
    rows = [{"element": f"Q{i}", "name": f"QUAD:L:{i}", "class": "QUAD", "low": -5.0} for i in range(500)]
    entries = expanded(FacilityMapping(templates={"QUAD": QUAD}, elements={"rows": rows})).entries
    assert len(entries) == 1000
    assert entries["QUAD:L:7:BCTRL"].entry.native == "Q7.k1"
