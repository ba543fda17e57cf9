"""The command that lists an archive of runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lume_diff.archive import RunArchive
from lume_diff.cli import app


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "runs.db"
    store = RunArchive(path)
    store.put("code 1", {"k1": 1.5}, {"tune_x": 0.25}, seconds=0.1)
    store.put_failure("code 1", {"k1": 9.0}, "unstable")
    return path


def test_runs_are_listed(archive: Path) -> None:
    result = CliRunner().invoke(app, ["runs", str(archive)])
    assert result.exit_code == 0
    assert "0.25" in result.output
    assert "unstable" in result.output
    assert "2 runs, 1 of them failed" in result.output


def test_runs_are_filtered_and_exported(archive: Path, tmp_path: Path) -> None:
    target = tmp_path / "runs.csv"
    result = CliRunner().invoke(app, ["runs", str(archive), "--status", "done", "--csv", str(target)])
    assert result.exit_code == 0
    with target.open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["k1"]), float(row["tune_x"]), row["status"]) == (1.5, 0.25, "done")


@pytest.mark.parametrize("options", [["nothing.db"], ["--status", "odd"]], ids=["missing", "status"])
def test_mistakes_are_one_line(archive: Path, options: list[str]) -> None:
    arguments = options if options[0] == "nothing.db" else [str(archive), *options]
    result = CliRunner().invoke(app, ["runs", *arguments])
    assert result.exit_code == 2
    assert "error:" in result.output + result.stderr
