"""What a Channel Access client makes of what it receives, and what it sends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("caproto")

from caproto import ChannelType

from lume_diff.control.ca import _plain, _sent


@pytest.mark.parametrize(
    "kind, data, value",
    [
        (ChannelType.DOUBLE, np.array([1.5]), 1.5),
        (ChannelType.LONG, np.array([3]), 3),
        (ChannelType.CHAR, np.frombuffer(b"a text\0 and rest", dtype=np.uint8), "a text"),
        (ChannelType.STRING, [b"one\0\0"], "one"),
        (ChannelType.STRING, [b"one", b"two\0", b""], ["one", "two", ""]),
        (ChannelType.STRING, [], []),
        (ChannelType.ENUM, [b"IN"], "IN"),
        (ChannelType.ENUM, [b"True"], True),
        (ChannelType.ENUM, [b"False", b"True"], [False, True]),
    ],
    ids=["number", "whole", "characters", "text", "texts", "no text", "word", "truth", "truths"],
)
def test_data_become_python_values(kind: ChannelType, data: Any, value: Any) -> None:
    found = _plain(kind, data)
    assert found == value
    assert type(found) is type(value)


def test_arrays_stay_arrays() -> None:
    assert np.array_equal(_plain(ChannelType.DOUBLE, np.array([1.0, 2.0])), [1.0, 2.0])


@pytest.mark.parametrize(
    "kind, value, data",
    [
        (ChannelType.DOUBLE, 2, [2.0]),
        (ChannelType.LONG, 2.0, [2]),
        (ChannelType.LONG, np.array([[1, 2], [3, 4]]), [1, 2, 3, 4]),
        (ChannelType.CHAR, "", b"\0"),
        (
            ChannelType.CHAR,
            "a text of more than forty characters, for once",
            b"a text of more than forty characters, for once",
        ),
        (ChannelType.STRING, "run", [b"run"]),
        (ChannelType.STRING, ["one", ""], [b"one", b""]),
    ],
    ids=["number", "whole", "array", "empty text", "long text", "text", "texts"],
)
def test_values_become_data(kind: ChannelType, value: Any, data: Any) -> None:
    assert _sent(kind, value) == data


@pytest.mark.parametrize("value", [1.5, float("nan"), [1.0, 2.5]], ids=str)
def test_a_fraction_is_refused_where_whole_numbers_are_held(value: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        _sent(ChannelType.LONG, value)


@pytest.mark.parametrize(
    "kind, value, why",
    [
        (ChannelType.STRING, 5, "5 is no text"),
        (ChannelType.STRING, ["one", 2.0], "2.0 is no text"),
        (ChannelType.STRING, "é" * 20, "takes 40 bytes, and at most 39"),
        (ChannelType.STRING, "a\0b", "NUL"),
        (ChannelType.CHAR, "a\0b", "NUL"),
    ],
    ids=["number", "one of texts", "too long", "NUL", "NUL among characters"],
)
def test_a_text_that_would_arrive_as_another_is_refused(kind: ChannelType, value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        _sent(kind, value)
