"""Datasets as plain arrays and a header of plain values: what every file format here is made of.

The layout, version 1, of arrays (in an NPZ file by these names, in an HDF5 file at these paths):

=========================  ===================================================================================
``settings/<variable>``    what was set, ``(n_settings,)``
``images``                 intensities, ``(settings, shots, ny, nx)``; row 0 at the lowest y, column 0 at the lowest x
``outputs/<variable>``     what was measured, ``(settings, shots)``, of a `Dataset`
``sigma/<variable>``       its standard error, of a `Dataset`
``valid/<variable>``       1 for values to be used, of a `Dataset`
``mask``                   1 for pixels to be used; broadcasts to the images' shape
``weights``                how much each image or shot counts, ``(settings, shots)``
``has_beam``               1 where the beam is on the screen, ``(settings, shots)``
``history/<i>/<name>``     what step i took away or worked out
``header``                 JSON text: format, version, screen, units, frame [m], noise, metadata, history, digest
=========================  ===================================================================================

A slash in a variable's name is written as ``%2F``.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.arrays import frozen
from lume_diff.calibration.data.frame import Frame
from lume_diff.calibration.data.history import Step, plain_history
from lume_diff.calibration.data.metadata import metadata_from_json, metadata_to_json
from lume_diff.calibration.data.noise import NoiseModel
from lume_diff.calibration.data.settings import Settings
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from lume_diff.calibration.data.scalars import Dataset
    from lume_diff.calibration.data.screens import ScreenDataset

VERSION = 1
HEADER = "header"

#: What reading a damaged NPZ or NPY file raises.
UNREADABLE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def pack(data: ScreenDataset | Dataset) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a dataset's header and arrays; see the module for the layout."""
    kind = type(data).__name__
    header: dict[str, Any] = {
        "format": f"lume_diff.{kind}",
        "version": VERSION,
        "settings": list(data.settings),
        "units": dict(data.units),
        "metadata": metadata_to_json(data.metadata),
        "history": plain_history(data.history),
        "digest": data.digest,
    }
    arrays = {f"settings/{escaped(name)}": array for name, array in data.settings.items()}
    arrays |= {
        f"history/{i}/{key}": np.asarray(array)
        for i, step in enumerate(data.history)
        for key, array in step.arrays.items()
    }
    arrays["weights"] = data.weights
    if kind == "ScreenDataset":
        header |= _pack_screens(data, arrays)  # type: ignore[arg-type]
    else:
        header["outputs"] = list(data.outputs)
        for group, values in data._plain().items():  # type: ignore[union-attr]
            arrays |= {f"{group}/{escaped(name)}": array for name, array in values.items()}
    return header, arrays


def _pack_screens(data: ScreenDataset, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    frame = data.frame
    arrays["images"] = data.images
    arrays["mask"] = data._valid.astype(np.uint8)
    arrays["has_beam"] = data.has_beam.astype(np.uint8)
    return {
        "screen": data.screen,
        "frame": {"full": frame.full, "pixel": frame.pixel, "window": frame.window, "binning": frame.binning},
        "noise": data.noise.plain(),
    }


def escaped(name: str) -> str:
    """Return a variable's name as part of a path."""
    return name.replace("%", "%25").replace("/", "%2F")


def unpack(where: str, kind: str, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataset from its header and arrays.

    Raises:
        ValidationError: not such a file, of a later version, incomplete or damaged.
    """
    expected = f"lume_diff.{kind}"
    if header.get("format") != expected:
        raise ValidationError(f"{where} holds a {header.get('format')!r}, expected {expected!r}")
    if header.get("version") != VERSION:
        raise ValidationError(f"{where} has version {header.get('version')!r} of its layout, expected {VERSION}")
    try:
        return dict(_fields(kind, header, arrays))
    except (KeyError, TypeError) as problem:
        raise ValidationError(f"{where} is incomplete: {problem}") from None


def _fields(kind: str, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    names = header["settings"]
    values = {name: np.asarray(arrays[f"settings/{escaped(name)}"]) for name in names}
    units = {name: unit for name, unit in header["units"].items() if name in values}
    yield "_settings", Settings(values, units)
    yield "_metadata", metadata_from_json(header["metadata"])
    yield (
        "_history",
        tuple(
            Step(
                step["name"],
                step["parameters"],
                step["note"],
                {key: frozen(np.asarray(arrays[f"history/{i}/{key}"])) for key in step["arrays"]},
            )
            for i, step in enumerate(header["history"])
        ),
    )
    yield "_weights", frozen(np.asarray(arrays["weights"]))
    if kind == "ScreenDataset":
        frame = header["frame"]
        full, pixel, window = (tuple(frame[key]) for key in ("full", "pixel", "window"))
        yield "_screen", header["screen"]
        yield "_frame", Frame(full, pixel, window, frame["binning"])
        yield "_noise", NoiseModel(**header["noise"])
        yield "_images", frozen(np.asarray(arrays["images"]))
        yield "_valid", frozen(np.asarray(arrays["mask"]).astype(bool))
        yield "_beam", frozen(np.asarray(arrays["has_beam"]).astype(bool))
    else:
        yield "_units", {name: unit for name, unit in header["units"].items() if name not in values}
        for group in ("outputs", "sigma", "valid"):
            found = {name: np.asarray(arrays[f"{group}/{escaped(name)}"]) for name in header["outputs"]}
            yield f"_{group}", {n: frozen(a.astype(bool) if group == "valid" else a) for n, a in found.items()}


def restored(cls: type[Any], where: str, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
    """Return the dataset that a file holds, and raise where its content is not what was written."""
    data = object.__new__(cls)
    data.__dict__.update(unpack(where, cls.__name__, header, arrays))
    if data.digest != header.get("digest"):
        raise ValidationError(f"{where} is damaged or was edited: its content does not have the digest written with it")
    return data


def to_npz(data: ScreenDataset | Dataset, path: str | Path) -> Path:
    """Write everything to an NPZ file without pickle; `from_npz` reads it.

    Args:
        path: of the file; ``.npz`` is added where it is missing.

    Returns:
        The path written.
    """
    header, arrays = pack(data)
    path = Path(path)
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    with path.open("wb") as file:
        np.savez_compressed(file, **{HEADER: np.array(json.dumps(header))}, **arrays)  # type: ignore[arg-type]
    return path


def open_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an NPZ file.

    Raises:
        ValidationError: no such file, or not one that can be read without pickle.
    """
    path = Path(path)
    if not path.is_file():
        raise ValidationError(f"{str(path)!r} is no file; give the path of an NPZ file")
    try:
        with path.open("rb") as stream:  # which numpy itself leaves open where it finds no archive
            file = np.load(stream, allow_pickle=False)
            arrays = {name: file[name] for name in file.files} if hasattr(file, "files") else None
    except UNREADABLE as problem:
        raise ValidationError(f"{str(path)!r} cannot be read as an NPZ file without pickle: {problem}") from None
    if arrays is None:
        raise ValidationError(f"{str(path)!r} holds one array, expected an NPZ file with several")
    return arrays


def is_own(arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether the arrays of an NPZ file are those that `to_npz` writes."""
    header = arrays.get(HEADER)
    return header is not None and header.shape == () and header.dtype.kind == "U" and "lume_diff." in str(header)


def own_npz(cls: type[Any], path: str | Path, arrays: Mapping[str, np.ndarray]) -> Any:
    """Return the dataset of an NPZ file that `to_npz` wrote."""
    return restored(cls, repr(str(path)), json.loads(str(arrays[HEADER])), arrays)
