"""What all commands share: tables, warnings and errors as lines, plain where nobody watches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperGroup

from lume_diff.errors import LumeDiffError, OutOfRangeWarning, PhysicsWarning

#: Exit codes: a wrong argument, file or value, as for a wrong option; a check that did not hold.
WRONG_INPUT, CHECK_FAILED = 2, 1
_PLAIN_WIDTH = 1000  # so that nothing is wrapped or cut where a program reads


class CommandGroup(TyperGroup):
    """Commands whose known errors are one line on stderr, and a traceback with ``--debug`` only."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--debug`` wherever it stands."""
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            with warnings_as_lines():
                return super().invoke(ctx)
        except BrokenPipeError:  # typer ends quietly when `| head` has seen enough
            raise
        except (LumeDiffError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            say(f"error: {error}{notes}", "red")
            raise typer.Exit(WRONG_INPUT) from None


def installed_version(package: str) -> str:
    """Return the version of a package that is installed, or ``unknown`` where it runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def say(message: str, colour: str | None = None) -> None:
    """Print one line on stderr."""
    typer.secho(" ".join(message.split()), fg=colour, err=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print warnings as ``warning: ...`` on stderr, those of this package always."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        say(f"warning: {message}", "yellow")

    with warnings.catch_warnings():
        for category in (PhysicsWarning, OutOfRangeWarning):
            warnings.simplefilter("default", category)
        warnings.showwarning = show
        yield


def console(record: bool = False) -> Console:
    """Return where results are printed: coloured on a terminal, without limits on the width elsewhere."""
    printer = Console(highlight=False, markup=False, emoji=False, record=record)
    if not printer.is_terminal:
        printer.width = _PLAIN_WIDTH
    return printer


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        title: above; may have two lines, which are one where it is not a terminal.
        is_number: whether it is flushed right.
        style: of its cells on a terminal.
        wraps: whether it gives way to the others where there is no room.
        dispensable: where that does not help, the column with the largest number goes; 0 never does.
    """

    title: str
    is_number: bool = False
    style: str = ""
    wraps: bool = False
    dispensable: int = 0


def table(printer: Console, columns: Sequence[Column], rows: Iterable[Sequence[str]], title: str = "") -> Table:
    """Return a table that fits: with rules on a terminal and without them elsewhere."""
    kept, cells = list(columns), [list(row) for row in rows]
    while True:
        found = _table(printer, kept, cells, title)
        last = max(range(len(kept)), key=lambda i: kept[i].dispensable)
        needed = Measurement.get(printer, printer.options.update(width=_PLAIN_WIDTH), found).minimum
        if not kept[last].dispensable or needed + 2 <= printer.width:
            return found
        del kept[last]
        cells = [row[:last] + row[last + 1 :] for row in cells]


def _table(printer: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]], title: str) -> Table:
    found = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD if printer.is_terminal else None,
        pad_edge=False,
        padding=(0, 1, 0, 0) if printer.is_terminal else (0, 2, 0, 0),
        header_style="bold",
    )
    for column in columns:
        found.add_column(
            column.title if printer.is_terminal else column.title.replace("\n", " "),
            justify="right" if column.is_number else "left",
            style=column.style,
            no_wrap=not column.wraps,
            overflow="fold",
        )
    for row in rows:
        found.add_row(*row)
    return found
