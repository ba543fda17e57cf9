"""Pictures: images made small enough to be shown, with what is read off them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SHOWN = 400  #: pixels along the longer side of what is sent to a browser


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as it is shown.

    Attributes:
        pixels: ``(h, w)`` uint8, 0 for ``low`` and 255 for ``high``; row 0 at the lowest y.
        low, high: what the ends of the colour scale stand for [unit of the image].
        extent: left, bottom, width and height [mm], or in pixels where their size is not known.
        profile_x, profile_y: sums over y and x, ``(w,)`` and ``(h,)``, from 0 to 1.
        mean, sigma: centroid and rms sizes (x, y), in the unit of ``extent``; NaN for an empty image.
        total: sum of the image [unit of the image].
        in_pixels: whether ``extent`` is in pixels.
    """

    pixels: np.ndarray
    low: float
    high: float
    extent: tuple[float, float, float, float]
    profile_x: np.ndarray
    profile_y: np.ndarray
    mean: tuple[float, float]
    sigma: tuple[float, float]
    total: float
    in_pixels: bool


def picture(image: np.ndarray, pixel_size: tuple[float, float] | None = None, most: int = SHOWN) -> Picture:
    """Return an image as it is shown, from zero to its highest pixel.

    Args:
        image: ``(ny, nx)``, row 0 at the lowest y; what is not finite counts as zero.
        pixel_size: width and height of a pixel [m]; the middle of the image is at zero then.
        most: pixels along the longer side that are shown; more are averaged.
    """
    clean = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    small = shrunk(clean, most)
    high = float(small.max(initial=0.0))
    scale = 255.0 / high if high > 0.0 else 0.0
    pixels = np.clip(small * scale + 0.5, 0.0, 255.0).astype(np.uint8)
    return _described(clean, pixels, 0.0, high, pixel_size)


def difference(model: np.ndarray, measured: np.ndarray, pixel_size: tuple[float, float] | None = None) -> Picture:
    """Return the difference of two images, each as shares of its own sum, with zero in the middle of the scale.

    Args:
        model, measured: ``(ny, nx)``.
        pixel_size: width and height of a pixel [m].
    """
    both = [np.nan_to_num(np.asarray(one, dtype=np.float64)) for one in (model, measured)]
    shares = [one / total if (total := one.sum()) > 0.0 else one * 0.0 for one in both]
    small = shrunk(shares[0] - shares[1], SHOWN)
    high = float(np.abs(small).max(initial=0.0))
    scale = 127.5 / high if high > 0.0 else 0.0
    pixels = np.clip(small * scale + 128.0, 0.0, 255.0).astype(np.uint8)
    return _described(shares[0] - shares[1], pixels, -high, high, pixel_size)


def shrunk(image: np.ndarray, most: int) -> np.ndarray:
    """Return an image with at most so many pixels along its longer side: means of blocks, without a rest."""
    factor = math.ceil(max(image.shape) / most)
    if factor <= 1:
        return image
    rows, columns = (size // factor * factor for size in image.shape)
    if not rows or not columns:
        return image
    blocks = image[:rows, :columns].reshape(rows // factor, factor, columns // factor, factor)
    found: np.ndarray = blocks.mean(axis=(1, 3))
    return found


def _described(
    image: np.ndarray, pixels: np.ndarray, low: float, high: float, pixel_size: tuple[float, float] | None
) -> Picture:
    ny, nx = image.shape
    dx, dy = (1.0, 1.0) if pixel_size is None else (1e3 * pixel_size[0], 1e3 * pixel_size[1])
    left, bottom = (0.0, 0.0) if pixel_size is None else (-0.5 * nx * dx, -0.5 * ny * dy)
    sums = image.sum(axis=0), image.sum(axis=1)
    moments = [_moments(one, start, step) for one, start, step in zip(sums, (left, bottom), (dx, dy), strict=True)]
    return Picture(
        pixels=pixels,
        low=low,
        high=high,
        extent=(left, bottom, nx * dx, ny * dy),
        profile_x=_thinned(sums[0], pixels.shape[1]),
        profile_y=_thinned(sums[1], pixels.shape[0]),
        mean=(moments[0][0], moments[1][0]),
        sigma=(moments[0][1], moments[1][1]),
        total=float(image.sum()),
        in_pixels=pixel_size is None,
    )


def _moments(profile: np.ndarray, start: float, step: float) -> tuple[float, float]:
    total = profile.sum()
    if not total > 0.0:
        return math.nan, math.nan
    places = start + step * (np.arange(profile.size) + 0.5)
    mean = float(profile @ places / total)
    return mean, math.sqrt(max(0.0, float(profile @ (places - mean) ** 2 / total)))


def _thinned(profile: np.ndarray, size: int) -> np.ndarray:
    factor = profile.size // size
    found = profile[: size * factor].reshape(size, factor).mean(axis=1)
    highest = found.max(initial=0.0)
    return np.asarray(found / highest if highest > 0.0 else found * 0.0, dtype=np.float32)
