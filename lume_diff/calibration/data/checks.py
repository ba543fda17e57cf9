"""What images must be before anything is done with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.arrays import frozen, raise_all, real_array
from lume_diff.calibration.data.history import Step
from lume_diff.errors import LumeDiffError, ShapeError, ValidationError

if TYPE_CHECKING:
    from lume_diff.calibration.data.screens import ScreenDataset

_SMALLEST = 3  # pixels along an axis


def checked_images(screen: str, images: Any, nan: str) -> tuple[np.ndarray, np.ndarray | None, list[Step]]:
    """Return images ``(settings, shots, ny, nx)``, which pixels are finite (None for all), and what was done."""
    numbers = real_array(f"{screen}: images", images)
    if numbers.ndim not in (3, 4) or 0 in numbers.shape or min(numbers.shape[-2:]) < _SMALLEST:
        raise ShapeError(
            f"{screen}: images have shape {numbers.shape}, expected (settings, shots, ny, nx) or (settings, ny, nx) "
            f"with at least {_SMALLEST} x {_SMALLEST} pixels"
        )
    if numbers.ndim == 3:
        numbers = frozen(numbers[:, None])
    if nan not in ("raise", "mask"):
        raise ValidationError(f"nan: received {nan!r}, expected 'raise' or 'mask'")
    finite = np.isfinite(numbers)
    if finite.all():
        return numbers, None, []
    bad = ~finite
    if nan == "raise":
        raise ValidationError(
            f"{screen}: {int(bad.sum())} pixels are not finite, in {_images(bad.any((-2, -1)))}; the first at row "
            f"{np.argwhere(bad)[0][2]}, column {np.argwhere(bad)[0][3]}; give nan='mask' to leave them out"
        )
    note = f"{int(bad.sum())} pixels that are not finite are left out"
    return frozen(np.where(finite, numbers, np.float32(0.0))), finite, [Step("mask_nan", {}, note)]


def checked_mask(screen: str, mask: Any, also: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return the pixels that are valid by both, as an array that broadcasts to ``shape``."""
    valid = np.ones((1, 1, *shape[2:]), dtype=bool) if also is None else also
    if mask is not None:
        given = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
        if given.dtype != bool:
            raise ValidationError(f"{screen}: mask has dtype {given.dtype}, expected bool, True for pixels to be used")
        if given.ndim == 3:
            given = given[:, None]
        try:
            np.broadcast_to(given, shape)
            valid = valid & given
        except ValueError:
            raise ShapeError(
                f"{screen}: mask has shape {given.shape}, expected that of an image {shape[2:]} or of all {shape}"
            ) from None
    if not valid.any():
        raise ValidationError(f"{screen}: the mask leaves no pixel; True is for pixels to be used")
    return frozen(valid)


def refuse_black(screen: str, data: ScreenDataset, black: str) -> None:
    """Raise where images show neither light nor noise: a camera that was off, or a file that was not written."""
    if black not in ("raise", "flag"):
        raise ValidationError(f"black: received {black!r}, expected 'raise' or 'flag'")
    counted = data.weights > 0.0
    low = np.where(data.mask, data.images, np.inf).min((-2, -1))
    high = np.where(data.mask, data.images, -np.inf).max((-2, -1))
    dark = counted & (high <= low)
    if not dark.any():
        return
    if (dark == counted).all():
        raise ValidationError(
            f"{screen}: all {int(dark.sum())} images are black or of one colour; check camera and files"
        )
    if black == "raise":
        raise ValidationError(
            f"{screen}: {_images(dark)} {'is' if dark.sum() == 1 else 'are'} black, of one colour or without any valid "
            "pixel: the camera was off, or the beam missed the screen; leave them out, or give black='flag' to keep "
            "them as images without beam"
        )


def refuse_joining(parts: Sequence[ScreenDataset]) -> None:
    """Raise, with everything that differs, where datasets are not of one screen."""
    if not parts:
        raise ValidationError("join: no datasets were given")
    first, problems = parts[0], list[LumeDiffError]()
    for i, other in enumerate(parts[1:], 2):
        if other.screen != first.screen:
            problems.append(ValidationError(f"number {i} is of {other.screen!r}, the first of {first.screen!r}"))
        if not other.frame.agrees(first.frame):
            problems.append(ShapeError(f"number {i} has {other.frame}, the first {first.frame}; crop and bin alike"))
        if other.shape[1:] != first.shape[1:]:
            problems.append(
                ShapeError(
                    f"number {i} has (shots, ny, nx) = {other.shape[1:]}, the first {first.shape[1:]}; "
                    "mean_shots() makes it one shot each"
                )
            )
    raise_all("join", problems)


def _images(which: np.ndarray) -> str:
    """Return which images, in words: by setting, with the shot where there are several."""
    words = [f"setting {i}" + (f" shot {j}" if which.shape[1] > 1 else "") for i, j in np.argwhere(which)[:6]]
    more = int(which.sum()) - len(words)
    return ", ".join(words) + (f" and {more} more" if more > 0 else "")
