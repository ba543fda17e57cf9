"""What the tests of the commands that fit share."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner, Result

from lume_diff.cli import app


def invoke(command: str, *arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [command, *map(str, arguments)], catch_exceptions=False)


def assert_fault_is_named(command: str, config: Path, old: str, new: str, message: str) -> None:
    """Check what a command says of its configuration with one change, and that it leaves nothing behind."""
    text, result = config.read_text(encoding="utf-8"), config.parent / "result"
    assert old in text
    config.write_text(text.replace(old, new, 1), encoding="utf-8")
    done = invoke(command, config, "--out", result)
    assert done.exit_code == 2
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not result.exists()


def assert_no_configuration_is_refused(command: str, folder: Path) -> None:
    """Check what a command says where it is told of no file, or of one that is not there."""
    assert "--example" in invoke(command).stderr
    assert "does not exist" in invoke(command, folder / "fit.yaml").stderr
