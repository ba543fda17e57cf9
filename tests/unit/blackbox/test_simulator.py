"""What every simulator has: an identity that changes whenever its results may."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lume_diff.blackbox import FunctionSimulator


def identity(value: Any) -> str:
    return FunctionSimulator(lambda a: {"y": a * np.sum(value)}, ["y"]).identity()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(1.0, 2.0, id="numbers"),
        pytest.param(np.eye(50)[0], np.eye(50)[7], id="arrays"),
        pytest.param(np.eye(5000)[2000], np.eye(5000)[2500], id="arrays-too-long-to-be-shown"),
        pytest.param(np.zeros(4, dtype=np.float32), np.zeros(4), id="dtypes"),
    ],
)
def test_what_a_function_closes_over_is_part_of_its_identity(one: Any, other: Any) -> None:
    assert identity(one) == identity(one)
    assert identity(one) != identity(other)


FACTOR = 2.0


def doubled(a: float) -> float:
    return FACTOR * a


def through_another(a: float) -> dict[str, float]:
    return {"y": doubled(a)}


def test_numbers_of_the_module_that_a_function_refers_to_are_part_of_its_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = FunctionSimulator(through_another, ["y"]).identity()
    assert FunctionSimulator(through_another, ["y"]).identity() == before
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    assert FunctionSimulator(through_another, ["y"]).identity() != before


def test_an_object_that_can_be_called_is_told_by_its_numbers() -> None:
    class Line:
        def __init__(self, length: float) -> None:
            self.length = length

        def __call__(self, a: float) -> dict[str, float]:
            return {"y": self.length * a}

    identities = [FunctionSimulator(Line(length), ["y"]).identity() for length in (1.0, 1.0, 2.0)]
    assert identities[0] == identities[1] != identities[2]
