"""What the commands that fit share: their arguments, and the way to a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from lume_diff.calibration.fit.yaml_files import Section

Kind = TypeVar("Kind", bound="Section")

ConfigFile = Annotated[
    Path | None, typer.Argument(metavar="CONFIG.yaml", help="What to fit to what.", show_default=False)
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where results go.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", metavar="FILE", help="Keep the state here; a fit that was stopped goes on from it."),
]


def example_option(example: str) -> Any:
    """Return the option that prints a configuration and ends the command."""

    def show(asked: bool) -> None:
        if asked:
            typer.echo(example, nl=False)
            raise typer.Exit

    return typer.Option(False, "--example", is_eager=True, callback=show, help="Print a configuration to start from.")


def configuration(file: Path | None, kind: type[Kind], command: str) -> tuple[Kind, Path]:
    """Return a configuration and its file, from whose folder relative paths start.

    Raises:
        ValidationError: for no file, or one with faults.
    """
    from lume_diff.calibration.fit.yaml_files import read_config

    if file is None:
        raise ValidationError(f"name a configuration; 'lume-diff {command} --example' prints one to start from")
    return read_config(file, kind), file
