"""Datasets in HDF5, as arrays that other programs can read; the layout is that of ``files``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.files import HEADER, escaped, pack, restored
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from lume_diff.calibration.data.scalars import Dataset
    from lume_diff.calibration.data.screens import ScreenDataset


def to_hdf5(data: ScreenDataset | Dataset, path: str | Path) -> Path:
    """Write everything to an HDF5 file; `from_hdf5` reads it.

    Settings and measured numbers carry an attribute ``unit``, images ``pixel_size`` [m]; all the rest is in ``header``.

    Args:
        path: of the file; an existing one is replaced.

    Returns:
        The path written.
    """
    import h5py

    header, arrays = pack(data)
    path = Path(path)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = header["format"], header["version"]
        for key, array in arrays.items():
            large = {"compression": "gzip", "compression_opts": 4, "shuffle": True} if array.size > 4096 else {}
            file.create_dataset(key, data=array, **large)
        for group in ("settings", "outputs"):
            for name, unit in header["units"].items():
                if f"{group}/{escaped(name)}" in file:
                    file[f"{group}/{escaped(name)}"].attrs["unit"] = unit
        if "images" in file:
            file["images"].attrs["pixel_size"] = data.pixel_size  # type: ignore[union-attr]
        file[HEADER] = json.dumps(header)
    return path


def _read(cls: type[Any], path: str | Path) -> Any:
    import h5py

    path = Path(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        raise ValidationError(f"{str(path)!r} is no HDF5 file; give one that to_hdf5 wrote")
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        if HEADER not in file:
            raise ValidationError(f"{str(path)!r} was not written by to_hdf5: it has no {HEADER!r}")
        header = json.loads(file[HEADER][()])

        def collect(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and name != HEADER:
                arrays[name] = item[()]

        file.visititems(collect)
    return restored(cls, repr(str(path)), header, arrays)


def screens_from_hdf5(cls: type[ScreenDataset], path: str | Path) -> ScreenDataset:
    """Read data that `to_hdf5` wrote.

    Raises:
        ValidationError: no such file, or damaged.
    """
    found: ScreenDataset = _read(cls, path)
    return found


def scalars_from_hdf5(cls: type[Dataset], path: str | Path) -> Dataset:
    """Read data that `to_hdf5` wrote.

    Raises:
        ValidationError: no such file, or damaged.
    """
    found: Dataset = _read(cls, path)
    return found
