"""What images say in numbers: intensity, centroid, size and tilt of the beam, and projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.calibration.data.history import Step
from lume_diff.errors import CalibrationError, UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.calibration.data.noise import NoiseModel
    from lume_diff.calibration.data.scalars import Dataset
    from lume_diff.calibration.data.screens import ScreenDataset

NAMES = ("intensity", "mean_x", "mean_y", "sigma_x", "sigma_y", "cov_x__y")
UNITS = {"intensity": "", "mean_x": "m", "mean_y": "m", "sigma_x": "m", "sigma_y": "m", "cov_x__y": "m^2"}


@dataclass(frozen=True)
class ScreenStatistics:
    """Hold numbers read from images, masked where an image has no beam; under the mask is zero, never NaN.

    Attributes:
        numbers: ``intensity``, ``mean_x``, ``mean_y``, ``sigma_x``, ``sigma_y`` [m] and ``cov_x__y`` [m^2], each
            ``(settings, shots)``; also reached as ``statistics["sigma_x"]``.
        errors: their standard errors from the noise of the pixels and of the background that was subtracted.
        cut: light in the outermost rows and columns, relative to the brightest ones, ``(settings, shots)``: where it is
            not small, the edge cuts the beam off, and sizes are too small.
    """

    numbers: Mapping[str, np.ma.MaskedArray]
    errors: Mapping[str, np.ma.MaskedArray]
    cut: np.ma.MaskedArray

    def __getitem__(self, name: str) -> np.ma.MaskedArray:
        if name not in self.numbers:
            raise UnknownVariableError(f"{name!r} is no statistic of an image{nearest_names(name, self.numbers)}")
        return self.numbers[name]

    def unit(self, name: str) -> str:
        """Return the unit of a statistic."""
        return UNITS[name]


def statistics(data: ScreenDataset, aperture: float | None = None) -> ScreenStatistics:
    """Return intensity, centroid, rms sizes and covariance of every image.

    They are sums over valid pixels. Background adds to all of them, most to sizes, since it counts with the square of
    its distance: subtract it first, and crop, threshold or give an aperture.

    Args:
        aperture: half width and half height, in rms sizes, of the rectangle around the beam that is looked at, found by
            iteration; 6 is that of ISO 11146; None for the whole image.

    Returns:
        Numbers and standard errors, ``(settings, shots)`` each; masked where there is no beam.

    Raises:
        ValidationError: an aperture that is not positive.

    Gradient:
        None: these are numbers of measured images.

    Source:
        ISO 11146-1:2021, 7.2, for the aperture.
    """
    if aperture is not None and not aperture > 0.0:
        raise ValidationError(f"aperture is {aperture!r}; expected a positive number of rms sizes, or None")
    shape = data.images.shape[:2]
    values, errors = np.zeros((len(NAMES), *shape)), np.zeros((len(NAMES), *shape))
    seen = data.has_beam.copy()
    for i, j in np.argwhere(seen):
        image, valid = data.images[i, j].astype(np.float64), data.mask[i, j]
        found = _of_image(image, valid, data.frame.x, data.frame.y, data.noise, aperture)
        if found is None:
            seen[i, j] = False
        else:
            values[:, i, j], errors[:, i, j] = found
    across, up = (projections(data, axis).filled(0.0) for axis in "xy")
    edge = np.maximum(_edge(across, data.noise.level * data.shape[2]), _edge(up, data.noise.level * data.shape[3]))
    numbers, uncertain = ({n: np.ma.array(a[k], mask=~seen) for k, n in enumerate(NAMES)} for a in (values, errors))
    return ScreenStatistics(numbers, uncertain, np.ma.array(np.where(seen, edge, 0.0), mask=~seen))


def _edge(profiles: np.ndarray, background: float) -> np.ndarray:
    """Return the light of the brighter end of profiles, relative to their maximum, ``(settings, shots)``."""
    light = profiles - background
    ends = np.maximum(light[..., :3].mean(-1), light[..., -3:].mean(-1))
    highest = light.max(-1)
    relative: np.ndarray = np.clip(ends / np.where(highest > 0.0, highest, 1.0), 0.0, 1.0)
    return relative


def _of_image(
    image: np.ndarray, valid: np.ndarray, x: np.ndarray, y: np.ndarray, noise: NoiseModel, aperture: float | None
) -> tuple[np.ndarray, np.ndarray] | None:
    found = _moments(image, valid, x, y, noise)
    if aperture is None or found is None:
        return found
    inside = valid
    for _ in range(50):
        _, mean_x, mean_y, sigma_x, sigma_y, _ = found[0]
        half_x, half_y = (max(aperture * s, 2.0 * (u[1] - u[0])) for s, u in ((sigma_x, x), (sigma_y, y)))
        near = valid & (np.abs(x - mean_x) <= half_x) & (np.abs(y - mean_y) <= half_y)[:, None]
        if np.array_equal(near, inside):
            break
        inside = near
        smaller = _moments(image, inside, x, y, noise)
        if smaller is None:
            return None
        found = smaller
    return found


def _moments(
    image: np.ndarray, inside: np.ndarray, x: np.ndarray, y: np.ndarray, noise: NoiseModel
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return moments and their standard errors, or None where light or a size is not positive."""
    light, variance = np.where(inside, image, 0.0), np.where(inside, noise.variance(image), 0.0)
    total = light.sum()
    if not total > 0.0:
        return None
    across, up = light.sum(0) / total, light.sum(1) / total
    mean_x, mean_y = across @ x, up @ y
    u, v = x - mean_x, (y - mean_y)[:, None]
    xx, yy = _second(across, u), _second(up, v[:, 0])
    if not (xx > 0.0 and yy > 0.0):
        return None
    xy = float((light * u * v).sum() / total)
    sigma_x, sigma_y = np.sqrt(xx), np.sqrt(yy)
    slopes = np.stack(  # of each number in the intensity of each pixel
        np.broadcast_arrays(
            *(1.0, u / total, v / total, (u**2 - xx) / (2.0 * sigma_x * total), (v**2 - yy) / (2.0 * sigma_y * total)),
            (u * v - xy) / total,
        )
    )
    single = (slopes**2 * variance).sum((-2, -1))
    common = (noise.level_error * (slopes * inside).sum((-2, -1))) ** 2
    return np.array([total, mean_x, mean_y, sigma_x, sigma_y, xy]), np.sqrt(single + common)


def _second(profile: np.ndarray, u: np.ndarray) -> float:
    """Return a second moment, not less than that of one evenly lit pixel; negative where noise has made it so."""
    found = float(profile @ u**2)
    return found if found < 0.0 or u.size < 2 else max(found, (u[1] - u[0]) ** 2 / 12.0)


def projections(data: ScreenDataset, axis: str) -> np.ma.MaskedArray:
    """Return the profile of every image along x or y.

    Args:
        axis: ``"x"`` for the light in each column, ``"y"`` for that in each row.

    Returns:
        Intensities ``(settings, shots, nx)`` or ``(settings, shots, ny)``. Pixels that are not valid count as much as
        the mean of the valid ones of their column or row; masked where none is valid.

    Raises:
        ValidationError: another axis.
    """
    if axis not in ("x", "y"):
        raise ValidationError(f"projections: axis is {axis!r}; expected 'x' or 'y'")
    along = -2 if axis == "x" else -1
    counts = data.mask.sum(along)
    light = np.where(data.mask, data.images, 0.0).sum(along, dtype=np.float64)
    full = data.images.shape[along]
    return np.ma.array(light * full / np.maximum(counts, 1), mask=counts == 0)


def to_dataset(data: ScreenDataset, names: Mapping[str, str], *, aperture: float | None = None) -> Dataset:
    """Return numbers read from the images as data of their own, with standard errors from the pixels' noise.

    Args:
        names: variables of the model by statistic, such as ``{"sigma_x": "final.sigma_x"}``.
        aperture: see `statistics`.

    Returns:
        A `Dataset`; images without beam are left out.

    Raises:
        UnknownVariableError: no such statistic.
        CalibrationError: no image shows a beam.
    """
    from lume_diff.calibration.data.scalars import Dataset

    found = statistics(data, aperture)
    for name in names:
        found[name]
    if not all(found[name].count() for name in names):
        raise CalibrationError(f"{data.screen}: no image shows a beam; see has_beam")
    made = Dataset(
        data._settings.values,
        {variable: found[name].filled(np.nan) for name, variable in names.items()},
        sigma={variable: found.errors[name].filled(1.0) for name, variable in names.items()},
        units={**data.units, **{variable: UNITS[name] for name, variable in names.items()}},
        weights=data.weights,
        metadata=data.metadata,
        nan="mask",
    )
    return made._with(None, _history=(*data.history, Step("to_dataset", {"names": dict(names), "aperture": aperture})))
