"""Datasets from files and tables that somebody else made: NPZ, image files, pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.arrays import checked_weights
from lume_diff.calibration.data.checks import checked_mask
from lume_diff.calibration.data.files import is_own, open_npz, own_npz
from lume_diff.calibration.data.pictures import is_picture, read_picture
from lume_diff.errors import ShapeError, UnitError, ValidationError, nearest_names
from lume_diff.variables.units import parse_unit

if TYPE_CHECKING:
    from lume_diff.calibration.data.screens import ScreenDataset

_PIXEL_KEYS = ("pixel_size_m", "pixel_size")


def screens_from_npz(
    cls: type[ScreenDataset],
    path: str | Path,
    settings: Mapping[str, str] | None = None,
    screen: str | None = None,
    *,
    images: str = "images",
    pixel_size: Any = None,
    **options: Any,
) -> ScreenDataset:
    """Read an NPZ file: one that `to_npz` wrote, or anybody's arrays.

    Args:
        path: of the file.
        settings: for anybody's arrays, variable names by key of the file, such as ``{"k1": "Q1.k1"}``.
        screen: for anybody's arrays, name of the variable that predicts the images.
        images: key of the images.
        pixel_size: in place of the file's ``pixel_size_m`` or ``pixel_size`` [m].
        options: further arguments of `ScreenDataset`. Numbers and strings of the file that are nothing else become
            metadata; ``energy_eV`` becomes ``energy`` with the unit eV.

    Returns:
        The data.

    Raises:
        ValidationError: no such file or key.
    """
    arrays = open_npz(path)
    if is_own(arrays):
        if settings is not None or screen is not None or pixel_size is not None or options:
            raise ValidationError(f"{str(path)!r} was written by to_npz and holds everything; give its path alone")
        found: ScreenDataset = own_npz(cls, path, arrays)
        return found
    if not settings or screen is None:
        raise ValidationError(
            f"{str(path)!r}: say which arrays are what: settings={{'k1': 'Q1.k1'}}, screen='SCR1.image'; "
            f"keys: {', '.join(map(repr, arrays))}"
        )
    used = [images, *settings]
    if pixel_size is None:
        key = next((key for key in _PIXEL_KEYS if key in arrays), None)
        if key is None:
            raise ValidationError(f"{str(path)!r} has no {' or '.join(_PIXEL_KEYS)}; give pixel_size")
        pixel_size = arrays[key]
    for name in used:
        if name not in arrays:
            raise ValidationError(f"{str(path)!r} has no array {name!r}{nearest_names(name, arrays)}")
    metadata = dict(noted(key, a) for key, a in arrays.items() if key not in (*used, *_PIXEL_KEYS) and a.size <= 64)
    options["metadata"] = {**metadata, **(options.get("metadata") or {})}
    return cls(
        {variable: arrays[key] for key, variable in settings.items()}, arrays[images], screen, pixel_size, **options
    )


def noted(key: str, array: np.ndarray) -> tuple[str, Any]:
    """Return a name and a value of metadata, with the unit where the key ends with one."""
    value = array.tolist()
    name, underscore, unit = key.rpartition("_")
    if underscore and name and array.dtype.kind in "fiu":
        try:
            parse_unit(unit)
        except UnitError:
            return key, value
        return name, (value, unit)
    return key, value


def screens_from_images(
    cls: type[ScreenDataset],
    settings: Mapping[str, Any],
    paths: Sequence[Any],
    screen: str,
    pixel_size: Any,
    *,
    orientation: str | None = None,
    **options: Any,
) -> ScreenDataset:
    """Read image files: PNG, TIFF and whatever Pillow reads, and NPY; 16 bits stay 16 bits.

    Args:
        settings: what was set, by variable name.
        paths: for each setting, one file or a list of files, its shots; the pages of a TIFF are shots too. Settings may
            have different numbers of shots: what is missing has weight 0.
        screen: name of the variable that predicts the images.
        pixel_size: [m], or with a unit.
        orientation: ``"upper"`` where row 0 is on top, as in pictures, ``"lower"`` where it is at the lowest y; None
            takes ``"upper"`` for pictures and ``"lower"`` for NPY.
        options: further arguments of `ScreenDataset`.

    Returns:
        The data.

    Raises:
        ValidationError: a file that is not there or no image.
        ShapeError: images of different shapes.
    """
    shots, kinds = [], set()
    for given in paths:
        files = [given] if isinstance(given, str | Path) else list(given)
        kinds |= {is_picture(path) for path in files}
        shots.append([image for path in files for image in _pages(read_picture(path))])
    orientation = _orientation(kinds) if orientation is None else orientation
    return _ragged(cls, settings, shots, screen, pixel_size, orientation=orientation, **options)


def _orientation(kinds: set[bool]) -> str:
    """Return which row comes first in images of which it is known whether they are pictures."""
    if len(kinds) > 1:
        raise ValidationError("images: pictures and NPY files together; give orientation='upper' or 'lower'")
    return "upper" if kinds == {True} else "lower"


def _pages(array: np.ndarray) -> list[np.ndarray]:
    return list(array) if array.ndim == 3 else [array]


def _ragged(
    cls: type[ScreenDataset],
    settings: Mapping[str, Any],
    shots: Sequence[Sequence[np.ndarray]],
    screen: str,
    pixel_size: Any,
    **options: Any,
) -> ScreenDataset:
    """Return the data of settings with different numbers of shots: what is missing is not valid and has weight 0."""
    empty = [i for i, images in enumerate(shots) if not len(images)]
    if empty or not shots:
        raise ValidationError(
            f"{screen}: settings {empty} have no image" if shots else f"{screen}: no images were given"
        )
    shapes = sorted({np.shape(image) for images in shots for image in images})
    if len(shapes) > 1 or len(shapes[0]) != 2:
        raise ShapeError(f"{screen}: images have shapes {', '.join(map(str, shapes))}, expected one shape (ny, nx)")
    most = max(map(len, shots))
    numbers = np.stack([np.stack([*images, *[np.zeros_like(images[0])] * (most - len(images))]) for images in shots])
    if all(len(images) == most for images in shots):
        return cls(settings, numbers, screen, pixel_size, **options)
    taken = np.array([[j < len(images) for j in range(most)] for images in shots])
    mask = checked_mask(screen, options.get("mask"), taken[..., None, None], numbers.shape)
    weights = taken * checked_weights(f"{screen}: weights", options.get("weights"), (len(shots), most))
    return cls(settings, numbers, screen, pixel_size, **{**options, "mask": mask, "weights": weights})


def screens_from_frame(
    cls: type[ScreenDataset],
    frame: Any,
    settings: Mapping[str, str] | Iterable[str],
    screen: str,
    pixel_size: Any,
    *,
    images: str = "image",
    orientation: str | None = None,
    folder: str | Path = ".",
    **options: Any,
) -> ScreenDataset:
    """Read a pandas table with one row a shot; rows with the same settings are shots of one setting.

    Args:
        frame: a pandas DataFrame, or a mapping of columns.
        settings: names of the columns that are settings; a mapping of columns to variable names where these differ.
        screen: name of the variable that predicts the images.
        pixel_size: [m], or with a unit.
        images: column of the images: arrays ``(ny, nx)``, or paths of files.
        orientation: see `from_images`; arrays are ``"lower"`` unless said otherwise.
        folder: what relative paths start from.
        options: further arguments of `ScreenDataset`.

    Returns:
        The data, settings in the order in which they first appear. Readbacks that differ in their last digits are
        different settings: round them first.

    Raises:
        ValidationError: a column that is not there.
        ShapeError: images of different shapes.
    """
    names = column_names(settings)
    groups = grouped_rows(frame, list(names), [images])
    shots: list[list[np.ndarray]] = []
    kinds = set()
    for _, rows in groups:
        entries = [row[0] for row in rows]
        kinds |= {isinstance(entry, str | Path) and is_picture(entry) for entry in entries}
        found = [
            read_picture(Path(folder) / entry) if isinstance(entry, str | Path) else np.asarray(entry)
            for entry in entries
        ]
        shots.append([image for array in found for image in _pages(array)])
    orientation = _orientation(kinds) if orientation is None else orientation
    values = {variable: [key[i] for key, _ in groups] for i, variable in enumerate(names.values())}
    return _ragged(cls, values, shots, screen, pixel_size, orientation=orientation, **options)


def column_names(given: Mapping[str, str] | Iterable[str]) -> dict[str, str]:
    """Return variable names by column.

    Raises:
        ValidationError: a single string, which would be taken for its letters.
    """
    if isinstance(given, str):
        raise ValidationError(f"received the string {given!r}, expected a list of columns: write [{given!r}]")
    return dict(given) if isinstance(given, Mapping) else {name: name for name in given}


def grouped_rows(
    frame: Any, keys: Sequence[str], columns: Sequence[str]
) -> list[tuple[tuple[float, ...], list[list[Any]]]]:
    """Return the rows of a table by setting, in the order in which settings first appear.

    Args:
        frame: anything with columns by name.
        keys: columns of settings.
        columns: of what was measured.

    Returns:
        For each setting its values and, for each of its rows, the entries of ``columns``.

    Raises:
        ValidationError: a column that is not there, or no rows.
    """
    known = [str(name) for name in (frame.columns if hasattr(frame, "columns") else frame)]
    for name in (*keys, *columns):
        if name not in known:
            raise ValidationError(f"the table has no column {name!r}{nearest_names(name, known)}")
    if not keys:
        raise ValidationError("settings: name at least one column of the table")
    groups: dict[tuple[float, ...], list[list[Any]]] = {}
    for row in zip(*(list(frame[name]) for name in (*keys, *columns)), strict=True):
        try:
            key = tuple(float(value) for value in row[: len(keys)])
        except (TypeError, ValueError):
            raise ValidationError(f"settings {row[: len(keys)]} of a row of the table: expected numbers") from None
        groups.setdefault(key, []).append(list(row[len(keys) :]))
    if not groups:
        raise ValidationError("the table has no rows")
    return list(groups.items())
