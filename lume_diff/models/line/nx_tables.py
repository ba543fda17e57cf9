"""NX tables of ARES."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lume_diff.models.line.lattice_reading import converting, failing_as, lattice_error, reason

if TYPE_CHECKING:
    import cheetah


_SHORTEST_DRIFT = 1e-12  # [m], below it a distance between elements is rounding


def read_nx_table(path: Path, text: str, name: str | None) -> cheetah.Segment:
    import cheetah

    if name is not None:
        raise lattice_error(path, f"name is {name!r}, but an NX table has one line, without a name: leave it away")
    reader = csv.reader(text.splitlines(keepends=True), strict=True)
    with failing_as(lambda error: lattice_error(path, f"is not CSV: {error}", reader.line_num)):
        rows = [(reader.line_num, row) for row in reader if row]
    (first, header), *rows = rows
    for column in ("NAME", "CLASS", "Z_beam"):
        if column not in header:
            raise lattice_error(
                path, f"has no column {column!r}; expected NAME, CLASS and Z_beam in the first row", first
            )
    with converting():
        placed = [found for line, row in rows if (found := _nx_element(path, line, row, header)) is not None]
        parts: list[Any] = []
        end = 0.0
        for line, centre, element in sorted(placed, key=lambda entry: entry[1]):
            gap = centre - element.length.item() / 2 - end
            if parts and gap < -_SHORTEST_DRIFT:
                raise lattice_error(path, f"{element.name!r} overlaps {parts[-1].name!r} by {-gap:.6g} m", line)
            if parts and gap > _SHORTEST_DRIFT:
                before = parts[-1].name
                parts.append(cheetah.Drift(torch.tensor(gap), name=f"DRIFT_{before}_{element.name}"))
            parts.append(element)
            end = centre + element.length.item() / 2
        return cheetah.Segment(parts, name=path.stem, sanitize_name=False).flattened()


def _nx_element(path: Path, line: int, row: list[str], header: list[str]) -> tuple[int, float, Any] | None:
    """Return the line, the centre [m] and the element of a row; None for what is of no concern to the beam."""
    from cheetah.converters.nxtables import translate_element

    if len(row) != len(header):
        raise lattice_error(path, f"has {len(row)} columns; expected {len(header)} as in the first row", line)
    values = dict(zip(header, row, strict=True))
    try:
        centre = float(values["Z_beam"])
    except ValueError:
        centre = math.nan
    if not math.isfinite(centre):
        raise lattice_error(
            path, f"Z_beam of {values['NAME']!r} is {values['Z_beam']!r}; expected a position in m", line
        )
    what = f"{values['NAME']!r} of class {values['CLASS']!r}"
    with failing_as(lambda error: lattice_error(path, f"{what} cannot be converted: {reason(error)}", line)):
        found = translate_element(row, header)
    return None if found is None else (line, centre, found["element"])
