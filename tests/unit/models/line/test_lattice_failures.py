"""What a bad lattice file says: its name, the line and the fix."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cheetah
import pytest

from lume_diff.errors import LatticeError
from lume_diff.models.line.files import read_lattice
from tests.unit.models.line.lattices import written


def lattice_json(element: str, lattices: str = '"cell": ["Q1"]', root: str = "cell") -> str:
    return f'{{\n"root": "{root}",\n"lattices": {{\n{lattices}\n}},\n"elements": {{\n"Q1": {element}\n}}\n}}'


QUAD = '["Quadrupole", {"length": 0.2}]'
NX = "NAME,CLASS,Z_beam\nQ1,MQZM,0.1\n"
# id: (file, content, options, line or None, words of the message, whether another error is behind it)
FAILURES: dict[str, tuple[str, str | bytes, dict[str, Any], int | None, str, bool]] = {
    "unknown suffix": ("a.madx", "x", {}, None, r"suffix '\.madx'.*'latticejson' \(\.json\).*'nxtables'", False),
    "unknown format": ("a.json", "{}", {"format": "sad"}, None, "format is 'sad'; expected one of", False),
    "empty file": ("a.json", " \n", {}, None, "is empty", False),
    "binary file": ("a.bmad", b"q1: drift\n\x89HDF\x00\x01", {}, 2, "is not text: byte 0x00", False),
    "json that does not parse": ("a.json", '{\n"root": "a",\n}', {}, 3, "is not JSON: .*column 1", True),
    "json cut off": ("a.json", lattice_json(QUAD)[:60], {}, 6, "is not JSON", True),
    "json list": ("a.json", "[]", {}, None, "not LatticeJSON: 'root' is missing", False),
    "json without root": ("a.json", "{}", {}, None, "'root' is missing or not a name", False),
    "json without lattices": ("a.json", '{"root": "a"}', {}, None, "'lattices' is missing", False),
    "json without elements": ("a.json", '{"root": "a", "lattices": {}}', {}, None, "'elements' is missing", False),
    "json with a name twice": ("a.json", '{"root": "a", "root": "b"}', {}, None, "'root' is defined twice", False),
    "json too deep": ("a.json", "[" * 100_000, {}, None, "is nested too deeply", True),
    "json root not there": ("a.json", lattice_json(QUAD, root="cel"), {}, None, "root is 'cel'.*'cell'", False),
    "json name not there": ("a.json", lattice_json(QUAD), {"name": "x"}, None, "name is 'x'.*'cell'", False),
    "json lattice of numbers": ("a.json", lattice_json(QUAD, '"cell": [1]'), {}, 4, "expected a list of names", False),
    "json lattice in itself": ("a.json", lattice_json(QUAD, '"cell": ["cell"]'), {}, 4, "contains itself", False),
    "json lattice empty": ("a.json", lattice_json(QUAD, '"cell": []'), {}, None, "has no elements", False),
    "json element not there": ("a.json", lattice_json(QUAD, '"cell": ["Q2"]'), {}, 4, "'Q2'.*nearest: 'Q1'", False),
    "json element no pair": ("a.json", lattice_json('["Drift"]'), {}, 7, r"'Q1' is .*expected \[class", False),
    "json unknown class": ("a.json", lattice_json('["Quad", {}]'), {}, 7, "'Q1'.*'Quad'; nearest: 'Quadr", False),
    "json class of no element": ("a.json", lattice_json('["Species", {}]'), {}, 7, "unknown class 'Species'", False),
    "json unknown parameter": (
        *("a.json", lattice_json('["Drift", {"length": 1.0, "k": 1}]'), {}, 7),
        *("Drift 'Q1' has no parameter 'k'", False),
    ),
    "json missing parameter": ("a.json", lattice_json('["Drift", {}]'), {}, 7, "Drift 'Q1' has no 'length'", False),
    "json word for a number": (
        *("a.json", lattice_json('["Drift", {"length": "long"}]'), {}, 7),
        *("length of 'Q1' is 'long'; expected a number", False),
    ),
    "json NaN": ("a.json", lattice_json('["Drift", {"length": NaN}]'), {}, 7, "length of 'Q1' is nan", False),
    "json one misalignment": (
        *("a.json", lattice_json('["BPM", {"misalignment": 0.1}]'), {}, 7),
        *("misalignment of 'Q1' is 0.1; expected two numbers", False),
    ),
    "json wrong choice": (
        *("a.json", lattice_json('["Drift", {"length": 1, "tracking_method": "bmadx"}]'), {}, 7),
        *("'bmadx'; expected 'linear' or", False),
    ),
    "json word for a switch": (
        *("a.json", lattice_json('["BPM", {"is_active": "yes"}]'), {}, 7),
        *("is_active of 'Q1' is 'yes'; expected true or false", False),
    ),
    "json one resolution": (
        *("a.json", lattice_json('["Screen", {"resolution": [100]}]'), {}, 7),
        *(r"resolution of 'Q1' is \[100\]; expected 2 whole numbers", False),
    ),
    "json element in itself": (
        *("a.json", lattice_json('["Superimposed", {"base_element": "Q1", "superimposed_element": "Q1"}]'), {}, 7),
        *("element 'Q1' contains itself", False),
    ),
    "json element Cheetah refuses": (
        *("a.json", lattice_json('["CustomTransferMap", {"predefined_transfer_map": [[1.0]]}]'), {}, 7),
        *("CustomTransferMap 'Q1' cannot be built: Cheetah checks .*shape", True),
    ),
    "json infinity": (
        "a.json",
        lattice_json('["Drift", {"length": Infinity}]'),
        {},
        None,
        "length of 'Q1' is inf",
        False,
    ),
    "bmad NaN": ("a.bmad", "d1: drift, l = nan\ncell: line = (d1)", {}, None, "length of 'd1' is nan", False),
    "bmad not understood": ("a.bmad", "a = 1\n\nq1 quadrupole, l = 1", {}, 3, "cannot read 'q1 quad.*expected", True),
    "bmad division by zero": ("a.bmad", "a = 0\nb = 1 / a\nc = 2", {}, 2, "ZeroDivisionError.*; expected", True),
    "bmad cut off": ("a.bmad", "d1: drift, l = 1\ncell: line = (d1,\n", {}, 2, "cannot read 'cell: line", True),
    "bmad no line": ("a.bmad", "d1: drift, l = 1", {}, None, "defines no line", False),
    "bmad line not there": ("a.bmad", "d1: drift, l=1\ncell: line=(d1)\nuse, cel", {}, None, "'cel'.*'cell'", False),
    "bmad element not there": ("a.bmad", "d1: drift, l=1\ncell: line=(d1, d2)", {}, 2, "'d2', which is not def", False),
    "bmad line in itself": ("a.bmad", "a: line=(b)\nb: line=(a)\nuse, a", {}, 1, "'a' contains itself", False),
    "bmad attribute missing": ("a.bmad", "b1: sbend, l=1\nc: line=(b1)", {}, 1, "sbend 'b1' has no 'e1'", True),
    "bmad called file missing": ("a.bmad", "call, file = b.bmad", {}, 1, r"calls '.*b\.bmad', which is not a", False),
    "bmad file that calls itself": ("a.bmad", "call, file = a.bmad", {}, 1, "being read already", False),
    "elegant two lines": (
        "a.lte",
        "D: DRIF\nA: LINE=(D)\nB: LINE=(D)",
        {},
        None,
        "lines 'a', 'b'; say with name",
        False,
    ),
    "elegant name not there": ("a.lte", "D: DRIF\nA: LINE=(D)", {"name": "C"}, None, "no line 'c'; known: 'a'", False),
    "elegant commands": ("a.ele", "&run_setup\n lattice=a.lte\n&end", {}, 1, "command of Elegant", True),
    "elegant no linear map": ("a.lte", "M: EMATRIX, ORDER=2\nA: LINE=(M)", {}, 1, "'m' cannot be .*first order", True),
    "table with a name": ("a.csv", NX, {"name": "Q1"}, None, "name is 'Q1', but an NX table has one line", False),
    "table without a column": ("a.csv", "NAME,CLASS\n", {}, 1, "has no column 'Z_beam'", False),
    "table short row": ("a.csv", NX + "Q2,MQZM\n", {}, 3, "has 2 columns; expected 3", False),
    "table open quote": ("a.csv", NX + '"Q2,MQZM,1.0\n', {}, 3, "is not CSV", True),
    "table word for a position": ("a.csv", NX + "Q2,MQZM,here\n", {}, 3, "Z_beam of 'Q2' is 'here'", False),
    "table unknown class": ("a.csv", NX + "Q2,MQZZ,1.0\n", {}, 3, "'Q2' of class 'MQZZ' cannot", True),
    "table corrector": ("a.csv", NX + "ABCDEFG,MCXG,1.0\n", {}, 3, 'Cheetah checks .*== "X"', True),
    "table overlap": ("a.csv", NX + "Q2,MQZM,0.2\n", {}, 3, "'Q2' overlaps 'Q1' by 0.022 m", False),
    "table without elements": ("a.csv", "NAME,CLASS,Z_beam\n", {}, None, "has no elements", False),
}


@pytest.mark.parametrize("case", FAILURES.values(), ids=FAILURES)
def test_failure_names_file_line_and_fix(case: tuple[str, str | bytes, dict, int | None, str, bool], tmp_path: Path):
    file, content, options, line, words, is_chained = case
    path = tmp_path / file
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(LatticeError) as caught:
        read_lattice(path, **options)
    message = str(caught.value)
    assert message.startswith(f"lattice file {str(path)!r}{'' if line is None else f', line {line}'}: ")
    assert re.search(words, message), message
    assert (caught.value.__cause__ is not None) == is_chained


@pytest.mark.parametrize("file, k1", [("a.bmad", "kq"), ("a.lte", '"1 2 /"')], ids=["undefined", "quoted"])
def test_expression_that_cheetah_cannot_evaluate(file: str, k1: str, tmp_path: Path) -> None:
    path = written(tmp_path / file, f"q1: quad, l=0.1, k1={k1}\nquad1: quadrupole, l=0.1, k1={k1}\ncell: line=(quad1)")
    words = re.escape(f"{file}', line 2: quadrupole 'quad1' has k1={k1!r}; expected a number")
    with pytest.warns(cheetah.PhysicsWarning, match=re.escape(k1)), pytest.raises(LatticeError, match=words):
        read_lattice(path)


@pytest.mark.parametrize("name", ["line.json", "line.bmad", "line.lte", "line.csv", "line.py"])
def test_missing_file_and_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(LatticeError, match=f"{name}': does not exist"):
        read_lattice(tmp_path / name, trust=True)
    (tmp_path / name).mkdir()
    with pytest.raises(LatticeError, match=f"{name}': is a directory; expected a file"):
        read_lattice(tmp_path / name, trust=True)
