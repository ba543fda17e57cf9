"""From templates and a table of elements to entries, one a variable."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydantic

from lume_diff.errors import ValidationError, nearest_names, shortened
from lume_diff.models.facility.entries import Entry, Part
from lume_diff.models.facility.mapping import Cell, ElementTable, FacilityMapping
from lume_diff.models.facility.mistakes import Location, MappingError, Mistakes

_PLACEHOLDER = re.compile(r"\{(\w+)(\?)?\}")

Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Placed:
    """An entry and where it stands in the mapping.

    Attributes:
        entry: the entry.
        where: its place in the mapping.
        element: of the table, that it was made for; empty where it stands for itself.
    """

    entry: Any
    where: Location
    element: str = ""


@dataclass(frozen=True)
class Expansion:
    """All variables of a mapping.

    Attributes:
        entries: by control-system name.
        order: elements in the order of the beam, None where the table does not tell.
    """

    entries: dict[str, Placed]
    order: tuple[str, ...] | None


def expanded(mapping: FacilityMapping, folder: Path | str | None = None, mistakes: Mistakes | None = None) -> Expansion:
    """Apply the templates of a mapping to its elements.

    Args:
        mapping: with or without templates.
        folder: that a table's file is relative to; None for the current one.
        mistakes: where to note what is wrong; None to raise.

    Raises:
        MappingError: with everything that is wrong: classes without a template, names that are there twice, missing
            columns, entries that are not valid.
    """
    found = Mistakes() if mistakes is None else mistakes
    entries = {name: Placed(entry, ("variables", name)) for name, entry in mapping.variables.items()}
    rows = _rows(mapping.elements, folder, found) if mapping.elements is not None else []
    if mapping.templates and mapping.elements is None:
        found.add(("templates",), "there are templates but no table of elements: give elements")
    for row in rows:
        _apply(mapping, row, entries, found)
    if mistakes is None:
        found.refuse()
    return Expansion(entries, _order(mapping, rows))


def _apply(mapping: FacilityMapping, row: Row, entries: dict[str, Placed], mistakes: Mistakes) -> None:
    element, name, kind = (str(row[key]) for key in ("element", "name", "class"))
    table = mapping.elements
    if kind not in mapping.templates:
        if table is not None and kind not in table.ignore:
            near = nearest_names(kind, mapping.templates)
            what = f"there is no template for the class {kind!r}{near}; add one, or name the class in ignore"
            mistakes.add(("elements",), what, element)
        return
    for suffix, template in mapping.templates[kind].items():
        where: Location = ("templates", kind, suffix)
        missing: list[str] = []
        data = _filled(template.root, row, missing)
        variable = f"{name}{mapping.separator}{suffix}" if suffix else name
        if missing:
            for column in missing:
                mistakes.add(where, f"the table has nothing in column {column!r} for these elements", element)
        elif variable in entries:
            other = entries[variable]
            first = ".".join(map(str, other.where)) + (f" of {other.element}" if other.element else "")
            mistakes.add(where, f"{variable!r} is there already, from {first}", element)
        else:
            entry = _entry(data, where, element, mistakes)
            if entry is not None:
                entries[variable] = Placed(entry, where, element)


@lru_cache(maxsize=1)
def _adapter() -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(Entry)


def _entry(data: Any, where: Location, element: str, mistakes: Mistakes) -> Part | None:
    try:
        entry: Part = _adapter().validate_python(data)
        return entry
    except pydantic.ValidationError as error:
        for place, what in mistakes_of(error):
            mistakes.add((*where, *place[1:]), what, element)
        return None


def mistakes_of(error: pydantic.ValidationError) -> list[tuple[Location, str]]:
    """Return pydantic's findings as places and words."""
    found = []
    for detail in error.errors(include_url=False):
        cause = detail.get("ctx", {}).get("error")
        words = str(cause) if cause is not None else detail["msg"][:1].lower() + detail["msg"][1:]
        given = "" if detail["type"] in ("missing", "value_error") else f", got {shortened(repr(detail['input']))}"
        found.append((tuple(detail["loc"]), words + given))
    return found


def as_mapping(data: Any) -> FacilityMapping:
    """Return a mapping from plain data.

    Raises:
        MappingError: with everything that is wrong.
    """
    if isinstance(data, FacilityMapping):
        return data
    try:
        return FacilityMapping.model_validate(data)
    except pydantic.ValidationError as error:
        mistakes = Mistakes()
        for where, what in mistakes_of(error):
            mistakes.add(where, what)
        mistakes.refuse()
        raise


# -- placeholders ------------------------------------------------------------------------------------------------------


def _filled(data: Any, row: Row, missing: list[str]) -> Any:
    """Return data with its placeholders replaced; keys whose value is an empty optional cell are left out."""
    if isinstance(data, Mapping):
        pairs = ((_filled(key, row, missing), _filled(value, row, missing), value) for key, value in data.items())
        return {key: value for key, value, given in pairs if value is not None or given is None}
    if isinstance(data, list | tuple):
        return [_filled(item, row, missing) for item in data]
    if not isinstance(data, str):
        return data
    whole = _PLACEHOLDER.fullmatch(data)
    if whole is not None:
        return _cell(whole, row, missing)
    return _PLACEHOLDER.sub(lambda match: _text(_cell(match, row, missing)), data)


def _cell(match: re.Match[str], row: Row, missing: list[str]) -> Cell:
    column, is_optional = match[1], match[2] is not None
    value = row.get(column)
    if value is None and not is_optional:
        missing.append(column)
    return value


def _text(cell: Cell) -> str:
    return "" if cell is None else str(cell)


# -- tables ------------------------------------------------------------------------------------------------------------


def _rows(table: ElementTable, folder: Path | str | None, mistakes: Mistakes) -> list[Row]:
    """Return the rows that are to be used, with the columns under the names that placeholders have."""
    columns = table.columns
    rows: Sequence[Mapping[str, Any]] = table.rows
    if table.file is not None:
        if rows:
            mistakes.add(("elements",), "give rows or file, not both")
        try:
            rows = _read(Path(folder or ".") / table.file)
        except (OSError, ValidationError, UnicodeDecodeError, csv.Error) as error:
            mistakes.add(("elements", "file"), f"{table.file!r} cannot be read: {error}")
            return []
    column_of = {"element": columns.element, "name": columns.name, "class": columns.template, **columns.rename}
    needed = {*column_of.values(), *table.select}
    absent = sorted(needed - {column for row in rows for column in row}) if rows else []
    for column in absent:
        known = list(dict.fromkeys(column for row in rows for column in row))
        mistakes.add(("elements", "columns"), f"the table has no column {column!r}{nearest_names(column, known)}")
    if absent:
        return []
    found: list[Row] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        if any(row.get(column) not in wanted for column, wanted in table.select.items()):
            continue
        given = {**row, **{name: row.get(column) for name, column in column_of.items()}}
        if given["class"] is not None and str(given["class"]) in table.ignore:
            continue
        empty = [key for key in ("element", "name", "class") if given[key] in (None, "")]
        if empty:
            label = f"row {number}" if "element" in empty else str(given["element"])
            what = f"nothing stands in column {column_of[empty[0]]!r} of these elements"
            mistakes.add(("elements",), what, label)
            continue
        for key in ("element", "name"):
            text = f"{key} {given[key]!r}"
            if text in seen:
                what = f"these stand in the table twice, as {key}"
                mistakes.add(("elements",), what, str(given[key]))
            seen[text] = text
        found.append(given)
    return found


def _read(path: Path) -> Sequence[Mapping[str, Any]]:
    """Read a CSV or YAML table.

    Raises:
        ValidationError: if it is no table.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        from lume_diff.variables.text import load_yaml

        rows = load_yaml(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValidationError("expected a list of mappings, one for each element")
        return rows
    if path.suffix.lower() != ".csv":
        raise ValidationError("expected a file that ends in .csv, .yaml or .yml")
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [{key: _number(text) for key, text in row.items() if key is not None} for row in csv.DictReader(file)]


def _number(text: str | None) -> Cell:
    """Return a cell of a CSV file as a number where it is one, None where it is empty.

    Digits behind a zero, such as ``0420``, are part of a name.
    """
    text = (text or "").strip()
    if not text:
        return None
    if "_" in text or re.match(r"[+-]?0\d", text):
        return text
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if math.isfinite(number) else text
    return text


def _order(mapping: FacilityMapping, rows: Sequence[Row]) -> tuple[str, ...] | None:
    """Return the elements in the order of the beam, as far as the mapping tells it."""
    if mapping.order is not None:
        return mapping.order
    places = [row.get("s") for row in rows]
    if not rows or not all(isinstance(s, int | float) and not isinstance(s, bool) for s in places):
        return None
    order = sorted(range(len(rows)), key=lambda index: float(places[index]))  # type: ignore[arg-type]
    return tuple(str(rows[index]["element"]) for index in order)


__all__ = ["Expansion", "MappingError", "Placed", "as_mapping", "expanded", "mistakes_of"]
