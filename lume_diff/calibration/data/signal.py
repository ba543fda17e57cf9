"""Background and beam: what an image shows where no beam is, and whether there is a beam at all."""

from __future__ import annotations

import numpy as np

_SMOOTHING = 1.5  # [pixels]
_STANDS_OUT = 10.0  # of the background's scatter after smoothing; noise cut off at zero reaches 7 in a megapixel
_CORNER, _AT_LEAST = 0.1, 8  # of width and height, and in pixels
_ALIKE = 4.0  # standard errors of the difference of means
_LEFT_OF_NOISE = 0.19  # of white noise, after a median over 3 x 3 pixels and the smoothing
_KEPT = 6.0  # standard deviations: what is beyond is a hot pixel; noise that was cut off at zero must not go with it


def corner_values(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the valid pixels of the dark corners of an image, ``(n,)``; of all of it where corners have none.

    Those are the darkest corner and the ones that noise may have made brighter: a beam that touches the edge is left
    out, and the mean is not that of a lucky corner.
    """
    ny, nx = image.shape
    height, width = (min(max(_AT_LEAST, round(_CORNER * n)), n) for n in (ny, nx))
    corners = [
        image[rows, columns][valid[rows, columns]].astype(np.float64)
        for rows in (slice(0, height), slice(ny - height, ny))
        for columns in (slice(0, width), slice(nx - width, nx))
    ]
    corners = sorted((c for c in corners if c.size), key=np.mean)
    if not corners:
        return image[valid].astype(np.float64)
    darkest = corners[0]
    alike = [
        c
        for c in corners
        if c.mean() - darkest.mean() <= _ALIKE * np.sqrt(c.var() / c.size + darkest.var() / darkest.size)
    ]
    return np.concatenate(alike)


def level_and_scatter(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of background pixels, outliers left out."""
    if values.size == 0:
        return 0.0, 0.0
    for _ in range(3):
        kept = values[np.abs(values - values.mean()) <= _KEPT * values.std()]
        if kept.size in (0, values.size):
            break
        values = kept
    return float(values.mean()), float(values.std())


def background_levels(images: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return level and scatter of the background of each image, and how many pixels they were taken from.

    Args:
        images: ``(settings, shots, ny, nx)``.
        valid: of the same shape.

    Returns:
        Mean and standard deviation of single pixels, and their number, ``(settings, shots)`` each.
    """

    def of_image(image: np.ndarray, ok: np.ndarray) -> tuple[float, float, float]:
        values = corner_values(image, ok)
        return *level_and_scatter(values), float(values.size)

    found = np.array(
        [[of_image(image, ok) for image, ok in zip(*shots, strict=True)] for shots in zip(images, valid, strict=True)]
    )
    return found[..., 0], found[..., 1], found[..., 2]


def sees_beam(images: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return which images show a beam: light that stands out of the background over more than a pixel.

    Args:
        images: ``(settings, shots, ny, nx)``.
        valid: of the same shape.

    Returns:
        True where there is one, ``(settings, shots)``.
    """
    return np.array(
        [
            [_sees_beam(image, ok) for image, ok in zip(*shots, strict=True)]
            for shots in zip(images, valid, strict=True)
        ],
        dtype=bool,
    ).reshape(images.shape[:2])


def _sees_beam(image: np.ndarray, valid: np.ndarray) -> bool:
    from scipy import ndimage

    if not valid.any():
        return False
    level, noise = level_and_scatter(corner_values(image, valid))
    # A median first: one hot pixel is no beam.
    flat = ndimage.median_filter(np.where(valid, image, level).astype(np.float64), 3)
    smooth = ndimage.gaussian_filter(flat, _SMOOTHING)
    dark = corner_values(smooth, valid)
    scatter = max(float(dark.std()), _LEFT_OF_NOISE * noise)
    highest = float(smooth[valid].max())
    return highest - float(dark.mean()) > _STANDS_OUT * scatter and highest > 0.0
