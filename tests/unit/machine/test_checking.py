"""Checking machine files: every mistake at once, each with its line, and nothing run."""

from __future__ import annotations

from pathlib import Path

import pytest

from lume_diff.errors import ValidationError
from lume_diff.machine import check, load_model
from lume_diff.models import CheetahModel

PLANTED = """\
description: !!python/object/apply:pathlib.Path.touch [pwned]
stages:
  gun:
    backend: bunch-from-momentum
  line:
    backend: cheetah
    lattice: missing.json
  dump: {backend: cheetah, lattice: ../other.json}
  end:
    backend: cheetah
    lattice: line.json
    beam: {mean_energy: 1e8, charge: 1e-10, beta_x: 8, beta_y: 6, norm_emit_x: 1e-6, norm_emit_y: 1e-6}
    engin: auto
    losses: hard
    loss_width: "0.1"
    set: {Q9.k1: 1.0}
mapping:
  variables:
    "QUAD:1:BCTRL": {kind: setpoint, native: Q1.k1}
    "QUAD:1:BACT": {kind: readback, of: "QUAD:1:BCTRL"}
    "QUAD:1:BCTRL": {kind: setpoint, native: Q1.k1}
variables:
  "QUAD:1:BCTRL": {unit: kGauß}
  "QUAD:1:BACT": {alarm_range: [5, -5]}
"""
EXPECTED = [
    (1, "the tag '!!python/object/apply:pathlib.Path.touch' is refused"),
    (4, "stages.gun.backend: there is no backend 'bunch-from-momentum'; nearest: 'bunch-from-moments'"),
    (7, "stages.line.lattice: there is no file 'missing.json'"),
    (8, "stages.dump.lattice: '../other.json' is outside the folder of this file"),
    (13, "stages.end.engin: is not known here; nearest: 'engine'"),
    (15, "stages.end.loss_width: is '0.1': input should be a valid number"),
    (16, "stages.end.set.Q9.k1: there is no element 'Q9'"),
    (21, "'QUAD:1:BCTRL' stands here a second time; the first is in line 19"),
    (23, "variables.QUAD:1:BCTRL.unit: unit 'kGauß' is not known"),
    (24, "variables.QUAD:1:BACT.alarm_range: is [5.0, -5.0]: the lower end must not exceed the upper end"),
]


def test_ten_planted_mistakes_are_all_reported_with_their_lines(folder: Path) -> None:
    (folder.parent / "other.json").write_text("{}")
    (folder / "bad.yaml").write_text(PLANTED, encoding="utf-8")
    found = check(folder / "bad.yaml")
    assert [problem.line for problem in found] == [line for line, _ in EXPECTED]
    for problem, (_, words) in zip(found, EXPECTED, strict=True):
        assert words in str(problem)
    with pytest.raises(ValidationError, match="has 10 mistakes") as raised:
        load_model(folder / "bad.yaml")
    assert all(f"line {line}: " in str(raised.value) for line, _ in EXPECTED)
    assert not list(folder.rglob("pwned"))


def test_a_right_file_has_no_mistakes(folder: Path) -> None:
    assert check(folder / "machine.yaml") == []


def change(folder: Path, old: str, new: str) -> list[str]:
    """Return the mistakes of the machine with a text replaced."""
    text = (folder / "machine.yaml").read_text()
    assert old in text
    (folder / "changed.yaml").write_text(text.replace(old, new, 1))
    return [str(problem) for problem in check(folder / "changed.yaml")]


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("set: {Q1.k1: 2.0}", "set: {Q1.k1: strong}", "line 7: stages.line.set.Q1.k1: variable 'Q1.k1'"),
        ("alpha_x: 0.5", "alfa_x: 0.5", "line 11: set.alfa_x: there is no variable 'alfa_x'; nearest: 'alpha_x'"),
        (
            "alpha_x: 0.5",
            "Q1.k1: 7.0",
            "line 11: set.Q1.k1: variable 'Q1.k1': 7.0 1/m^2 is outside value_range [-5, 5]",
        ),
        ("alpha_x: 0.5", "final.sigma_x: 1.0", "is an output, which cannot be set"),
        ("alpha_x: 0.5", "alpha_x: {a: 1}", "line 11: set.alpha_x: is {'a': 1}; expected a value"),
        ("  Q1.k1: {v", "  Q2.k1: {v", "line 9: variables.Q2.k1: there is no element 'Q2'; nearest: 'Q1'"),
        ("  Q1.k1: {v", "  Q1.k2: {v", "line 9: variables.Q1.k2: there is no variable 'Q1.k2'; nearest: 'Q1.k1'"),
        ("value_range: [-5, 5]", "unit: m", "unit is 'm', but 'Q1.k1' is in '1/m^2'"),
        ("value_range: [-5, 5]", "unit: 1/cm^2", "values are not converted here"),
        ("value_range: [-5, 5]", "value_range: [1]", "is [1.0]: expected two numbers"),
        ("value_range: [-5, 5]", "limits: [1, 2]", "variables.Q1.k1.limits: is not known here"),
        ("timeout: 60", "isolation: thread, timeout: 60", "'timeout' needs 'isolation: process'"),
        ("timeout: 60", "restore: last", "'restore: last' needs 'autosave'"),
        ("timeout: 60", "settling: {Q1.k1: {rate: -1}}", "ioc.settling.Q1.k1.rate: is -1"),
        ("timeout: 60", "settling: {Q1.k2: {}}", "ioc.settling.Q1.k2: there is no variable 'Q1.k2'; nearest: 'Q1.k1'"),
        ("timeout: 60", "settling: {final.sigma_x: {}}", "ioc.settling.final.sigma_x: cannot settle"),
        ("protocols: [pva, ca]", "protocols: [pva, tango]", "ioc.protocols[1]: is 'tango'"),
        ("timeout: 60", "autosave: nowhere/set.yaml", "to write 'nowhere/set.yaml' in"),
        ("timeout: 60", "autosave: /tmp/set.yaml", "'/tmp/set.yaml' is outside the folder"),
        ("lattice: line.json", "lattice: line.json\n    trust: yes", "stages.line.trust: is 'yes'"),
        ("lattice: line.json", "lattice: 3", "stages.line.lattice: is 3: input should be a valid string"),
        ("backend: cheetah", "engine: auto", "line 4: stages.line: has no 'backend'"),
        (
            "stages:",
            "links: {line/initial_particles: gunn/final_particles}\nstages:",
            "'gunn/final_particles' is no end",
        ),
        ("description: a gun and a line", "model: {}", "has both 'model' and 'stages'"),
        ("ioc: {", "calibration: nix.yaml\nioc: {", "calibration: there is no file 'nix.yaml'"),
    ],
)
def test_each_mistake_is_told(folder: Path, old: str, new: str, words: str) -> None:
    found = change(folder, old, new)
    assert any(words in problem for problem in found), found


def test_a_line_without_a_beam_is_told(folder: Path) -> None:
    (folder / "alone.yaml").write_text("model: {backend: cheetah, lattice: line.json}")
    assert ["has no 'beam'" in str(problem) for problem in check(folder / "alone.yaml")] == [True]


@pytest.mark.parametrize("section", ["backend: madx, deck: d.txt", "backend: bmad, deck: d.txt"])
@pytest.mark.parametrize("trust", [None, True, False], ids=["file", "trusted", "refused"])
@pytest.mark.parametrize("given", [True, False], ids=["said", "unsaid"])
def test_programs_are_opened_only_where_they_are_trusted(
    folder: Path, section: str, trust: bool | None, given: bool
) -> None:
    (folder / "d.txt").write_text("")
    (folder / "code.yaml").write_text(f"model: {{{section}{', trust: true' if given else ''}}}")
    found = check(folder / "code.yaml", trust=trust)
    allowed = given if trust is None else trust
    assert len(found) == (0 if allowed else 1)
    if not allowed:
        assert "would be run" in str(found[0])
        with pytest.raises(ValidationError, match="would be run"):
            load_model(folder / "code.yaml", trust=trust)


def test_paths_may_leave_the_folder_where_the_file_says_so(folder: Path) -> None:
    inner = folder / "inner"
    inner.mkdir()
    text = (folder / "machine.yaml").read_text().replace("lattice: line.json", "lattice: ../line.json")
    (inner / "machine.yaml").write_text(text)
    assert ["outside the folder" in str(problem) for problem in check(inner / "machine.yaml")] == [True]
    (inner / "machine.yaml").write_text("allow_outside: true\n" + text)
    assert check(inner / "machine.yaml") == []


def test_a_link_that_leaves_the_folder_is_outside(folder: Path) -> None:
    (folder.parent / "line.json").write_text((folder / "line.json").read_text())
    (folder / "line.json").unlink()
    (folder / "line.json").symlink_to(folder.parent / "line.json")
    assert ["outside the folder" in str(problem) for problem in check(folder / "machine.yaml")] == [True]


def test_mistakes_of_a_machine_inside_name_its_file(folder: Path) -> None:
    (folder / "gun.yaml").write_text("model:\n  backend: bunch-from-moments\n  charge: 1e-10\n")
    found = check(folder / "machine.yaml", changes={"stages.gun": "gun.yaml"})
    assert {problem.file for problem in found} == {"gun.yaml"}
    assert any("model.beta_x: is missing" in str(problem) for problem in found)


def test_a_machine_cannot_hold_itself(folder: Path) -> None:
    found = check(folder / "machine.yaml", changes={"stages.gun": "machine.yaml"})
    assert any("a machine cannot hold itself" in str(problem) for problem in found)


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=["itself", "one that holds it"])
def test_files_that_hold_each_other_are_told(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, inner in zip(names, (*names[1:], names[0]), strict=True):
        (tmp_path / f"{name}.yaml").write_text(f"model: {inner}.yaml\n")
    (problem,) = check(tmp_path / "a.yaml")
    assert "'a.yaml' is being read already: a machine cannot hold itself" in problem.message
    with pytest.raises(ValidationError, match="cannot hold itself"):
        load_model(tmp_path / "a.yaml")


def test_a_lattice_with_mistakes_is_told(folder: Path) -> None:
    text = (folder / "line.json").read_text().replace("Quadrupole", "Quadrapole")
    (folder / "line.json").write_text(text)
    assert ["unknown class 'Quadrapole'" in str(problem) for problem in check(folder / "machine.yaml")] == [True]


def test_check_builds_no_model_with_a_beam(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the line was run")

    monkeypatch.setattr(CheetahModel, "_run", fail)
    assert check(folder / "machine.yaml") == []
