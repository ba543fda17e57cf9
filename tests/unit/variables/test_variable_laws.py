"""The laws that hold for every class of variable; a class without a case fails."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lume_diff import variables as v
from lume_diff.errors import LumeDiffError, ShapeError, UnitError, ValidationError
from lume_diff.variables.base import subclasses

F64 = torch.float64


def bunch(n: int = 4, batch: tuple[int, ...] = (), dtype: torch.dtype = F64) -> Any:
    from lume_diff.particles import TorchParticleGroup

    generator = torch.Generator().manual_seed(1)
    x, y, z, px, py = (1e-3 * torch.randn(*batch, n, generator=generator, dtype=F64) for _ in range(5))
    arrays = (x, y, z, px, py, torch.full_like(x, 1e8), torch.zeros_like(x), torch.full_like(x, 1e-12))
    return TorchParticleGroup(*(a.to(dtype) for a in arrays))


def moments(dtype: torch.dtype = F64) -> Any:
    from lume_diff.particles import TorchMoments

    return TorchMoments.from_particles(bunch(8)).to(dtype=dtype)


@dataclass
class Case:
    """What the laws need to know of one class."""

    fields: dict[str, Any]
    full: dict[str, Any]
    good: Any
    bad: list[tuple[str, Any, type[LumeDiffError]]]
    differentiable: bool
    batch: Any = None
    batch_shape: tuple[int, ...] = ()
    unit: str = ""
    wrong_default: list[Any] = field(default_factory=list)


BAD_NUMBERS: list[tuple[str, Any, type[LumeDiffError]]] = [
    ("bool", True, ValidationError),
    ("numpy bool", np.True_, ValidationError),
    ("bool tensor", torch.tensor(True), ValidationError),
    ("bool array", np.array([True, False]), ValidationError),
    ("bool in a list", [1.0, True], ValidationError),
    ("complex", 1j, ValidationError),
    ("complex tensor", torch.tensor(1j), ValidationError),
    ("complex array", np.array([1j]), ValidationError),
    ("nan", float("nan"), ValidationError),
    ("inf", float("inf"), ValidationError),
    ("-inf tensor", torch.tensor(-torch.inf), ValidationError),
    ("nan in a batch", torch.tensor([0.0, torch.nan]), ValidationError),
    ("text", "1.0", ValidationError),
    ("bytes", b"1", ValidationError),
    ("text array", np.array(["1"]), ValidationError),
    ("object array", np.array([None, 1.0]), ValidationError),
    ("None", None, ValidationError),
    ("None in a list", [None, 1.0], ValidationError),
    ("mapping", {"value": 1.0}, ValidationError),
    ("set", {1.0}, ValidationError),
    ("huge integer", 10**400, ValidationError),
    ("ragged list", [[1.0, 2.0], [3.0]], ShapeError),
    ("lists of unequal depth", [torch.tensor(1.0), [2.0]], ShapeError),
]

# By the class's name. A tuple of shape (2, 3) in the ND case: what is bad as a number is bad as an element too.
CASES: dict[str, Case] = {
    "TorchScalarVariable": Case(
        fields={"default_value": 0.5, "value_range": (0.0, 1.0)},
        full={
            "default_value": 0.1, "value_range": (None, 1.0), "warning_range": (0.1, 0.9), "alarm_range": (0.05, None),
            "precision": 4, "scale": 1e-3,
        },
        good=0.25, bad=BAD_NUMBERS, differentiable=True, batch=torch.rand(3, 2, dtype=F64), batch_shape=(3, 2),
        unit="kG*m", wrong_default=[2.0, "0.5", True, 1j, float("nan"), [0.1, 0.2]],
    ),
    "TorchNDVariable": Case(
        fields={"shape": (2, 3), "value_range": (-10.0, 10.0)},
        full={"shape": (2, 3), "default_value": [[1, 2, 3], [4, 5, 6]], "value_range": (0, None), "scale": 2.0},
        good=[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        bad=[
            *[(i, x, e) for i, x, e in BAD_NUMBERS if i not in ("nan", "inf", "-inf tensor", "nan in a batch")],
            ("number", 1.0, ShapeError),
            ("transposed", torch.zeros(3, 2), ShapeError),
            ("too few dimensions", torch.zeros(3), ShapeError),
            ("batch last", torch.zeros(2, 3, 5), ShapeError),
            ("nan element", torch.full((2, 3), torch.nan), ValidationError),
            ("inf element", np.full((2, 3), np.inf), ValidationError),
        ],
        differentiable=True, batch=torch.zeros(4, 2, 3, dtype=F64), batch_shape=(4,), unit="counts",
        wrong_default=[[1.0, 2.0], 3.0, "x", [[True] * 3] * 2, [[float("nan")] * 3] * 2, [[11.0] * 3] * 2],
    ),
    "IntVariable": Case(
        fields={"default_value": 1, "value_range": (0, 100)},
        full={"default_value": 7, "value_range": (None, 2**62)},
        good=3,
        bad=[
            *[(i, x, e) for i, x, e in BAD_NUMBERS if i != "lists of unequal depth"],
            ("fraction", 1.5, ValidationError),
            ("fraction in a tensor", torch.tensor([1.0, 2.5]), ValidationError),
            ("65 bits", 2**64, ValidationError),
            ("unsigned 64 bits", np.array([2**64 - 1], dtype=np.uint64), ValidationError),
        ],
        differentiable=False, batch=torch.tensor([1, 2]), batch_shape=(2,),
        wrong_default=[101, 1.5, True, "1", [1, 2], []],
    ),
    "BoolVariable": Case(
        fields={"default_value": True}, full={"default_value": False}, good=True,
        bad=[
            ("1", 1, ValidationError),
            ("0.0", 0.0, ValidationError),
            ("text", "True", ValidationError),
            ("None", None, ValidationError),
            ("integer tensor", torch.tensor(1), ValidationError),
            ("integer in a list", [True, 1], ValidationError),
            ("integer array", np.array([0, 1]), ValidationError),
            ("ragged list", [[True], [True, False]], ShapeError),
        ],
        differentiable=False, batch=torch.tensor([True, False]), batch_shape=(2,),
        wrong_default=[1, "yes", [True, False], []],
    ),
    "EnumVariable": Case(
        fields={"options": ["OUT", "IN"], "default_value": "OUT"},
        full={"options": ["Off", "On", "1e-3", "12:30", "2024-01-01", "~", "0x1F", "no", "=", "<<"]},
        good="IN",
        bad=[
            ("unknown", "INSIDE", ValidationError),
            ("other case", "in", ValidationError),
            ("index", 1, ValidationError),
            ("None", None, ValidationError),
            ("list", ["IN"], ValidationError),
        ],
        differentiable=False, wrong_default=["INSIDE", 0],
    ),
    "StrVariable": Case(
        fields={"pattern": "[a-z]+", "max_length": 5, "default_value": "abc"},
        full={"pattern": r"\d{2}:\w+", "min_length": 2, "max_length": 9, "default_value": "12:ab"},
        good="run",
        bad=[
            ("pattern", "run1", ValidationError),
            ("only a part matches", "run\n", ValidationError),
            ("too long", "abcdef", ValidationError),
            ("number", 1, ValidationError),
            ("None", None, ValidationError),
            ("bytes", b"abc", ValidationError),
        ],
        differentiable=False, wrong_default=["ABC", 3],
    ),
    "ParticleGroupVariable": Case(
        fields={}, full={}, good=bunch,
        bad=[
            ("path", "beam.h5", ValidationError),
            ("None", None, ValidationError),
            ("tensor", torch.zeros(4, 6), ValidationError),
            ("mapping", {"x": [0.0]}, ValidationError),
        ],
        differentiable=True, batch=lambda: bunch(4, (3,)), batch_shape=(3,), wrong_default=["beam.h5", 1.0],
    ),
    "MomentsVariable": Case(
        fields={}, full={}, good=moments,
        bad=[
            ("None", None, ValidationError),
            ("matrix", torch.eye(6), ValidationError),
            ("particles", bunch, ValidationError),
        ],
        differentiable=True, wrong_default=[1.0],
    ),
}  # fmt: skip

COMMON = {
    "name": "QUAD:LI21:201/a.b",
    "description": "é: a # b",
    "read_only": True,
    "default_validation_config": "none",
}


def resolve(value: Any) -> Any:
    return value() if callable(value) else value


def classes() -> list[type[v.Variable]]:
    return [cls for cls in subclasses() if cls.__module__.startswith("lume_diff")]


def make(class_name: str, /, **changes: Any) -> Any:
    return getattr(v, class_name)(**({"name": "a"} | CASES[class_name].fields | changes))


def make_full(class_name: str) -> Any:
    return getattr(v, class_name)(**(COMMON | {"unit": CASES[class_name].unit} | CASES[class_name].full))


each_class = pytest.mark.parametrize("name", CASES)


def test_every_class_has_a_case_and_is_exported() -> None:
    assert {cls.__name__ for cls in classes()} == set(CASES)
    assert set(CASES) <= set(v.__all__)


@each_class
def test_the_bare_minimum_and_the_common_defaults(name: str) -> None:
    required = {"shape": (2,)} if name == "TorchNDVariable" else {"options": ["a"]} if name == "EnumVariable" else {}
    variable = getattr(v, name)(name="a", **required)
    assert (variable.description, variable.unit, variable.read_only, variable.default_value) == ("", "", False, None)
    assert variable.default_validation_config == "error"
    assert variable.replace(read_only=True).default_validation_config == "warn"


@each_class
def test_a_good_value_passes_twice_unchanged(name: str) -> None:
    variable, case = make(name), CASES[name]
    once = variable.validate_value(resolve(case.good))
    assert variable.validate_value(once) is once
    assert variable.is_differentiable is case.differentiable
    assert variable.batch_shape(once) == torch.Size(())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.batch is not None])
def test_leading_dimensions_are_the_batch(name: str) -> None:
    variable, case = make(name), CASES[name]
    checked = variable.validate_value(resolve(case.batch))
    assert variable.batch_shape(checked) == case.batch_shape
    assert isinstance(variable.batch_shape(checked), torch.Size)


@pytest.mark.parametrize(
    "name,value,error",
    [pytest.param(n, x, e, id=f"{n}-{i}") for n, case in CASES.items() for i, x, e in case.bad],
)
def test_a_bad_value_is_refused_with_the_name(name: str, value: Any, error: type[LumeDiffError]) -> None:
    with pytest.raises(error, match="'some/name'"):
        make(name, name="some/name").validate_value(resolve(value))


@pytest.mark.parametrize(
    "name,value", [pytest.param(n, x, id=f"{n}-{x!r:.20}") for n, case in CASES.items() for x in case.wrong_default]
)
def test_a_wrong_default_is_refused(name: str, value: Any) -> None:
    with pytest.raises((ValidationError, ShapeError), match=r"'a'.*default_value"):
        make(name, default_value=value)


@each_class
def test_an_unknown_policy_is_refused_even_for_a_good_value(name: str) -> None:
    with pytest.raises(ValidationError, match="'wran' is no policy"):
        make(name).validate_value(resolve(CASES[name].good), config="wran")
    with pytest.raises(ValidationError, match="default_validation_config='wran'"):
        make(name, default_validation_config="wran")


@each_class
def test_pickle_and_copies_are_equal(name: str) -> None:
    for variable in (make(name), make_full(name)):
        for other in (pickle.loads(pickle.dumps(variable)), copy.copy(variable), copy.deepcopy(variable)):
            assert other == variable
            assert hash(other) == hash(variable)
            assert repr(other) == repr(variable)
        assert variable.model_copy(update={"name": "b"}) == variable.replace(name="b") != variable
        value = resolve(CASES[name].good)
        assert type(pickle.loads(pickle.dumps(make(name))).validate_value(value)) is type(
            make(name).validate_value(value)
        )


@each_class
def test_round_trips_are_equal(name: str) -> None:
    for variable in (make(name), make_full(name)):
        data = v.to_dict(variable)
        assert data["variable_class"] == name
        assert v.from_dict(data) == variable
        assert v.from_dict(json.loads(json.dumps(data, allow_nan=False))) == variable
        assert v.from_yaml(v.to_yaml(variable)) == variable
        assert v.from_json(v.to_json(variable)) == variable
        assert variable.model_dump() == data
        assert v.from_json(variable.model_dump_json()) == variable
        assert type(variable).model_validate(data) == variable
        # What is written reads the same by PyYAML's own rules, which are those of YAML 1.1.
        assert yaml.safe_load(v.to_yaml(variable)) == yaml.safe_load(yaml.safe_dump(data)) == data
        assert v.to_dict(v.from_dict(data)) == data


@each_class
def test_equality_sees_every_field(name: str) -> None:
    variable = make(name)
    assert variable == make(name)
    for change in ({"name": "b"}, {"description": "d"}, {"read_only": True}, {"unit": "m"}):
        assert variable.replace(**change) != variable
    assert variable != "a"
    others = [make(other) for other in CASES if other != name]
    assert variable not in others


@each_class
def test_a_variable_is_immutable(name: str) -> None:
    variable = make(name)
    with pytest.raises(ValidationError, match="replace"):
        variable.unit = "mm"
    with pytest.raises(ValidationError, match="immutable"):
        del variable.unit
    assert variable == make(name)


@each_class
def test_an_unknown_field_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(ValidationError, match=r"'defaultvalue' is not a field .* nearest: 'default_value'"):
        make(name, defaultvalue=1)


@each_class
def test_a_wrong_unit_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(UnitError, match=r"variable 'a': unit 'mradd' is not known; nearest: .*'mrad'"):
        make(name, unit="mradd")


@each_class
@pytest.mark.parametrize("given", ["", "  ", None, 3])
def test_a_name_is_a_text_with_something_in_it(name: str, given: Any) -> None:
    with pytest.raises(ValidationError, match="non-empty string"):
        make(name, name=given)


@each_class
def test_a_missing_name_is_said(name: str) -> None:
    with pytest.raises(ValidationError, match=r"'name' of \w+ is missing"):
        getattr(v, name)(**CASES[name].fields)


@each_class
def test_none_means_no_unit_and_no_description(name: str) -> None:
    variable = make(name, unit=None, description=None, default_validation_config=None)
    assert (variable.unit, variable.description, variable.default_validation_config) == ("", "", "error")


@each_class
def test_fields_of_the_wrong_type_are_named(name: str) -> None:
    for bad in ({"read_only": 5}, {"description": 3}, {"unit": 3}):
        with pytest.raises(ValidationError, match=f"'a': {next(iter(bad))}="):
            make(name, **bad)


def test_the_abstract_class_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="abstract"):
        v.Variable(name="a")  # type: ignore[abstract]
