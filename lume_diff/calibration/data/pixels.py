"""The size of a pixel: read with its unit, and refused where it cannot be in metres."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from lume_diff.calibration.data.arrays import real_array
from lume_diff.errors import ShapeError, UnitError, ValidationError
from lume_diff.variables.units import conversion_factor

_LARGEST, _SMALLEST = 3e-3, 1e-8  # [m]: no screen has larger pixels, no optics smaller ones
_WIDEST, _NARROWEST = 0.6, 1e-5  # [m], of a whole image
_EVER, _EVER_WIDE = 0.05, 5.0  # [m], of a pixel and an image, whatever unit was written
_UNITS = ("mm", "um", "cm", "nm")
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*)")


def read_pixel_size(value: Any, shape: tuple[int, int]) -> tuple[float, float]:
    """Return the width and height of a pixel.

    Args:
        value: one number for square pixels or ``(x, y)`` [m], or strings with a unit such as ``"125 um"``.
        shape: of an image, ``(ny, nx)``.

    Returns:
        Width and height [m].

    Raises:
        ValidationError: not positive, larger than any screen's, or, without a unit, so large or small that it cannot
            be in metres.
        ShapeError: neither one number nor two.
        UnitError: the unit is not known or no length.
    """
    if value is None:
        raise ValidationError("pixel_size: received None, expected the size of a pixel on the screen [m], or '125 um'")
    parts = [value] if isinstance(value, str) or np.ndim(value) == 0 else list(value)
    if len(parts) not in (1, 2):
        raise ShapeError(f"pixel_size: received {len(parts)} numbers, expected one or (x, y) [m]")
    sizes = [_size(part, value) for part in parts]
    width, height = (sizes * 2)[:2] if len(sizes) == 1 else sizes
    for (size, is_sure), count in ((width, shape[1]), (height, shape[0])):
        if not is_sure:
            _refuse_implausible(size, count)
        elif size > _EVER or size * count > _EVER_WIDE:
            raise ValidationError(
                f"pixel_size: received {value!r}, which makes a screen of {count} pixels {size * count:.3g} m wide; "
                "there is none: check the unit"
            )
    return width[0], height[0]


def _size(part: Any, given: Any) -> tuple[float, bool]:
    """Return a size [m] and whether its unit was given."""
    unit: str | None = None
    if isinstance(part, str):
        match = _NUMBER.fullmatch(part)
        if match is None or not match[2]:
            raise UnitError(f"pixel_size: received {part!r}, expected a number with a unit, such as '125 um'")
        part, unit = float(match[1]), match[2]
    size = float(real_array("pixel_size", part))
    if not np.isfinite(size) or size <= 0.0:
        raise ValidationError(f"pixel_size: received {given!r}, expected a positive size [m]")
    if unit is None:
        return size, False
    try:
        # "200 um" is 2e-4 to the last digit, whose hash is that of the number.
        return float(f"{size * conversion_factor(unit, 'm'):.12g}"), True
    except UnitError as problem:
        raise UnitError(f"pixel_size: {problem}; give a length, such as '125 um'") from None


def _refuse_implausible(size: float, count: int) -> None:
    if _SMALLEST <= size <= _LARGEST and _NARROWEST <= size * count <= _WIDEST:
        return
    likely = [unit for unit in _UNITS if _fits(size * conversion_factor(unit, "m"), count)]
    fix = (
        f"if it is in {likely[0]}, give pixel_size='{size:g} {likely[0]}' or "
        f"{size * conversion_factor(likely[0], 'm'):g}"
        if likely
        else "check the number"
    )
    if size <= _EVER and size * count <= _EVER_WIDE:
        fix += f"; if it is meant, give it with its unit: pixel_size='{size:g} m'"
    raise ValidationError(
        f"pixel_size: received {size:g} [m], which makes a screen of {count} pixels {size * count:.3g} m wide; {fix}"
    )


def _fits(size: float, count: int) -> bool:
    return 1e-7 <= size <= _LARGEST and 1e-3 <= size * count <= _WIDEST
