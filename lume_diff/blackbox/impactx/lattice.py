"""An ImpactX lattice as plain data, from elements, functions and files."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.blackbox.codes.missing import require
from lume_diff.blackbox.impactx.engine import read_input_file
from lume_diff.errors import LatticeError

#: One element: the arguments of its constructor, and its class as ``type``.
ElementData = dict[str, Any]
Lattice = Sequence[Any] | str | os.PathLike[str] | Callable[[], Sequence[Any]]

#: Elements that act through Python functions, which no description holds.
PROGRAMMABLE = "Programmable"
#: Elements that change the reference energy.
ACCELERATING = ("ShortRF", "RFCavity", "ChrAcc")
_MATRIX = "matrix"
_PIP = 'pip install "lume_diff[impactx]"'


def impactx() -> Any:
    """Return the package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return require("impactx", "ImpactX", _PIP)


def element_data(element: Any) -> ElementData:
    """Return an element as data that can be pickled; angles are in degrees, as its constructor takes them."""
    (data,) = impactx().elements.KnownElementsList([element]).to_dicts()
    return {name: _plain(value) for name, value in data.items()}


def _plain(value: Any) -> Any:
    is_matrix = hasattr(value, "to_numpy") and hasattr(value, "row_size")
    return {_MATRIX: type(value).__name__, "rows": value.to_numpy()} if is_matrix else value


def element_from_data(data: Mapping[str, Any]) -> Any:
    """Return the element that data describe."""
    lattice = impactx().elements.KnownElementsList()
    lattice.from_dicts([{name: _native(value) for name, value in data.items()}])
    return lattice[0]


def _native(value: Any) -> Any:
    if not isinstance(value, Mapping) or _MATRIX not in value:
        return value
    return getattr(import_module("amrex.space3d"), value[_MATRIX])(np.array(value["rows"]).T)  # ImpactX stores columns


def lattice_data(lattice: Any) -> list[ElementData] | Callable[[], Sequence[Any]]:
    """Return a lattice as data, or the function that makes it, to be called in every process.

    Args:
        lattice: elements, a function that returns them, or the path of a file: MAD-X (``.madx``), PALS
            (``.pals.yaml``, ...) or ImpactX's own input.

    Raises:
        LatticeError: for a file that is not there or cannot be read, for things that are no elements, and for elements
            that no data describe.
    """
    if isinstance(lattice, (str, os.PathLike)):
        return _from_file(Path(lattice))
    if callable(lattice):
        return lattice
    return [_described(element) for element in checked_elements(lattice)]


def _from_file(path: Path) -> list[ElementData]:
    if not path.is_file():
        raise LatticeError(f"lattice file {str(path)!r} does not exist; expected MAD-X, PALS or an ImpactX input file")
    try:
        if path.suffix == ".madx" or ".pals" in path.suffixes:
            elements = impactx().elements.KnownElementsList()
            with contextlib.redirect_stdout(io.StringIO()):  # what the reader prints
                elements.load_file(str(path))
        else:
            impactx()
            elements = read_input_file(path)
        return [_described(element) for element in checked_elements(elements)]
    except LatticeError:
        raise
    except Warning:
        raise
    except Exception as error:
        raise LatticeError(f"ImpactX cannot read {str(path)!r}: {type(error).__name__}: {error}") from error


def checked_elements(elements: Any) -> list[Any]:
    """Return a lattice as a list of elements.

    Raises:
        LatticeError: for an empty one, things that are no elements, and elements that make particles.
    """
    known = impactx().elements
    found = list(elements)
    if not found:
        raise LatticeError("the lattice has no elements")
    for position, element in enumerate(found):
        own = type(element)
        if not any(base.__module__ == known.Drift.__module__ for base in own.__mro__):
            raise LatticeError(
                f"element {position} of the lattice is a {own.__module__}.{own.__qualname__}; expected impactx.elements"
            )
        if own.__name__ == "Source":
            raise LatticeError(
                f"element {position} is a Source, which reads particles from a file: leave it out and give them as beam"
            )
    return found


def _described(element: Any) -> ElementData:
    own = type(element)
    if own.__name__ == PROGRAMMABLE or own.__module__ != impactx().elements.Drift.__module__:
        raise LatticeError(
            f"element {name_of(element)!r} is a {own.__qualname__}, which acts through Python functions and cannot be "
            "copied: give the lattice as a function that returns the elements"
        )
    return element_data(element)


def name_of(element: Any) -> str | None:
    """Return the name of an element, None where it has none."""
    return element.name if element.has_name else None
