"""Whole numbers, truth values, choices and text."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.errors import OutOfRangeWarning, ValidationError
from lume_diff.variables import BoolVariable, EnumVariable, IntVariable, StrVariable

INTEGERS: list[tuple[str, Any]] = [
    ("int", 3), ("float without fraction", 3.0), ("numpy int8", np.int8(3)), ("numpy uint64", np.uint64(3)),
    ("numpy float32", np.float32(3)), ("0-d array", np.array(3)), ("0-d tensor", torch.tensor(3)),
    ("int32 tensor", torch.tensor(3, dtype=torch.int32)), ("float tensor", torch.tensor(3.0)),
    ("array", np.full((2, 2), 3)), ("list", [[3, 3], [3, 3]]), ("mixed list", [3, 3.0, torch.tensor(3), np.int16(3)]),
    ("tensor with gradient", torch.tensor([3.0], requires_grad=True)), ("empty", torch.zeros(0)),
]  # fmt: skip


@pytest.mark.parametrize("value", [pytest.param(x, id=i) for i, x in INTEGERS])
def test_whole_numbers_become_int64(value: Any) -> None:
    out = IntVariable(name="n").validate_value(value, dtype=torch.float32, device="cpu")
    assert out.dtype is torch.int64
    assert (out == 3).all()
    assert not out.requires_grad


@pytest.mark.parametrize(
    "given, kept",
    [
        ((0, None), (0, 2**63 - 1)),
        ((None, 5), (-(2**63), 5)),
        ((None, None), (-(2**63), 2**63 - 1)),
        ((1, 2**62 + 1), (1, 2**62 + 1)),
        ((np.int64(3), 9.0), (3, 9)),
        ((-float("inf"), 2**70), (-(2**63), 2**63 - 1)),
    ],
    ids=str,
)
def test_range_of_whole_numbers_outlives_copies(given: Any, kept: tuple[int, int]) -> None:
    variable = IntVariable(name="n", value_range=given)
    assert variable.value_range == kept
    assert variable.replace(name="m").value_range == kept
    assert variable.model_copy(update={"read_only": True}).value_range == kept


@pytest.mark.parametrize(
    "given, words",
    [((3, 2), "must not exceed"), ((0.5, 2), "whole numbers"), ((float("inf"), None), "whole"), ((True, 3), "bool")],
    ids=str,
)
def test_range_that_is_none_of_whole_numbers(given: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        IntVariable(name="n", value_range=given)


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63) + 1, 2**53 + 1])
def test_large_integers_are_exact(value: int) -> None:
    variable = IntVariable(name="n", default_value=value)
    assert variable.validate_value(value).item() == value
    assert variable.validate_value([value]).tolist() == [value]
    assert variable.default_value == value


def test_integer_limits_and_policies() -> None:
    variable = IntVariable(name="n", value_range=(0, 10), unit="counts")
    for end in (0, 10, torch.tensor([0, 10])):
        variable.validate_value(end)
    with pytest.raises(ValidationError, match=r"'n': 12 counts at batch index \(1,\) is outside value_range \[0, 10\]"):
        variable.validate_value([3, 12, 11])
    with pytest.warns(OutOfRangeWarning, match="-1 counts"):
        assert variable.validate_value(-1, config="warn").item() == -1
    assert variable.validate_value(-1, config="none").item() == -1


@pytest.mark.parametrize("ends", [(0, None), (None, 5), (-np.inf, 5), (0, 5.0), None], ids=str)
def test_integer_ranges(ends: Any) -> None:
    variable = IntVariable(name="n", value_range=ends)
    assert variable.validate_value(3).item() == 3
    if ends is not None:
        assert all(type(end) is int for end in variable.value_range)


@pytest.mark.parametrize("ends", [(0.5, 2), (3, 1), (0, 1, 2), "ab", 3, (True, 2)], ids=str)
def test_wrong_integer_ranges(ends: Any) -> None:
    with pytest.raises(ValidationError, match="'n': value_range="):
        IntVariable(name="n", value_range=ends)


def test_whole_numbers_inside_transforms() -> None:
    variable = IntVariable(name="n", value_range=(0, 1))
    assert torch.func.vmap(variable.validate_value)(torch.tensor([5, 7])).tolist() == [5, 7]


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), torch.tensor(True)], ids=repr)
def test_truth_values_become_bool_tensors(value: Any) -> None:
    out = BoolVariable(name="b").validate_value(value, dtype=torch.float32, device="cpu")
    assert out.dtype is torch.bool
    assert out.shape == ()
    assert out.item() is True
    assert BoolVariable(name="b", default_value=value).default_value is True


@pytest.mark.parametrize(
    "value",
    [[True, False], np.array([True, False]), torch.tensor([True, False]), [torch.tensor(True), False]],
    ids=repr,
)
def test_batches_of_truth_values(value: Any) -> None:
    assert BoolVariable(name="b").validate_value(value).tolist() == [True, False]


class Position(str, enum.Enum):  # noqa: UP042  (its str() is not its value: that is the point)
    OUT = "OUT"
    IN = "IN"


@pytest.mark.parametrize("value", ["IN", np.str_("IN"), Position.IN], ids=repr)
def test_an_option_is_returned_as_a_plain_string(value: Any) -> None:
    variable = EnumVariable(name="e", options=("OUT", "IN"), default_value=value)
    for out in (variable.validate_value(value), variable.default_value):
        assert out == "IN"
        assert type(out) is str


@pytest.mark.parametrize("policy", ["none", "warn", "error"])
def test_no_policy_lets_an_unknown_option_pass(policy: str) -> None:
    variable = EnumVariable(name="SCR.state", options=["OUT", "INSERTED"])
    with pytest.raises(ValidationError, match=r"'SCR.state': 'INSRTED' is not an option; nearest: 'INSERTED'"):
        variable.validate_value("INSRTED", config=policy)
    with pytest.raises(ValidationError, match="give one of 'OUT', 'INSERTED'"):
        variable.validate_value(1, config=policy)


@pytest.mark.parametrize("options", [[], "ab", [1, 2], [True, False], ["a", "a"], None, {"a": 1}], ids=repr)
def test_wrong_options(options: Any) -> None:
    with pytest.raises(ValidationError, match="'e': options="):
        EnumVariable(name="e", options=options)


def test_options_are_needed() -> None:
    with pytest.raises(ValidationError, match="'options' of EnumVariable is missing"):
        EnumVariable(name="e")


@pytest.mark.parametrize(
    "text,expected", [("a", "at least 2"), ("abcdef", "at most 4"), ("ab1", "a text that matches"), ("ab\n", "matches")]
)
def test_texts_and_policies(text: str, expected: str) -> None:
    variable = StrVariable(name="s", pattern="[a-z]*", min_length=2, max_length=4)
    with pytest.raises(ValidationError, match=f"'s'.*expected {expected.removeprefix('matches') or '.*'}"):
        variable.validate_value(text)
    with pytest.warns(OutOfRangeWarning, match="'s'"):
        assert variable.validate_value(text, config="warn") == text
    assert variable.validate_value(text, config="none") == text
    assert variable.validate_value("abc") == "abc"


@pytest.mark.parametrize(
    "fields",
    [{"pattern": "("}, {"min_length": 3, "max_length": 2}, {"max_length": -1}, {"min_length": 1.5}, {"pattern": 3}],
    ids=str,
)
def test_wrong_text_rules(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="variable 's'"):
        StrVariable(name="s", **fields)


@pytest.mark.parametrize("policy", ["none", "warn"])
def test_a_default_meets_the_rules_under_any_policy(policy: str) -> None:
    with pytest.raises(ValidationError, match="expected at most 2"):
        StrVariable(name="s", max_length=2, default_value="abc", default_validation_config=policy)
    with pytest.raises(ValidationError, match="outside value_range"):
        IntVariable(name="n", value_range=(0, 1), default_value=2, default_validation_config=policy)
