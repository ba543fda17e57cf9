"""The noise of a pixel: a constant part from the background, and parts that grow with the light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lume_diff.calibration.data.signal import background_levels
from lume_diff.errors import CalibrationError, ValidationError

_FLOOR = 1e-4  # of the brightest pixel: what an image without any noise is taken to have
_BINS = 12
_TRIM = 0.99  # share of the variances that is kept: of the largest ones, something else made most


@dataclass(frozen=True)
class NoiseModel:
    """Give every pixel a variance: ``sigma² + gain (signal - level) + relative² (signal - level)²``.

    Args:
        sigma: standard deviation of a pixel without light [intensity].
        gain: variance per unit of light [intensity], as of counted photons.
        relative: standard deviation in proportion to the light [1], as of jitter from shot to shot.
        level: intensity of a pixel without light, where the background was not subtracted.
        level_error: standard error of the background that was, common to all pixels of an image [intensity].
        source: where the numbers are from.

    Raises:
        ValidationError: a number is negative or not finite, or ``sigma`` is zero.

    Example:
        >>> NoiseModel(sigma=2.0, gain=0.5).std(np.array([0.0, 24.0]))
        array([2., 4.])
    """

    sigma: float
    gain: float = 0.0
    relative: float = 0.0
    level: float = 0.0
    level_error: float = 0.0
    source: str = "given"

    def __post_init__(self) -> None:
        for name in ("sigma", "gain", "relative", "level", "level_error"):
            value = getattr(self, name)
            if not np.isfinite(value) or (value < 0.0 and name != "level") or (value == 0.0 and name == "sigma"):
                expected = (
                    "a finite number" if name == "level" else "positive" if name == "sigma" else "zero or positive"
                )
                raise ValidationError(f"noise: {name} is {value!r}; expected {expected}")
            object.__setattr__(self, name, float(value))

    def variance(self, signal: Any) -> Any:
        """Return the variance of pixels.

        Args:
            signal: their expected intensity, array or tensor of any shape: better a prediction than the noisy image.

        Returns:
            The same kind and shape [intensity²].

        Gradient:
            Exact.
        """
        light = (signal - self.level).clip(min=0.0)
        return self.sigma**2 + self.gain * light + (self.relative * light) ** 2

    def std(self, signal: Any) -> Any:
        """Return the standard deviation of pixels; see `variance`."""
        return self.variance(signal) ** 0.5

    def averaged(self, count: float) -> NoiseModel:
        """Return the noise of a mean of ``count`` shots."""
        root = count**0.5
        light: dict[str, Any] = {"gain": self.gain / count, "relative": self.relative / root}
        return replace(self, sigma=self.sigma / root, level_error=self.level_error / root, **light)

    def added_up(self, count: int) -> NoiseModel:
        """Return the noise of a sum of ``count`` pixels, whose jitter is common to them."""
        common: dict[str, Any] = {"level": self.level * count, "level_error": self.level_error * count}
        return replace(self, sigma=self.sigma * count**0.5, **common)

    def plain(self) -> dict[str, Any]:
        """Return the numbers as JSON has them."""
        return asdict(self)


def as_noise(value: NoiseModel | float | None) -> NoiseModel | None:
    """Return a noise model; a number is the standard deviation of every pixel."""
    if value is None or isinstance(value, NoiseModel):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise ValidationError(
            f"noise: received {value!r}, expected a NoiseModel, a standard deviation, or None to estimate it"
        )
    return NoiseModel(float(value))


def mean_noise(models: Sequence[NoiseModel], counts: Sequence[int]) -> NoiseModel:
    """Return the noise of data put together from parts: variances are averaged, weighted with the parts' settings."""
    if all(model == models[0] for model in models):
        return models[0]
    mean = lambda values: float(np.average(values, weights=counts))  # noqa: E731
    return NoiseModel(
        sigma=mean([m.sigma**2 for m in models]) ** 0.5,
        gain=mean([m.gain for m in models]),
        relative=mean([m.relative**2 for m in models]) ** 0.5,
        level=mean([m.level for m in models]),
        level_error=mean([m.level_error**2 for m in models]) ** 0.5,
        source=f"mean over {len(models)} parts; {models[0].source}",
    )


def estimate_noise(images: np.ndarray, valid: np.ndarray, method: str = "local") -> NoiseModel:
    """Estimate the noise of pixels from images.

    The constant part is the scatter in dark corners. The part that grows with the light is the variance left at given
    brightness: ``"local"`` takes it from each image's finest detail, which is noise where the beam is smooth over a
    few pixels, and so leaves out jitter; ``"shots"`` from the scatter of each pixel between shots, with jitter of the
    beam's position and charge.

    Args:
        images: ``(settings, shots, ny, nx)``.
        valid: of the same shape.
        method: ``"local"`` or ``"shots"``.

    Returns:
        The model; at least 1e-4 of the brightest pixel is taken for noise, and the source says so.

    Raises:
        CalibrationError: ``"shots"`` with a single shot, or no valid pixel.
        ValidationError: another method.

    Source:
        J. Immerkær, "Fast noise variance estimation", Comput. Vis. Image Underst. 64, 300 (1996),
        doi:10.1006/cviu.1996.0060, for the kernel of ``"local"``.
    """
    if method not in ("local", "shots"):
        raise ValidationError(f"noise: method is {method!r}; expected 'local' or 'shots'")
    levels, scatters, _ = background_levels(images, valid)
    known = valid.any((-2, -1))
    if not known.any():
        raise CalibrationError("noise: no image that counts has a valid pixel; give noise=, a standard deviation")
    sigma, level = float(np.sqrt(np.mean(scatters[known] ** 2))), float(levels[known].mean())
    source = f"estimated: background of dark corners, light by {method!r}"
    rounding = _quantum(images, valid) / np.sqrt(12.0)
    if sigma < rounding:
        sigma = rounding
        source += "; its scatter is less than that of rounding to the camera's steps, which was taken"
    brightest = float(images[valid].max()) - level
    if sigma < _FLOOR * brightest:
        sigma = _FLOOR * brightest
        source += "; the background has no noise, 1e-4 of the brightest pixel was taken"
    pairs = _local_pairs(images, valid) if method == "local" else _shot_pairs(images, valid)
    light, variance = _binned(*pairs, level)
    seen = light > 3.0 * sigma
    gain = relative = 0.0
    if seen.any():
        excess = np.maximum(variance[seen] - sigma**2, 0.0) / light[seen]
        if method == "local":
            gain = float(np.median(excess))
        else:
            from scipy.optimize import nnls

            (gain, square), _ = nnls(np.stack((np.ones(seen.sum()), light[seen]), 1), excess)
            relative = float(np.sqrt(square))
    return NoiseModel(sigma, float(gain), relative, level, source=source)


def _quantum(images: np.ndarray, valid: np.ndarray) -> float:
    """Return the step between the values of a camera, the median over images; 0 where they are not in steps."""
    steps = []
    for image, ok in zip(images.reshape(-1, *images.shape[-2:]), valid.reshape(-1, *images.shape[-2:]), strict=True):
        levels = np.unique(image[ok])
        if 2 <= levels.size <= 0.1 * ok.sum():
            steps.append(float(np.diff(levels).min()))
    return float(np.median(steps)) if steps else 0.0


def _local_pairs(images: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the brightness around inner pixels, the square of what is finest in it, and its degrees of freedom, 1."""
    from scipy import ndimage

    edge = np.array([1.0, -2.0, 1.0])
    means, squares = [], []
    for image, ok in zip(images.reshape(-1, *images.shape[-2:]), valid.reshape(-1, *images.shape[-2:]), strict=True):
        numbers = np.where(ok, image, 0.0).astype(np.float64)
        detail = ndimage.convolve1d(ndimage.convolve1d(numbers, edge, axis=0), edge, axis=1) / 6.0
        inner = ndimage.binary_erosion(ok, np.ones((3, 3)))
        means.append(ndimage.uniform_filter(numbers, 3)[inner])
        squares.append(detail[inner] ** 2)
    return np.concatenate(means), np.concatenate(squares), 1


def _shot_pairs(images: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Return mean and variance of pixels over shots, and the degrees of freedom of most variances."""
    counts = valid.sum(1)
    enough = counts >= 2
    if not enough.any():
        raise CalibrationError("noise: method 'shots' needs two shots of a setting at least; use method='local'")
    numbers = np.where(valid, images, 0.0).astype(np.float64)
    mean = numbers.sum(1) / np.maximum(counts, 1)
    squares = np.where(valid, (numbers - mean[:, None]) ** 2, 0.0).sum(1) / np.maximum(counts - 1, 1)
    return mean[enough], squares[enough], int(np.median(counts[enough])) - 1


def _binned(means: np.ndarray, squares: np.ndarray, freedom: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return light and trimmed variance in bins that are even in the root of the light, from dark to bright."""
    from scipy.special import gammainc, gammaincinv

    light = np.maximum(means - level, 0.0)
    if not light.size:
        return light, light
    root = np.sqrt(light)
    place = np.minimum((root / (root.max() or 1.0) * _BINS).astype(int), _BINS - 1)
    # What trimming leaves of the mean of variances that follow a chi-square distribution.
    left = gammainc(0.5 * freedom + 1.0, gammaincinv(0.5 * freedom, _TRIM)) / _TRIM
    found = []
    for i in range(_BINS):
        here = place == i
        if here.sum() >= 20:
            kept = np.sort(squares[here])[: max(int(_TRIM * here.sum()), 1)]
            found.append((light[here].mean(), kept.mean() / left))
    bins = np.array(found).reshape(-1, 2)
    return bins[:, 0], bins[:, 1]
