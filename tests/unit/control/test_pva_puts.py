"""What a PVAccess client fills into a put: numbers that a field cannot hold are refused, not cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("p4p")

from p4p.nt import NTEnum, NTScalar

from lume_diff.control.pva import _builder
from lume_diff.errors import ControlError

CHOICES = {"index": 0, "choices": ["OUT", "IN"]}


@pytest.mark.parametrize(
    "code, present, value",
    [("i", 1, 1.5), ("i", 1, np.float32(1.5)), ("i", 1, float("nan")), ("ai", [1, 2], [1.0, 2.5])],
    ids=["number", "single precision", "NaN", "array"],
)
def test_a_fraction_is_refused_where_whole_numbers_are_held(code: str, present: Any, value: Any) -> None:
    target = NTScalar(code).wrap(present)
    with pytest.raises(ControlError, match="whole number"):
        _builder(value)(target)


@pytest.mark.parametrize("code, present, value", [("i", 1, 4.0), ("d", 0.0, 1.5), ("ai", [1, 2], [3.0, 4.0])])
def test_what_fits_is_written(code: str, present: Any, value: Any) -> None:
    target = NTScalar(code).wrap(present)
    _builder(value)(target)
    assert np.array_equal(target["value"], value)


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan"), "LEFT"])
def test_what_is_no_choice_is_refused(value: Any) -> None:
    with pytest.raises(ControlError, match="choice"):
        _builder(value)(NTEnum().wrap(CHOICES))


@pytest.mark.parametrize("value", [1, 1.0, "IN"])
def test_a_choice_is_its_word_or_its_index(value: Any) -> None:
    target = NTEnum().wrap(CHOICES)
    _builder(value)(target)
    assert target["value.index"] == 1


def test_a_text_that_a_server_would_cut_is_refused() -> None:
    with pytest.raises(ControlError, match="NUL"):
        _builder("a\0b")(NTScalar("s").wrap(""))
