"""Pictures of a camera as arrays: PNG, TIFF and whatever Pillow reads, and NPY; 16 bits stay 16 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.calibration.data.files import UNREADABLE
from lume_diff.errors import ShapeError, ValidationError

_KEPT = ("1", "L", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def read_picture(path: str | Path) -> np.ndarray:
    """Return the images of a file as they are stored, row 0 first.

    Args:
        path: ``.npy``, or a picture in grey of 8, 16 or 32 bits; a TIFF may have several pages.

    Returns:
        ``(ny, nx)``, or ``(pages, ny, nx)`` for several pages.

    Raises:
        ValidationError: no such file, not a picture, or in colour.
        ShapeError: an array that is no image.
    """
    path = Path(path)
    if not path.is_file():
        raise ValidationError(f"{str(path)!r} is no file; give the path of an image")
    if path.suffix.lower() == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except UNREADABLE as problem:
            raise ValidationError(f"{str(path)!r} cannot be read without pickle: {problem}") from None
    else:
        array = _read_with_pillow(path)
    if array.ndim not in (2, 3):
        raise ShapeError(f"{str(path)!r} has shape {array.shape}, expected (ny, nx) or (pages, ny, nx)")
    return array


def _read_with_pillow(path: Path) -> np.ndarray:
    from PIL import Image, ImageSequence, UnidentifiedImageError

    pages: list[Any] = []
    try:
        with Image.open(path) as picture:
            for page in ImageSequence.Iterator(picture):
                if page.mode not in _KEPT:
                    raise ValidationError(
                        f"{str(path)!r} has mode {page.mode!r}, expected grey values of a camera; convert it to grey"
                    )
                pages.append(np.array(page, dtype=np.uint8) if page.mode == "1" else np.array(page))
    except (UnidentifiedImageError, OSError, SyntaxError) as problem:
        raise ValidationError(f"{str(path)!r} cannot be read as an image: {problem}") from None
    if len({page.shape for page in pages}) > 1:
        raise ShapeError(f"{str(path)!r} has pages of different shapes; give one file an image")
    return pages[0] if len(pages) == 1 else np.stack(pages)


def is_picture(path: str | Path) -> bool:
    """Return whether a file is a picture, whose first row is on top, and not an array."""
    return Path(path).suffix.lower() != ".npy"
