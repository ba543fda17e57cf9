"""The ``lume-diff`` command.

Every command is a module of this package with a function that typer reads; torch and the models load inside it, so
that ``--help`` and a mistyped option cost nothing.
"""

from __future__ import annotations

import typer

from lume_diff.cli import (
    calibrate,
    check,
    demo,
    generate,
    gradient,
    info,
    optimize,
    pv,
    reconstruct,
    runs,
    serve,
    twin,
    view,
)
from lume_diff.cli.terminal import CommandGroup, installed_version

app = typer.Typer(
    name="lume-diff",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lume-diff {installed_version('lume-diff')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; may stand anywhere."),
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    """Differentiable virtual accelerators: look at a lattice, ask what moves an output, see it all work."""


app.command("info")(info.info)
app.command("gradient")(gradient.gradient)
app.command("check")(check.check)
app.command("schema")(check.schema)
app.command("calibrate")(calibrate.calibrate)
app.command("reconstruct")(reconstruct.reconstruct)
app.command("optimize")(optimize.optimize)
app.command("demo")(demo.demo)
app.command("runs")(runs.runs)
app.command("serve")(serve.serve)
app.command("screen")(generate.screen)
app.command("ophyd")(generate.ophyd)
app.add_typer(pv.app, name="pv")
app.command("twin")(twin.twin)
app.command("view")(view.view)


def main() -> None:
    """Run the ``lume-diff`` command."""
    app()
