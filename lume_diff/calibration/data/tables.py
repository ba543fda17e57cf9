"""Measured numbers from tables: pandas, CSV, NPZ."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.files import is_own, open_npz, own_npz
from lume_diff.calibration.data.reading import grouped_rows, noted
from lume_diff.errors import ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.calibration.data.scalars import Dataset


def scalars_from_frame(
    cls: type[Dataset],
    frame: Any,
    settings: Mapping[str, str] | Iterable[str],
    outputs: Mapping[str, str] | Iterable[str],
    *,
    sigma: Mapping[str, Any] | None = None,
    **options: Any,
) -> Dataset:
    """Read a pandas table with one row a shot; rows with the same settings are shots of one setting.

    Args:
        frame: a pandas DataFrame, or a mapping of columns.
        settings: names of the columns that are settings; a mapping of columns to variable names where these differ.
        outputs: likewise of the columns that were measured.
        sigma: standard error of one reading, by variable name: a number, or the name of a column.
        options: further arguments of `Dataset`.

    Returns:
        The data, settings in the order in which they first appear; shots that a setting lacks are left out.

    Raises:
        ValidationError: a column that is not there, or what `Dataset` refuses.
    """
    keys, measured = _names(settings), _names(outputs)
    of_column = {variable: column for variable, column in (sigma or {}).items() if isinstance(column, str)}
    columns = [*measured, *of_column.values()]
    groups = grouped_rows(frame, list(keys), columns)
    most = max(len(rows) for _, rows in groups)
    numbers = np.full((len(columns), len(groups), most), np.nan)
    weights = np.zeros((len(groups), most))
    for i, (key, rows) in enumerate(groups):
        weights[i, : len(rows)] = 1.0
        for j, row in enumerate(rows):
            try:
                numbers[:, i, j] = [float(value) for value in row]
            except (TypeError, ValueError):
                raise ValidationError(
                    f"the table has {row} at {dict(zip(keys, key, strict=True))}; expected numbers"
                ) from None
    present = weights > 0.0
    if options.get("nan", "raise") == "raise":
        for name, array in zip(columns, numbers, strict=True):
            if not np.isfinite(array[present]).all():
                raise ValidationError(
                    f"column {name!r} has entries that are not finite; give nan='mask' to leave them out"
                )
    found = dict(zip(columns, numbers, strict=True))
    errors = {variable: value for variable, value in (sigma or {}).items() if variable not in of_column}
    errors |= {variable: np.where(np.isfinite(found[c]), found[c], 1.0) for variable, c in of_column.items()}
    return cls(
        {variable: [key[i] for key, _ in groups] for i, variable in enumerate(keys.values())},
        {variable: found[column] for column, variable in measured.items()},
        **{"weights": weights, "sigma": errors, **options, "nan": "mask"},
    )


def scalars_from_csv(
    cls: type[Dataset],
    path: str | Path,
    settings: Mapping[str, str] | Iterable[str],
    outputs: Mapping[str, str] | Iterable[str] | None = None,
    *,
    sigma: Mapping[str, Any] | None = None,
    units: Mapping[str, str] | None = None,
    delimiter: str = ",",
    **options: Any,
) -> Dataset:
    """Read a CSV file with one row a shot and names in its first line, a unit in brackets: ``final.sigma_x [mm]``.

    Args:
        path: of the file.
        settings: names of the columns that are settings, without units; see `from_frame`.
        outputs: of those that were measured; None for all others that ``sigma`` does not name.
        sigma: see `from_frame`.
        units: by variable name, in place of those of the first line.
        delimiter: between columns.
        options: further arguments of `Dataset`.

    Returns:
        The data.

    Raises:
        ValidationError: no such file or column, or entries that are no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise ValidationError(f"{str(path)!r} is no file; give the path of a CSV file")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file, delimiter=delimiter) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise ValidationError(f"{str(path)!r} has {len(rows)} lines, expected one of names and at least one of numbers")
    titles = [_title(cell) for cell in rows[0]]
    for i, row in enumerate(rows[1:], 2):
        if len(row) != len(titles):
            raise ValidationError(f"{str(path)!r}: row {i} has {len(row)} entries, expected {len(titles)}")
    names = [name for name, _ in titles]
    frame = {name: [row[i].strip() or "nan" for row in rows[1:]] for i, name in enumerate(names)}
    keys = _names(settings)
    of_column = {value for value in (sigma or {}).values() if isinstance(value, str)}
    if outputs is None:
        measured = {name: name for name in names if name not in keys and name not in of_column}
    else:
        measured = _names(outputs)
    of_variable = {**keys, **measured}
    in_file = {of_variable[name]: unit for name, unit in titles if unit and name in of_variable}
    units = {**in_file, **(units or {})}
    return scalars_from_frame(cls, frame, keys, measured, sigma=sigma, units=units, **options)


def scalars_from_npz(
    cls: type[Dataset],
    path: str | Path,
    settings: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    **options: Any,
) -> Dataset:
    """Read an NPZ file: one that `to_npz` wrote, or anybody's arrays.

    Args:
        path: of the file.
        settings: for anybody's arrays, variable names by key of the file, such as ``{"k1": "Q1.k1"}``.
        outputs: likewise, such as ``{"sx": "final.sigma_x"}``.
        options: further arguments of `Dataset`. What else the file has becomes metadata.

    Returns:
        The data.

    Raises:
        ValidationError: no such file or key.
    """
    arrays = open_npz(path)
    if is_own(arrays):
        if settings or outputs or options:
            raise ValidationError(f"{str(path)!r} was written by to_npz and holds everything; give its path alone")
        found: Dataset = own_npz(cls, path, arrays)
        return found
    if not settings or not outputs:
        raise ValidationError(
            f"{str(path)!r}: say which arrays are what: settings={{'k1': 'Q1.k1'}}, outputs={{'sx': 'final.sigma_x'}}; "
            f"keys: {', '.join(map(repr, arrays))}"
        )
    for name in (*settings, *outputs):
        if name not in arrays:
            raise ValidationError(f"{str(path)!r} has no array {name!r}{nearest_names(name, arrays)}")
    metadata = dict(noted(k, a) for k, a in arrays.items() if k not in settings and k not in outputs and a.size <= 64)
    options["metadata"] = {**metadata, **(options.get("metadata") or {})}
    return cls(
        {variable: arrays[key] for key, variable in settings.items()},
        {variable: arrays[key] for key, variable in outputs.items()},
        **options,
    )


def _names(given: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Return variable names by column."""
    if isinstance(given, str):
        raise ValidationError(f"received the string {given!r}, expected a list of columns: write [{given!r}]")
    return dict(given) if isinstance(given, Mapping) else {name: name for name in given}


def _title(cell: str) -> tuple[str, str]:
    """Return name and unit of a column."""
    name, bracket, unit = cell.strip().partition("[")
    return (name.strip(), unit.rstrip("] \t")) if bracket else (name.strip(), "")
