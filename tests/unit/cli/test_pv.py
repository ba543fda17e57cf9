"""How ``lume-diff pv`` prints what servers show."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lume_diff.cli.pv import _line
from lume_diff.control import Reading


@pytest.mark.parametrize(
    "value, shown",
    [
        (np.array(["field", "force"]), "[field force] (2)"),
        ({"output": np.array(["field"]), "d0": np.array([2.0])}, "{output: [field] (1), d0: [2] (1)}"),
        (np.array([True, False]), "[1 0] (2)"),
    ],
    ids=["words", "table", "truth values"],
)
def test_columns_of_words_are_printed_as_they_are(value, shown):
    assert _line("X", Reading(value, 0.0, 0), False) == f"X 1970-01-01T00:00:00.000+00:00 {shown}"


@pytest.mark.parametrize(
    "value, told", [(float("nan"), None), (np.array([[1.0, np.inf]]), [[1.0, None]]), (3, 3)], ids=str
)
def test_json_has_null_for_what_is_not_finite(value, told):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    assert json.loads(_line("X", Reading(value, 0.0, 0), True), parse_constant=refuse)["value"] == told
