"""``lume-diff screen`` and ``lume-diff ophyd``: files for other programs, made from a machine file."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lume_diff.cli.loading import MACHINE_TRUST, load_machine
from lume_diff.errors import UnknownVariableError

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel

MACHINE = typer.Argument(metavar="MACHINE.yaml", help="Whose variables.", show_default=False)
PREFIX = typer.Option(None, "--prefix", help="That it is served with; else as the file says.")
ONLY = typer.Option([], "--only", metavar="PATTERN", help="Variables to show, such as 'QUAD:*'; all if not given.")


def screen(
    machine: Path = MACHINE,
    out: Path = typer.Option(Path("machine.bob"), "--out", "-o", metavar="FILE.bob", help="Where it goes."),
    prefix: str | None = PREFIX,
    protocol: str = typer.Option("pva", "--protocol", help="'pva' or 'ca'."),
    only: list[str] = ONLY,
    trust: bool | None = MACHINE_TRUST,
) -> None:
    """Write a Phoebus screen of a machine."""
    from lume_diff.ioc.generate.phoebus import phoebus_screen

    model = load_machine(machine, trust=trust)
    _write(out, phoebus_screen(model, _prefix(model, prefix), protocol, _chosen(model, only)))


def ophyd(
    machine: Path = MACHINE,
    out: Path = typer.Option(Path("machine.py"), "--out", "-o", metavar="FILE.py", help="Where it goes."),
    prefix: str | None = PREFIX,
    title: str = typer.Option("Machine", "--class", help="Name of the class."),
    only: list[str] = ONLY,
    trust: bool | None = MACHINE_TRUST,
) -> None:
    """Write an ophyd-async device of a machine."""
    from lume_diff.ioc.generate.ophyd import ophyd_device

    model = load_machine(machine, trust=trust)
    _write(out, ophyd_device(model, _prefix(model, prefix), title, _chosen(model, only)))


def _write(out: Path, text: str) -> None:
    out.write_text(text, encoding="utf-8")
    typer.echo(f"written: {out}")


def _prefix(model: LUMEModel, given: str | None) -> str:
    section = getattr(model.origin, "ioc", None)
    if given is not None or section is None:
        return given or ""
    return str(section.prefix)


def _chosen(model: LUMEModel, patterns: list[str]) -> list[str] | None:
    if not patterns:
        return None
    found = [name for name in model.supported_variables if any(fnmatchcase(name, one) for one in patterns)]
    if not found:
        raise UnknownVariableError(f"--only {' '.join(patterns)} matches no variable")
    return found
