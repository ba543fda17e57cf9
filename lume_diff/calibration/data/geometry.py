"""Which part of the screen images show, and how they lie: crop, bin, flip, transpose, rotate, centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.calibration.data.arrays import frozen
from lume_diff.calibration.data.frame import add_up
from lume_diff.calibration.data.history import Step, share
from lume_diff.calibration.data.moments import statistics
from lume_diff.errors import CalibrationError, ValidationError
from lume_diff.variables.units import conversion_factor

if TYPE_CHECKING:
    from lume_diff.calibration.data.screens import ScreenDataset

_APERTURE = 4.0  # rms sizes


def crop(
    data: ScreenDataset, roi: str | Sequence[float] = "auto", unit: str = "px", *, n_sigma: float = _APERTURE
) -> ScreenDataset:
    """Cut a part out of all images; where it lies on the screen is kept in ``frame``.

    Args:
        roi: ``(x_low, x_high, y_low, y_high)``: columns and rows of these images, the upper ends excluded, or places on
            the screen, in ``unit``; ``"auto"`` for the smallest part that has the beam of every image.
        unit: ``"px"``, or a length such as ``"m"`` or ``"mm"``.
        n_sigma: for ``"auto"``, how far from the centroid the beam reaches, in rms sizes.

    Returns:
        New data; the history keeps how much of each image's light was cut off, ``"removed"``.

    Raises:
        ValidationError: a part that is empty or reaches beyond the images.
        CalibrationError: ``"auto"`` without any beam.
    """
    ny, nx = data.shape[2:]
    dx, dy = data.pixel_size
    if isinstance(roi, str):
        if roi != "auto":
            raise ValidationError(f"crop: roi is {roi!r}; expected 'auto' or (x_low, x_high, y_low, y_high)")
        lengths: Sequence[float] | None
        lengths, parameters = _around_beams(data, n_sigma), {"roi": "auto", "n_sigma": float(n_sigma)}
    else:
        if len(roi) != 4 or not np.isfinite(roi).all():
            raise ValidationError(f"crop: roi is {roi!r}; expected four finite numbers (x_low, x_high, y_low, y_high)")
        parameters = {"roi": [float(end) for end in roi], "unit": unit}
        lengths = None if unit == "px" else tuple(float(end) * conversion_factor(unit, "m") for end in roi)
    if lengths is None:
        ends = [float(end) for end in roi]
        if any(end != round(end) for end in ends):
            raise ValidationError(f"crop: roi is {tuple(roi)} px; expected whole numbers, or give unit='mm'")
        left, right, low, high = (int(end) for end in ends)
    else:
        (x0, _, y0, _) = data.frame.extent
        left, right = math.floor((lengths[0] - x0) / dx + 1e-6), math.ceil((lengths[1] - x0) / dx - 1e-6)
        low, high = math.floor((lengths[2] - y0) / dy + 1e-6), math.ceil((lengths[3] - y0) / dy - 1e-6)
    if isinstance(roi, str):
        left, right, low, high = max(left, 0), min(right, nx), max(low, 0), min(high, ny)
    if not (0 <= left < right <= nx and 0 <= low < high <= ny):
        x_low, x_high, y_low, y_high = (f"{1e3 * end:.4g}" for end in data.frame.extent)
        raise ValidationError(
            f"crop: columns {left} to {right} and rows {low} to {high} are not within {nx} x {ny} pixels, "
            f"x {x_low} to {x_high} mm, y {y_low} to {y_high} mm"
        )
    part = (..., slice(low, high), slice(left, right))
    images = data.images[part]
    total, kept = (
        np.where(m, i, 0.0).sum((-2, -1), dtype=np.float64)
        for m, i in ((data.mask, data.images), (data.mask[part], images))
    )
    removed = np.where(total > 0.0, 1.0 - kept / np.where(total > 0.0, total, 1.0), 0.0)
    worst = float(removed[data.has_beam].max(initial=0.0))
    step = Step(
        "crop",
        {**parameters, "columns": [left, right], "rows": [low, high]},
        f"{right - left} x {high - low} of {nx} x {ny} pixels; at most {share(worst)} of an image's light is cut off",
        {"removed": frozen(removed)},
    )
    return data._with(
        step,
        _images=frozen(images),
        _valid=frozen(data._valid[part]),
        _frame=data.frame.crop((low, high), (left, right)),
    )


def _around_beams(data: ScreenDataset, n_sigma: float) -> tuple[float, float, float, float]:
    found = statistics(data, aperture=max(n_sigma, 3.0))
    if found["mean_x"].count() == 0:
        raise CalibrationError(f"crop: no image of {data.screen!r} shows a beam; give the part in pixels or mm")
    ends = []
    for axis in "xy":
        mean, sigma = found[f"mean_{axis}"].compressed(), found[f"sigma_{axis}"].compressed()
        ends += [float((mean - n_sigma * sigma).min()), float((mean + n_sigma * sigma).max())]
    return ends[0], ends[1], ends[2], ends[3]


def bin(data: ScreenDataset, n: int) -> ScreenDataset:
    """Add up blocks of n x n pixels; a rest at the upper ends is cut off. Blocks with a pixel left out are left out.

    Args:
        n: pixels along each axis.

    Returns:
        New data.

    Raises:
        ValidationError: not a whole number from 1, or more than the image has.
    """
    if isinstance(n, bool) or n != int(n) or n < 1:
        raise ValidationError(f"bin: n is {n!r}; expected a whole number of pixels")
    n = int(n)
    images = add_up(data.images.astype(np.float64), n).astype(data.images.dtype)
    valid = add_up(data._valid.astype(np.int64), n) == n * n
    return data._with(
        Step("bin", {"n": n}, f"{images.shape[-1]} x {images.shape[-2]} pixels"),
        _images=frozen(images),
        _valid=frozen(valid),
        _frame=data.frame.bin(n),
        _noise=data.noise.added_up(n * n),
    )


def flip(data: ScreenDataset, axis: str) -> ScreenDataset:
    """Turn images over along an axis, as for a camera that looks through a mirror.

    Args:
        axis: ``"x"`` to reverse columns, ``"y"`` to reverse rows.

    Returns:
        New data.

    Raises:
        ValidationError: another axis.
    """
    if axis not in ("x", "y"):
        raise ValidationError(f"flip: axis is {axis!r}; expected 'x' or 'y'")
    along = -1 if axis == "x" else -2
    return data._with(
        Step("flip", {"axis": axis}),
        _images=frozen(np.flip(data.images, along)),
        _valid=frozen(np.flip(data._valid, along)),
        _frame=data.frame.flip(axis),
    )


def transpose(data: ScreenDataset) -> ScreenDataset:
    """Exchange x and y, as for images stored column by column.

    Returns:
        New data.
    """
    return data._with(
        Step("transpose"),
        _images=frozen(np.swapaxes(data.images, -1, -2)),
        _valid=frozen(np.swapaxes(data._valid, -1, -2)),
        _frame=data.frame.transpose(),
    )


def rotate(data: ScreenDataset, angle: float) -> ScreenDataset:
    """Turn what the images show about the centre of the screen; between pixels by linear interpolation.

    Args:
        angle: [rad], counterclockwise from x to y.

    Returns:
        New data; pixels that come from beyond the edge are left out.

    Raises:
        CalibrationError: images that were cropped: what comes in from beyond the edge is gone.
    """
    from scipy import ndimage

    if not data.frame.is_full:
        raise CalibrationError("rotate: these images were cropped; rotate first, then crop")
    if not np.isfinite(angle):
        raise ValidationError(f"rotate: angle is {angle!r}; expected a finite number [rad]")
    dx, dy = data.pixel_size
    cosine, sine = math.cos(angle), math.sin(angle)
    # Rows and columns of where each pixel comes from.
    matrix = np.array([[cosine, -sine * dx / dy], [sine * dy / dx, cosine]])
    middle = 0.5 * (np.array(data.shape[2:]) - 1.0)
    offset = middle - matrix @ middle
    images, valid = np.empty_like(data.images), np.empty(data.shape, dtype=bool)
    for place in np.ndindex(*data.shape[:2]):
        numbers = np.where(data.mask[place], data.images[place], data.noise.level).astype(np.float64)
        images[place] = ndimage.affine_transform(numbers, matrix, offset, order=1, cval=data.noise.level)
        valid[place] = ndimage.affine_transform(data.mask[place].astype(np.float64), matrix, offset, order=1) > 0.999
    return data._with(
        Step("rotate", {"angle": float(angle)}, f"{math.degrees(angle):.4g} deg"),
        _images=frozen(images),
        _valid=frozen(valid),
    )


def centre(data: ScreenDataset, per: str = "setting", *, aperture: float | None = _APERTURE) -> ScreenDataset:
    """Shift images so that the centroid comes to x = y = 0, which throws the beam's position away.

    A fit can take jitter as a parameter of its own instead. Between pixels the shift interpolates linearly.

    Args:
        per: ``"shot"``, ``"setting"`` for one shift of all its shots, or ``"scan"`` for one shift of everything.
        aperture: of the centroid; see `statistics`.

    Returns:
        New data; the history keeps the shifts, ``"shift"`` [m], ``(settings, shots, 2)`` in x and y. Images without
        beam stay as they are; pixels from beyond the edge are left out.

    Raises:
        ValidationError: another choice of ``per``.
    """
    from scipy import ndimage

    if per not in ("shot", "setting", "scan"):
        raise ValidationError(f"centre: per is {per!r}; expected 'shot', 'setting' or 'scan'")
    found = statistics(data, aperture)
    shifts = -np.ma.stack([found["mean_x"], found["mean_y"]], axis=-1)
    if per != "shot":
        mean = shifts.mean(axis=1 if per == "setting" else (0, 1), keepdims=True)
        shifts = np.ma.array(np.broadcast_to(mean.filled(0.0), shifts.shape), mask=shifts.mask)
    plain = np.where(data.has_beam[..., None], shifts.filled(0.0), 0.0)
    dx, dy = data.pixel_size
    images, valid = data.images.copy(), data.mask.copy()
    for place in np.argwhere(plain.any(-1)):
        i, j = place
        by = plain[i, j, 1] / dy, plain[i, j, 0] / dx
        numbers = np.where(valid[i, j], images[i, j], data.noise.level).astype(np.float64)
        images[i, j] = ndimage.shift(numbers, by, order=1, cval=data.noise.level)
        valid[i, j] = ndimage.shift(valid[i, j].astype(np.float64), by, order=1) > 0.999
    largest = 1e3 * float(np.abs(plain).max())
    return data._with(
        Step("centre", {"per": per, "aperture": aperture}, f"by up to {largest:.4g} mm", {"shift": frozen(plain)}),
        _images=frozen(images),
        _valid=frozen(valid),
    )
