"""``lume-diff check``: every mistake in a machine file, with its line; ``lume-diff schema``: for editors."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from lume_diff.cli.loading import CHANGES, MACHINE_TRUST, changes
from lume_diff.cli.terminal import CHECK_FAILED, console, say


def check(
    machine: Path = typer.Argument(metavar="MACHINE.yaml", help="The machine file.", show_default=False),
    change: list[str] = CHANGES,
    trust: bool | None = MACHINE_TRUST,
) -> None:
    """Report every mistake in a machine file; nothing is run."""
    from lume_diff.machine.checking import Inspection
    from lume_diff.machine.problems import lines_of

    found = Inspection(machine, trust=trust, changes=changes(change))
    if found.problems:
        typer.echo("\n".join(lines_of(found.problems)))
        count = len(found.problems)
        say(f"failed: {machine} has {count} mistake{'s' if count > 1 else ''}", "red")
        raise typer.Exit(CHECK_FAILED)
    printer = console()
    if found.variables is None:
        printer.print(f"{machine}: no mistakes; names of variables could not be checked without running its codes")
    else:
        outputs = sum(variable.read_only for variable in found.variables.values())
        inputs = len(found.variables) - outputs
        printer.print(f"{machine}: no mistakes; {inputs} inputs, {outputs} outputs")


def schema(
    out: Path | None = typer.Option(None, "--out", metavar="FILE.json", help="Write it there instead of printing it."),
) -> None:
    """Print the JSON Schema of machine files, with which editors complete and check them."""
    from lume_diff.machine.json_schema import schema as of_machines

    text = json.dumps(of_machines(), indent=2)
    if out is None:
        typer.echo(text)
    else:
        out.write_text(text + "\n", encoding="utf-8")
