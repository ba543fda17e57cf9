"""Files: hand-written YAML, LUME's own definitions, and what is wrong in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff import variables as v
from lume_diff.errors import ValidationError

LINE = [
    v.TorchScalarVariable(name="Q1.k1", unit="1/m^2", value_range=(-30, 30), default_value=0.0),
    v.TorchNDVariable(name="SCR1.image", shape=(20, 30), read_only=True),
    v.IntVariable(name="n", value_range=(1, None)),
    v.BoolVariable(name="space_charge", default_value=False),
    v.EnumVariable(name="SCR1:STATE", options=["Off", "On"], default_value="Off"),
    v.StrVariable(name="run", pattern=r"\w+"),
    v.ParticleGroupVariable(name="final_particles", read_only=True),
    v.MomentsVariable(name="final_moments", read_only=True),
]


def test_lists_round_trip_in_order(tmp_path: Path) -> None:
    yaml_file, json_file = tmp_path / "a.yaml", tmp_path / "a.json"
    yaml_file.write_text(v.variables_to_yaml(LINE), encoding="utf-8")
    json_file.write_text(v.variables_to_json(LINE), encoding="utf-8")
    for found in (
        v.variables_from_yaml(v.variables_to_yaml(LINE)),
        v.variables_from_json(v.variables_to_json(LINE)),
        v.variables_from_yaml(yaml_file),
        v.variables_from_json(json_file),
        v.variables_from_data([v.to_dict(variable) for variable in LINE]),
    ):
        assert found == LINE
    assert v.variables_from_yaml(v.variables_to_yaml([])) == []


def test_hand_written_yaml_means_what_it_says() -> None:
    found = v.variables_from_yaml("""
# a comment
- name: QUAD:LI21:201:BCTRL
  unit: kG
  value_range: [-1e1, 1e+1]      # PyYAML alone reads these as text
  default_value: 010
  scale: 1e-3
- {variable_class: EnumVariable, name: 12:30, options: [Off, On, no, y, 2024-01-01]}
- variable_class: BoolVariable
  name: flag
  default_value: true
  description: null
  read_only: yes
""")
    assert found[0].value_range == (-10.0, 10.0)
    assert (found[0].default_value, found[0].scale) == (10.0, 1e-3)
    assert found[1].name == "12:30"
    assert found[1].options == ("Off", "On", "no", "y", "2024-01-01")
    assert (found[2].default_value, found[2].description, found[2].read_only) == (True, "", True)


# What lume-torch 3.0 writes with `variables_as_yaml`, with its class names and its `dtype`.
LUME_YAML = """
input_variables:
  QUAD:K1: {variable_class: TorchScalarVariable, read_only: false, default_validation_config: none, default_value: 0.5,
    value_range: [0.0, 1.0], unit: 1/m^2, dtype: torch.float32}
  charge: {variable_class: ScalarVariable, is_constant: true, default_value: 1.0, value_range: [1.0, 1.0]}
  vector: {variable_class: TorchNDVariable, description: '', read_only: false, default_validation_config: warn,
    shape: [2], dtype: torch.float32, default_value: [1.0, 2.0]}
output_variables:
  sigma_x: {variable_class: TorchScalarVariable, read_only: false, default_validation_config: none, unit: m}
  image: {variable_class: NDVariable, shape: [2, 3], dtype: uint16}
"""


def test_files_of_lume_load() -> None:
    k1, charge, vector, sigma_x, image = v.variables_from_yaml(LUME_YAML)
    assert isinstance(k1, v.TorchScalarVariable)
    assert (k1.name, k1.default_value, k1.value_range, k1.unit) == ("QUAD:K1", 0.5, (0.0, 1.0), "1/m^2")
    assert k1.validate_value(2.0).item() == 2.0  # its policy is "none", and "none" it stays
    assert isinstance(charge, v.TorchScalarVariable)
    assert charge.read_only
    assert isinstance(vector, v.TorchNDVariable)
    assert vector.default_value.tolist() == [1.0, 2.0]
    assert vector.default_validation_config == "warn"
    assert sigma_x.read_only
    assert image.read_only
    assert isinstance(image, v.TorchNDVariable)


@pytest.mark.parametrize(
    "data,cls",
    [
        ({"variable_class": "ScalarVariable", "default_value": 1, "value_range": [0, 2]}, "TorchScalarVariable"),
        ({"variable_class": "ScalarVariable", "unit": None}, "TorchScalarVariable"),
        ({"variable_class": "TorchScalarVariable", "dtype": None}, "TorchScalarVariable"),
        ({"variable_class": "NDVariable", "shape": [1], "dtype": "float64", "default_value": [0]}, "TorchNDVariable"),
        ({"variable_class": "TorchNDVariable", "shape": [2], "dtype": "torch.float32"}, "TorchNDVariable"),
        ({"variable_class": "IntVariable", "default_value": 1, "value_range": [0, 2], "unit": None}, "IntVariable"),
        ({"variable_class": "BoolVariable", "default_value": True}, "BoolVariable"),
        ({"variable_class": "EnumVariable", "options": ["a", "b"], "default_value": "a"}, "EnumVariable"),
        ({"variable_class": "StrVariable", "regex": "a+", "min_length": 1, "max_length": 3}, "StrVariable"),
        ({"variable_class": "ParticleGroupVariable"}, "ParticleGroupVariable"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_every_class_of_lume_loads(data: dict[str, Any], cls: str) -> None:
    theirs = {"name": "a", "description": "", "read_only": False, "default_validation_config": "none"} | data
    variable = v.from_dict(theirs)
    assert type(variable).__name__ == cls
    assert variable.default_validation_config == "none"
    assert v.from_dict(v.to_dict(variable)) == variable


def test_definitions_of_lume_in_code_carry_over() -> None:
    variable = v.TorchScalarVariable(
        name="a", default_value=torch.tensor(0.5), value_range=(0, 1), dtype=torch.float32, read_only=True
    )
    assert variable.default_value == 0.5
    array = v.TorchNDVariable(name="a", shape=(2,), dtype=torch.float64, default_value=torch.zeros(2))
    assert "dtype" not in v.to_dict(array)
    assert v.StrVariable(name="a", regex="b+").pattern == "b+"
    assert v.TorchScalarVariable(name="a", is_constant=True).read_only


@pytest.mark.parametrize(
    "text,words",
    [
        ("a: [1, 2", r"not valid YAML.*line 1"),
        ("name: a\nname: b", r"not valid YAML.*the key 'name' is twice.*line 2"),
        ("[1, 2]", "expected the fields of a variable, received 1"),
        ("just a text", "expected a list of variables, received 'just a text'"),
        ("", "expected a list of variables, received None"),
        ("- name: a\n- name: a", r"names \['a'\] are there more than once"),
        ("input_variables: {a: {}}\noutput_variables: {a: {}}", r"names \['a'\]"),
        (
            "- {name: a, variable_class: ScalerVariable}",
            r"'ScalerVariable' is not a class .* nearest: 'ScalarVariable'",
        ),
        ("- {name: a, variable_class: DistributionVariable}", "mean and the standard deviation"),
        ("- {name: a, variable_class: [1]}", "is not a class of variable"),
        ("a: 3", "expected the fields of a variable, received 3"),
        ("- !!python/object/apply:os.system [echo]", "not valid YAML"),
        ("- {name: a, 3: 4}", "'3' is not a field"),
        ("- {unit: m}", "'name' of TorchScalarVariable is missing"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(text: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        v.variables_from_yaml(text)


def test_what_is_wrong_in_json_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"the text is not valid JSON.*line 1"):
        v.from_json("{")
    file = tmp_path / "a.json"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValidationError, match="not valid JSON: the key 'k1' is twice"):
        v.variables_from_json('{"k1": {}, "k1": {"unit": "m"}}')
    with pytest.raises(ValidationError, match=r"a\.json is not valid JSON"):
        v.variables_from_json(file)


@pytest.mark.parametrize("load", [v.from_yaml, v.from_json], ids=["YAML", "JSON"])
def test_bytes_that_are_no_text_are_told(tmp_path: Path, load: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValidationError, match=r"a\.txt is not valid .*utf-8"):
        load(tmp_path / "a.txt")


def test_a_number_of_too_many_digits_is_no_finite_number() -> None:
    with pytest.raises(ValidationError, match="expected a finite number"):
        v.from_yaml(f"name: a\ndefault_value: {'9' * 5000}")


def test_a_class_given_another_class_s_data_says_so() -> None:
    data = v.to_dict(LINE[2])
    with pytest.raises(ValidationError, match="variable_class='IntVariable' given to TorchScalarVariable"):
        v.TorchScalarVariable.model_validate(data)
    assert v.IntVariable.model_validate(data) == LINE[2]
    assert v.IntVariable.model_validate(LINE[2]) is LINE[2]


def test_variables_are_fields_of_other_models() -> None:
    from pydantic import BaseModel, SerializeAsAny

    class Mapping(BaseModel):
        variables: list[SerializeAsAny[v.Variable]]

    dumped = Mapping(variables=LINE).model_dump()
    assert dumped == {"variables": [v.to_dict(variable) for variable in LINE]}
    assert json.loads(Mapping(variables=LINE).model_dump_json()) == json.loads(json.dumps(dumped))
