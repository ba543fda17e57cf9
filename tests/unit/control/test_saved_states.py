"""Saved states from files: what is read, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from lume_diff.control import Severity, read_state
from lume_diff.errors import ValidationError


def test_yaml_has_values_by_name_plain_or_with_time_and_severity(tmp_path):
    file = tmp_path / "state.yaml"
    file.write_text(
        "Q1: 1.5\nSTATE: on-line\nRAMP: [1.0, 2.0]\n"
        "OLD: {value: 3, time: 2026-11-22T08:00:00Z, severity: 3, message: lost}\n"
    )
    found = read_state(file)
    assert (found["Q1"].value, found["STATE"].value, found["RAMP"].value) == (1.5, "on-line", [1.0, 2.0])
    assert found["Q1"].time == file.stat().st_mtime
    old = found["OLD"]
    assert (old.value, old.severity, old.message) == (3, Severity.INVALID, "lost")
    assert old.time == datetime(2026, 11, 22, 8, tzinfo=UTC).timestamp()


def test_words_and_numbers_of_yaml_are_those_of_version_1_2(tmp_path):
    file = tmp_path / "state.yaml"
    file.write_text("Q1: 1e-3\nVALVE: on\nSHUTTER: no\nRATIO: 12:30\nISOTOPE: 1_0\n")
    values = {name: reading.value for name, reading in read_state(file).items()}
    assert values == {"Q1": 1e-3, "VALVE": "on", "SHUTTER": "no", "RATIO": "12:30", "ISOTOPE": "1_0"}


@pytest.mark.parametrize(
    "name, data", [("a.yaml", b"A: \xff\n"), ("a.csv", b"pv,value\nA,\xff\n")], ids=["yaml", "csv"]
)
def test_bytes_that_are_no_text_are_told(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValidationError, match=rf"{name}.*utf-8"):
        read_state(tmp_path / name)


def test_csv_has_a_header_and_numbers_where_they_are_numbers(tmp_path):
    file = tmp_path / "state.csv"
    file.write_text("severity,pv,value,time\n,Q1,1.5e-3,\n0,N,3,1700000000.5\n2,STATE,on,2026-11-22T08:00:00+00:00\n")
    found = read_state(file)
    assert {name: reading.value for name, reading in found.items()} == {"Q1": 1.5e-3, "N": 3, "STATE": "on"}
    assert found["N"].time == 1700000000.5
    assert found["STATE"].severity is Severity.MAJOR


@pytest.mark.parametrize(
    "name, text, phrases",
    [
        ("a.yaml", "- 1\n- 2\n", ["by the name"]),
        ("a.yaml", "Q1: [1\n", ["not valid YAML"]),
        ("a.yaml", "Q1: !!python/object/apply:os.getcwd []\n", ["not valid YAML"]),
        ("a.yaml", "Q1: 1\nQ2: 2\nQ1: 3\n", ["'Q1' is twice", "line 3"]),
        ("a.yaml", "A: {val: 1}\nB: {value: 1, severity: 9}\nC: {value: 1, time: noon}\n", ["'A'", "'B'", "'C'"]),
        ("a.yaml", "A:\nB: {value: null}\n", ["'A': its value is empty", "'B': its value is empty"]),
        ("a.csv", "name,value\nQ1,1\n", ["'pv' and 'value'"]),
        ("a.csv", "pv,value\nQ1,1\nQ1,2\nQ2,\n", ["line 3: 'Q1' is there twice", "line 4: 'Q2'"]),
        ("a.txt", "Q1 1\n", [".yaml, .yml or .csv"]),
    ],
    ids=["list", "broken", "python", "twice", "fields", "empty", "header", "rows", "suffix"],
)
def test_every_mistake_is_named_at_once(tmp_path, name, text, phrases):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(ValidationError) as caught:
        read_state(file)
    for phrase in phrases:
        assert phrase in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValidationError, match=r"gone\.yaml"):
        read_state(tmp_path / "gone.yaml")
