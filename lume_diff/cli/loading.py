"""A model from what was said on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lume_diff.errors import LumeDiffError, UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.models import CheetahModel, LUMEModel

LATTICE_HELP = "Lattice: LatticeJSON (.json), Bmad (.bmad), Elegant (.lte), NX table (.csv) or Ocelot (.py)."
BEAM_HELP = "Incoming beam: an openPMD (.h5) or Astra file."
LINE = typer.Option(None, "--line", metavar="NAME", help="Which line of the lattice file, where it has several.")
TRUST = typer.Option(False, "--trust", help="Run a lattice file that is a program (Ocelot).")
MACHINE_HELP = "A machine file (.yaml), in place of --lattice and --beam."
CHANGES = typer.Option(
    [], "--set", metavar="PLACE=VALUE", help="Change the machine file, such as stages.injector=surrogate.yaml."
)
MACHINE_TRUST = typer.Option(
    None, "--trust/--no-trust", help="Whether lattices that are programs may be run; else as the file says."
)
MACHINES = (".yaml", ".yml")
_PICTURES = (".png", ".pdf", ".svg")
_TRUE, _FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")


def load(
    lattice: Path,
    beam: Any,
    line: str | None,
    trust: bool,
    outputs: Sequence[str] | None = None,
    losses: str = "hard",
) -> CheetahModel:
    """Build a model from files."""
    from lume_diff.models import CheetahModel

    reading = {"name": line} if line is not None else {}
    return CheetahModel.from_file(lattice, beam, outputs=outputs, losses=losses, trust=trust, **reading)


def load_machine(path: Path, change: Sequence[str] = (), trust: bool | None = None) -> LUMEModel:
    """Build a model from a machine file."""
    from lume_diff.machine import load_model

    return load_model(path, trust=trust, changes=changes(change))


def changes(given: Sequence[str]) -> dict[str, Any]:
    """Return what ``--set`` says.

    Raises:
        ValidationError: for an argument that is not PLACE=VALUE, and a place that is changed twice.
    """
    from lume_diff.machine.changes import parse_change

    found: dict[str, Any] = {}
    for place, value in map(parse_change, given):
        if place in found:
            raise ValidationError(f"--set changes {place!r} twice: {found[place]!r} and {value!r}")
        found[place] = value
    return found


def reference_particle() -> Any:
    """Return a bunch of one particle at 100 MeV, for what does not depend on the beam."""
    from lume_diff.particles import TorchParticleGroup

    return TorchParticleGroup(x=[0.0], y=0.0, z=0.0, px=0.0, py=0.0, pz=1e8, t=0.0, weight=1e-12)


def settings(model: LUMEModel, given: Iterable[str]) -> dict[str, float | bool]:
    """Return the values of ``NAME=VALUE`` arguments; the model checks names and limits when they are set.

    Raises:
        ValidationError: for one that is not of that form, or a value that is not a number.
    """
    from lume_diff.variables import BoolVariable

    found: dict[str, float | bool] = {}
    for text in given:
        name, equals, word = (part.strip() for part in text.partition("="))
        if not equals or not name or not word:
            raise ValidationError(f"--at {text!r}: expected NAME=VALUE, such as --at Q1.k1=2.5")
        if name in found:
            raise ValidationError(f"--at sets {name!r} twice: {found[name]} and {word}")
        if isinstance(model.supported_variables.get(name), BoolVariable):
            if word.lower() not in (*_TRUE, *_FALSE):
                raise ValidationError(f"--at {text!r}: {name!r} is a switch; expected true or false")
            found[name] = word.lower() in _TRUE
            continue
        try:
            found[name] = float(word)
        except ValueError:
            raise ValidationError(f"--at {text!r}: {word!r} is not a number") from None
    return found


def matching(patterns: Sequence[str], names: Sequence[str], option: str) -> list[str]:
    """Return the names that patterns such as ``Q*.k1`` match, in the order of the line, each once.

    Raises:
        UnknownVariableError: for a pattern that matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not found:
            raise UnknownVariableError(f"{option} {pattern!r} matches no input{nearest_names(pattern, names)}")
        chosen.update(found)
    return [name for name in names if name in chosen]


def split_commas(values: Iterable[str]) -> list[str]:
    """Return the parts of repeated options, each of which may hold several separated by commas."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def check_picture(path: Path, option: str) -> None:
    """Raise before the work rather than after it where a picture cannot be written.

    Raises:
        LumeDiffError: if the folder does not exist, the path is one, or the suffix is not that of a picture.
    """
    if path.suffix.lower() not in _PICTURES:
        raise LumeDiffError(f"{option} {str(path)!r}: expected a name that ends with {', '.join(_PICTURES)}")
    if path.is_dir():
        raise LumeDiffError(f"{option} {str(path)!r} is a folder; expected the name of a file in it")
    if not path.parent.is_dir():
        raise LumeDiffError(f"{option} {str(path)!r}: there is no folder {str(path.parent)!r}; make it first")
