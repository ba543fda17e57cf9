"""What is said where lume-impact, distgen or IMPACT-T is not there, or is something else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lume_diff.blackbox.impact.model import ImpactTModel
from lume_diff.blackbox.impact.program import find_program, lume_impact, program_hash
from lume_diff.errors import MissingExtraError, ValidationError

CONDA = "conda install -c conda-forge lume-impact impact-t distgen"


def test_no_distgen_names_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distgen", None)
    with pytest.raises(MissingExtraError, match="PyPI's 'distgen' is another package: never install that one") as seen:
        lume_impact()
    assert CONDA in str(seen.value)
    with pytest.raises(ImportError, match="conda-forge"):
        ImpactTModel("ImpactT.in")


def test_no_lume_impact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distgen", sys)  # any package that is there
    monkeypatch.setitem(sys.modules, "impact", None)
    with pytest.raises(MissingExtraError, match="no package 'impact'") as seen:
        lume_impact()
    assert CONDA in str(seen.value)


def test_another_package_called_impact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distgen", sys)
    monkeypatch.setitem(sys.modules, "impact", pytest)
    with pytest.raises(MissingExtraError, match="is not lume-impact"):
        lume_impact()


@pytest.mark.system
def test_the_other_distgen_is_noticed(lume: None, tmp_path: Path) -> None:
    (tmp_path / "distgen.py").write_text("VERSION = 'of something else'\n")
    script = "from lume_diff.blackbox.impact.program import lume_impact; lume_impact()"
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    result = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "MissingExtraError: lume-impact cannot be imported" in result.stderr
    assert CONDA in result.stderr.splitlines()[-1]


def test_no_executable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("IMPACTT_BIN", raising=False)
    with pytest.raises(MissingExtraError, match=r"no executable 'ImpactTexe'.*IMPACTT_BIN") as seen:
        find_program()
    assert CONDA in str(seen.value)


def test_where_the_executable_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = {}
    for name in ("named", "variable", "ImpactTexe"):
        programs[name] = tmp_path / name
        programs[name].write_text("#!/bin/sh\n")
        programs[name].chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("IMPACTT_BIN", str(programs["variable"]))
    assert find_program(programs["named"]) == programs["named"]
    assert find_program() == programs["variable"]
    monkeypatch.delenv("IMPACTT_BIN")
    assert find_program() == programs["ImpactTexe"]
    with pytest.raises(ValidationError, match="no executable"):
        find_program(tmp_path / "missing")


def test_the_hash_of_an_executable_is_that_of_its_content(tmp_path: Path) -> None:
    program = tmp_path / "program"
    seen = set()
    for content in ("one", "another", "one"):
        program.write_text(content)
        seen.add(program_hash(program))
    assert len(seen) == 2
