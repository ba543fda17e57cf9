"""YAML as data with lines: what is read, what is refused, and that nothing is made or unfolded."""

from __future__ import annotations

import math

import pytest

from lume_diff.machine import nodes
from lume_diff.machine.nodes import Unreadable, parse
from lume_diff.machine.problems import Problem


def read(text: str) -> tuple[object, list[Problem]]:
    problems: list[Problem] = []
    return parse(text, problems).plain(), problems


@pytest.mark.parametrize(
    "text, value",
    [
        ("1e-3", 1e-3),
        ("1e8", 1e8),
        ("-2", -2),
        ("0x10", 16),
        (".inf", math.inf),
        ("on", "on"),
        ("no", "no"),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("true", True),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("~", None),
        ("9" * 30, int("9" * 30)),
    ],
)
def test_scalars_are_read_by_yaml_1_2(text: str, value: object) -> None:
    found, problems = read(f"a: {text}")
    assert found == {"a": value}
    assert not problems


def test_lines_of_keys_and_items() -> None:
    problems: list[Problem] = []
    root = parse("a:\n  - 1\n  - b: 2\nQ1.k1: x\n", problems)
    assert root.line_of("Q1.k1") == 4
    inner = root.child("a", 1)
    assert inner is not None
    assert (inner.line, inner.line_of("b")) == (3, 3)
    assert root.child("a", 2) is None
    assert root.child("a", "b") is None


def test_keys_are_always_texts() -> None:
    assert read("{1: a, on: b, true: c}")[0] == {"1": "a", "on": "b", "true": "c"}


def test_aliases_of_plain_data_are_read() -> None:
    assert read("a: &x {b: 1}\nc: *x")[0] == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    "text, line, words",
    [
        ("a: 1\nb: 2\na: 3", 3, "'a' stands here a second time; the first is in line 1"),
        ("a:\n  !!python/object/apply:os.system ['true']", 2, "'!!python/object/apply:os.system' is refused"),
        ("a: !!float 3", 1, "'!!float' is refused"),
        ("a: !custom {b: 1}", 1, "'!custom' is refused"),
        ("a: &x 1\nb: {<<: {c: 1}}", 2, "'<<' merges no mappings"),
        ("a: 1\n? [x, y]\n: 2", 2, "a key is a list or a mapping"),
        ("a: &x [1, *x]", 1, "*x stands for nothing that ends before it"),
        ("a: *nowhere", 1, "*nowhere stands for nothing that ends before it"),
    ],
)
def test_mistakes_that_leave_the_rest_readable(text: str, line: int, words: str) -> None:
    found, problems = read(f"{text}\nlast: 7")
    assert [problem.line for problem in problems] == [line]
    assert words in problems[0].message
    assert isinstance(found, dict)
    assert found["last"] == 7


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [1, 2", "is no YAML"),
        ("a: b: c", "is no YAML"),
        ("a: \x07", "is no YAML"),
        ("a: 1\n---\nb: 2", "a second document"),
        ("[" * 40 + "]" * 40, "nested more than"),
    ],
)
def test_texts_that_cannot_be_read_to_the_end(text: str, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read(text)


def test_aliases_that_unfold_without_bounds_are_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    with pytest.raises(Unreadable, match="aliases unfolded"):  # unfolded it would take for ever
        read(bomb)


def test_a_file_that_is_too_large_is_not_read(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.yaml"  # type: ignore[operator]
    path.write_text("a: 1\n" * 10)
    monkeypatch.setattr(nodes, "LARGEST_FILE", 20)
    problems: list[Problem] = []
    assert nodes.read_nodes(path, problems) is None
    assert "larger than 20 bytes" in problems[0].message
