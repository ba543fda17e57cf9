"""Measured numbers from tables: pandas, CSV, NPZ."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.files import is_own, open_npz, own_npz
from lume_diff.calibration.data.reading import column_names, grouped_rows, noted
from lume_diff.errors import UnitError, ValidationError, nearest_names
from lume_diff.variables.units import conversion_factor

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
        sigma: standard error of one reading, by variable name: a number, or the name of a column; with nan='mask'
            readings without one are left out.
        options: further arguments of `Dataset`.

    Returns:
        The data, settings in the order in which they first appear; shots that a setting lacks are left out.

    Raises:
        ValidationError: a column that is not there, or what `Dataset` refuses.
    """
    keys, measured = column_names(settings), column_names(outputs)
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
    nan = options.get("nan", "raise")
    if nan not in ("raise", "mask"):
        raise ValidationError(f"nan: received {nan!r}, expected 'raise' or 'mask'")
    if nan == "raise":
        for name, array in zip(columns, numbers, strict=True):
            if not np.isfinite(array[present]).all():
                raise ValidationError(
                    f"column {name!r} has entries that are not finite; give nan='mask' to leave them out"
                )
    found = dict(zip(columns, numbers, strict=True))
    errors = {variable: value for variable, value in (sigma or {}).items() if variable not in of_column}
    readings = {variable: found[column] for column, variable in measured.items()}
    for variable, column in of_column.items():
        known = np.isfinite(found[column])
        errors[variable] = np.where(known, found[column], 1.0)
        if variable in readings:  # a reading whose error is not known is left out with it
            readings[variable] = np.where(known, readings[variable], np.nan)
    return cls(
        {variable: [key[i] for key, _ in groups] for i, variable in enumerate(keys.values())},
        readings,
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
        sigma: see `from_frame`; a column with a unit of its own is converted to that of the readings.
        units: by variable name, in place of those of the first line.
        delimiter: between columns.
        options: further arguments of `Dataset`.

    Returns:
        The data.

    Raises:
        ValidationError: no such file or column, or entries that are no numbers.
        UnitError: units of standard errors that do not fit those of the readings.
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
    frame: dict[str, list[Any]] = {name: [row[i].strip() or "nan" for row in rows[1:]] for i, name in enumerate(names)}
    keys = column_names(settings)
    of_column = {value for value in (sigma or {}).values() if isinstance(value, str)}
    if outputs is None:
        measured = {name: name for name in names if name not in keys and name not in of_column}
    else:
        measured = column_names(outputs)
    of_variable = {**keys, **measured}
    in_file = {of_variable[name]: unit for name, unit in titles if unit and name in of_variable}
    units = {**in_file, **(units or {})}
    unit_of = dict(titles)
    errors: dict[str, Any] = dict(sigma or {})
    for variable, column in errors.items():
        if isinstance(column, str) and unit_of.get(column):
            factor = _factor(column, unit_of[column], variable, units.get(variable))
            errors[variable] = f"{column} [{unit_of[column]}] of {variable}"
            frame[errors[variable]] = [_scaled(entry, factor) for entry in frame[column]]
    return scalars_from_frame(cls, frame, keys, measured, sigma=errors, units=units, **options)


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


def _factor(column: str, unit: str, variable: str, wanted: str | None) -> float:
    """Return what standard errors of a column are multiplied by to be in the unit of the readings."""
    if wanted is None:
        raise UnitError(
            f"standard errors in column {column!r} are in {unit!r}, but {variable!r} has no unit: write it in the "
            f"first line, or give units={{{variable!r}: ...}}"
        )
    try:
        return conversion_factor(unit, wanted)
    except UnitError as problem:
        raise UnitError(f"standard errors of {variable!r} in column {column!r}: {problem}") from None


def _scaled(entry: str, factor: float) -> Any:
    """Return a number of a file times a factor; what is no number is left for the message that names it."""
    try:
        return float(entry) * factor
    except ValueError:
        return entry


def _title(cell: str) -> tuple[str, str]:
    """Return name and unit of a column."""
    name, bracket, unit = cell.strip().partition("[")
    return (name.strip(), unit.rstrip("] \t")) if bracket else (name.strip(), "")
