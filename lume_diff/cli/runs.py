"""``lume-diff runs``: what an archive of simulator runs holds."""

from __future__ import annotations

import csv
from pathlib import Path

import typer

from lume_diff.cli.terminal import Column, console, table
from lume_diff.errors import ValidationError


def runs(
    archive: Path = typer.Argument(metavar="PATH", help="The archive's file.", show_default=False),
    status: str | None = typer.Option(None, "--status", help="Only runs that are 'done' or 'failed'."),
    last: int = typer.Option(20, "--last", min=0, help="How many of the newest runs to list; 0 for all."),
    export: Path | None = typer.Option(None, "--csv", metavar="FILE", help="Write all of them to a CSV file too."),
) -> None:
    """List the simulator runs of an archive, or export them."""
    from lume_diff.archive import RunArchive

    if not archive.is_file():
        raise ValidationError(f"archive {str(archive)!r} does not exist: name the file that a model was given")
    if status not in (None, "done", "failed"):
        raise ValidationError(f"--status is {status!r}; expected 'done' or 'failed'")
    rows = [row for row in RunArchive(archive).rows() if status in (None, row["status"])]
    names = list(dict.fromkeys(name for row in rows for name in row))
    if export is not None:
        with export.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
    printer = console()
    shown = rows[-last:] if last else rows
    columns = [name for name in names if name != "identity"]
    cells = [[_text(row.get(name)) for name in columns] for row in shown]
    printer.print(table(printer, [Column(name) for name in columns], cells))
    failed = sum(row["status"] == "failed" for row in rows)
    printer.print(f"{len(rows)} runs, {failed} of them failed" + (f", written to {export}" if export else ""))


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
