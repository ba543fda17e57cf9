"""Lattice files of the usual codes, read into a Cheetah segment in double precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lume_diff.models.line.lattice_json import read_json
from lume_diff.models.line.lattice_reading import lattice_error, read_text
from lume_diff.models.line.lattice_statements import read_statements
from lume_diff.models.line.nx_tables import read_nx_table
from lume_diff.models.line.ocelot_lattice import read_ocelot
from lume_diff.models.line.pals_lattice import read_pals
from lume_diff.models.line.pals_parameters import PalsReference

if TYPE_CHECKING:
    import cheetah


_SUFFIXES = {
    ".json": "latticejson",
    ".bmad": "bmad",
    ".lat": "bmad",
    ".lte": "elegant",
    ".ele": "elegant",
    ".csv": "nxtables",
    ".py": "ocelot",
    ".pals.yaml": "pals",
    ".pals.json": "pals",
}


def read_lattice(
    path: Path, name: str | None = None, trust: bool = False, format: str | None = None, beam: Any = None
) -> cheetah.Segment:
    """Read a beamline from a lattice file, every number in float64.

    Cheetah converts the elements; its warnings about what it cannot convert pass, those about names that are no
    Python identifiers do not. Bmad and Elegant names come out in lower case. A LatticeJSON file written by
    Cheetah 0.8.4 has lost ``Screen.is_blocking`` and ``BPM.misalignment``, which are then Cheetah's defaults.

    Args:
        path: LatticeJSON (``.json``), Bmad (``.bmad``, ``.lat``), Elegant (``.lte``, ``.ele``), NX table of ARES
            (``.csv``), Ocelot (``.py``) or PALS (``.pals.yaml``, ``.pals.json``) file.
        name: the line to read. None takes the ``root`` of LatticeJSON, the line that Bmad and PALS ``use``, the only
            line that no other one uses, Ocelot's ``cell``. An NX table has one line, without a name.
        trust: whether the file may be run: an Ocelot lattice is a Python program.
        format: ``latticejson``, ``bmad``, ``elegant``, ``nxtables``, ``ocelot`` or ``pals``; None goes by the suffix.
        beam: the incoming beam, as a bunch or moments; what magnetic fields of a PALS file refer to where the file does
            not say it.

    Returns:
        The line, with the line's name.

    Raises:
        LatticeError: for a file that is missing or does not parse, with its name and, where known, the line number.
        MissingExtraError: for an Ocelot lattice where Ocelot is not installed, PALS where pals-schema is not.

    Gradient:
        None: it reads numbers.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "line.lte"
        >>> _ = path.write_text("Q1: QUAD, L=0.2, K1=1.5\\nCELL: LINE=(Q1)")
        >>> read_lattice(path).elements[0].k1
        tensor(1.5000, dtype=torch.float64)
    """
    path = Path(path)
    text = read_text(path)
    match _format(path, format):
        case "latticejson":
            segment = read_json(path, text, name)
        case "nxtables":
            segment = read_nx_table(path, text, name)
        case "ocelot":
            segment = read_ocelot(path, name, trust)
        case "pals":
            segment = read_pals(path, text, name, PalsReference.of_beam(beam))
        case code:
            segment = read_statements(path, name, code)
    _check_numbers(path, segment)
    return segment


def _format(path: Path, given: str | None) -> str:
    """Return the format of a file, by what was said or by its suffix."""
    suffixes = "".join(path.suffixes[-2:]).lower(), path.suffix.lower()
    found = _SUFFIXES.get(suffixes[0], _SUFFIXES.get(suffixes[1])) if given is None else given.lower()
    if found is not None and found in _SUFFIXES.values():
        return found
    supported = ", ".join(f"{code!r} ({suffix})" for suffix, code in _SUFFIXES.items())
    if given is not None:
        raise lattice_error(path, f"format is {given!r}; expected one of {supported}")
    raise lattice_error(path, f"the suffix {path.suffix!r} says no format; give format=, one of {supported}")


def _check_numbers(path: Path, segment: cheetah.Segment) -> None:
    """Refuse a line without elements, NaN, and infinity anywhere but in an aperture."""
    elements = segment.flattened().elements
    if not elements:
        raise lattice_error(path, f"the line {segment.name!r} has no elements; expected at least one")
    for element in elements:
        for feature in element.defining_tensors:
            value = getattr(element, feature)
            if value.isnan().any() or (value.isinf().any() and type(element).__name__ != "Aperture"):
                raise lattice_error(path, f"{feature} of {element.name!r} is {value.tolist()}; expected finite numbers")
