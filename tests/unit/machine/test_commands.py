"""``lume-diff check``, ``schema``, and the commands that take a machine file in place of a lattice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lume_diff.cli import app


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_right_file(folder: Path) -> None:
    done = call("check", folder / "machine.yaml")
    assert done.exit_code == 0, done.output
    assert "no mistakes; " in done.stdout
    assert " inputs, " in done.stdout


def test_mistakes_are_one_line_each(folder: Path) -> None:
    done = call("check", folder / "machine.yaml", "--set", "stages.line.lattice=no.json", "--set", "ioc.timeout=-1")
    assert done.exit_code == 1
    assert [line.split(": ")[:2] for line in done.stdout.splitlines()] == [
        ["command line", "stages.line.lattice"],
        ["command line", "ioc.timeout"],
    ]
    assert "2 mistakes" in done.stderr


def test_a_file_that_is_not_there(folder: Path) -> None:
    done = call("check", folder / "no.yaml")
    assert done.exit_code == 1
    assert "there is no file" in done.stdout


def test_schema_is_printed_and_written(tmp_path: Path) -> None:
    printed = json.loads(call("schema").stdout)
    assert call("schema", "--out", tmp_path / "machine.schema.json").exit_code == 0
    assert json.loads((tmp_path / "machine.schema.json").read_text()) == printed
    assert {"model", "stages", "mapping", "variables", "set", "ioc", "calibration"} <= set(printed["properties"])


def test_info_shows_a_machine(folder: Path) -> None:
    done = call("info", folder / "machine.yaml", "--inputs", "--set", "variables.Q1.k1.value_range=[-3, 3]")
    assert done.exit_code == 0, done.output
    assert "line: cheetah" in done.stdout
    assert "-3 to 3" in done.stdout


def test_gradient_of_a_machine(folder: Path) -> None:
    done = call("gradient", folder / "machine.yaml", "--of", "final.sigma_x", "--wrt", "Q1.k1,beta_x")
    assert done.exit_code == 0, done.output
    assert {line.split()[0] for line in done.stdout.splitlines()[4:]} == {"Q1.k1", "beta_x"}


@pytest.mark.parametrize("arguments", [("--lattice", "line.json"), ("machine.yaml", "--lattice", "line.json"), ()])
def test_gradient_wants_one_kind_of_files(folder: Path, arguments: tuple[str, ...]) -> None:
    done = call("gradient", *arguments, "--of", "final.sigma_x")
    assert done.exit_code == 2
    assert "give a machine file, or --lattice and --beam" in done.stderr
