"""Ocelot lattices, which are Python programs."""

from __future__ import annotations

import importlib
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lume_diff.errors import LatticeError, MissingExtraError, nearest_names
from lume_diff.models.line.lattice_reading import converting, failing_as, lattice_error, reason

if TYPE_CHECKING:
    import cheetah


def read_ocelot(path: Path, name: str | None, trust: bool) -> cheetah.Segment:
    import cheetah

    if not trust:
        raise lattice_error(
            path, "an Ocelot lattice is a Python program, which is run: read it with trust=True if you trust it"
        )
    try:
        if not hasattr(importlib.import_module("ocelot"), "Quadrupole"):
            raise ImportError("the 'ocelot' that is installed is not the accelerator code")
    except ImportError as error:
        raise MissingExtraError(
            f"lattice file {str(path)!r} needs Ocelot: pip install ocelot-collab (not 'ocelot', which is another "
            f"package); {error}"
        ) from error

    def described(error: BaseException) -> LatticeError:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines.append(error.lineno)
        return lattice_error(path, f"raises {type(error).__name__}: {error}", lines[-1] if lines else None)

    try:
        with failing_as(described):
            variables = runpy.run_path(str(path))
    except SystemExit as error:
        raise described(error) from error
    wanted = "cell" if name is None else name
    if wanted not in variables:
        known = [key for key, value in variables.items() if isinstance(value, (list, tuple)) and key[0] != "_"]
        raise lattice_error(path, f"defines no {wanted!r}; expected a list of elements{nearest_names(wanted, known)}")
    cell = list(_flat(variables[wanted]))
    for part in cell:
        if not hasattr(part, "id"):
            raise lattice_error(path, f"{wanted!r} has {part!r:.80}; expected elements of Ocelot")
    with (
        converting(),
        failing_as(lambda error: lattice_error(path, f"{wanted!r} cannot be converted: {reason(error)}")),
    ):
        return cheetah.Segment.from_ocelot(cell, name=wanted, sanitize_names=False, dtype=torch.float64)


def _flat(cell: Any) -> Iterator[Any]:
    """Yield the elements of nested lists, or of a MagneticLattice."""
    cell = getattr(cell, "sequence", cell)
    if not isinstance(cell, (list, tuple)):
        yield cell
        return
    for part in cell:
        yield from _flat(part)
