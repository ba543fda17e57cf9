"""Moments: centroids and sizes of images, or what a model gives as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.measures import axes, moments
from lume_diff.calibration.likelihoods.shots import Shots, screen_shots
from lume_diff.errors import ValidationError

#: Smoothing [pixels] before it is judged what stands out, by how many standard deviations and by which share of the
#: brightest it must, and how much wider than that the region is on each side.
_SMOOTHING, _STANDS_OUT, _SHARE, _MARGIN = 2.0, 4.0, 0.05, 0.3
#: Pixels outside the region that tell the level of the background.
_ENOUGH = 100

NAMES = ("mean_x", "mean_y", "cov_x__x", "cov_y__y", "cov_x__y")


class MeasuredMoments(NamedTuple):
    """Moments of images and their standard errors, ``(settings, 5)`` each, where they are taken and which count."""

    output: str
    pixel_size: tuple[float, float]
    region: Tensor
    background: Tensor
    values: Tensor
    errors: Tensor
    counted: Tensor
    chosen: list[int]


class Moments(Likelihood):
    """Compare centroids, squared sizes and tilts of images: few numbers, and a wide basin to fall into.

    Errors come from the noise of the pixels and, with several shots, from what differs between them. Prediction and
    data are measured inside the same region around the measured beam: far from it there is nothing but noise, which
    second moments weigh most.

    Args:
        of: which moments, out of ``mean_x, mean_y, cov_x__x, cov_y__y, cov_x__y``; all of them by default.
        robust: see ``Likelihood``.

    Raises:
        ValidationError: for a moment that does not exist.

    Gradient:
        Exact.
    """

    def __init__(self, of: tuple[str, ...] = NAMES, robust: float | None = None) -> None:
        super().__init__(robust)
        unknown = [name for name in of if name not in NAMES]
        if unknown or not of:
            raise ValidationError(f"of is {of!r}; expected some of {', '.join(NAMES)}")
        self.of = tuple(of)

    def target(self, data: Any) -> MeasuredMoments:
        """Take the moments of the mean images and their errors."""
        shots = screen_shots(data)
        around = around_the_beam(shots.mean * shots.valid, shots.sigma)
        region, share = shots.valid * around, _share_of_background(shots.valid * (1.0 - around))
        values = _measured(shots.mean, region, share, shots.pixel_size)
        variance = _variance(shots, region, share, values)
        if shots.each.shape[1] > 1:
            alone = _measured(shots.each, region.unsqueeze(1), share.unsqueeze(1), shots.pixel_size)
            present = shots.present.unsqueeze(-1)
            number = present.sum(1).clamp_min(1)
            middle = (alone * present).sum(1) / number
            scatter = ((alone - middle.unsqueeze(1)).square() * present).sum(1) / (number - 1).clamp_min(1)
            several = (number > 1).expand_as(scatter)
            # A few shots tell their scatter badly, so that of all settings stands in where it is larger.
            pooled = (scatter * several).sum(0) / several.sum(0).clamp_min(1)
            weight = torch.where(shots.weight > 0.0, shots.weight, 1.0).unsqueeze(-1)
            variance = torch.maximum(variance, torch.maximum(scatter, pooled) / weight)
        chosen = [NAMES.index(name) for name in self.of]
        counted = shots.present.any(1)
        # In an image that is one pixel wide a centroid cannot deviate, and has no error to divide by.
        errors = torch.where(variance > 0.0, variance.sqrt(), 1.0)
        return MeasuredMoments(shots.output, shots.pixel_size, region, share, values, errors, counted, chosen)

    def deviations(self, predicted: Mapping[str, Tensor], target: MeasuredMoments) -> Tensor:
        """Return the deviation of every moment that counts, ``(n,)``."""
        found = _measured(predicted[target.output], target.region, target.background, target.pixel_size)
        off = (found - target.values) / target.errors
        return off[target.counted][:, target.chosen].flatten()

    def __repr__(self) -> str:
        return f"Moments(of={self.of}, robust={self.robust})"


def beam_moments(shots: Shots) -> Tensor:
    """Return centroids [m] and second moments [m^2] of the mean images, ``(settings, 5)``; see ``Moments``."""
    around = around_the_beam(shots.mean * shots.valid, shots.sigma)
    share = _share_of_background(shots.valid * (1.0 - around))
    return _measured(shots.mean, shots.valid * around, share, shots.pixel_size)


def around_the_beam(image: Tensor, sigma: Tensor) -> Tensor:
    """Return 1 around what stands out of the noise, 0 elsewhere, ``(settings, ny, nx)``."""
    import numpy as np
    from scipy import ndimage

    found = []
    for light, noise in zip(image.numpy(), sigma.numpy(), strict=True):
        smooth = ndimage.gaussian_filter(light, _SMOOTHING)
        floor = np.median(noise) / (2.0 * np.sqrt(np.pi) * _SMOOTHING)
        bright = smooth > max(_SHARE * smooth.max(), _STANDS_OUT * floor)
        if not bright.any():
            found.append(np.ones_like(light))
            continue
        rows, columns = np.nonzero(bright)
        grown = np.zeros_like(light)
        (top, bottom), (left, right) = (_wider(part.min(), part.max()) for part in (rows, columns))
        grown[top:bottom, left:right] = 1.0
        found.append(grown)
    return torch.tensor(np.array(found))


def _wider(first: int, last: int) -> tuple[int, int]:
    """Return the ends of an interval of pixels made wider by a part of its width on both sides."""
    more = round(_MARGIN * (last - first + 1)) + 2
    return max(int(first) - more, 0), int(last) + 1 + more


def _share_of_background(outside: Tensor) -> Tensor:
    """Return how much each pixel counts for the level of the background, ``(settings, ny, nx)``; 0 if they are few."""
    number = outside.sum((-2, -1), keepdim=True)
    return torch.where(number >= _ENOUGH, outside / number.clamp_min(1.0), torch.zeros_like(outside))


def _measured(image: Tensor, region: Tensor, background: Tensor, pixel_size: tuple[float, float]) -> Tensor:
    """Return the moments of what stands out of the background inside a region; prediction and data alike."""
    level = (image * background).sum((-2, -1), keepdim=True)
    return moments((image - level) * region, pixel_size)


def _variance(shots: Shots, region: Tensor, background: Tensor, values: Tensor) -> Tensor:
    """Return the variances of moments from noise of the pixels and from that of the level, ``(settings, 5)``."""
    x, y = axes(shots.mean, shots.pixel_size)
    dx, dy = (x - values[:, 0, None]).unsqueeze(1), (y - values[:, 1, None]).unsqueeze(2)
    level = (shots.mean * background).sum((-2, -1), keepdim=True)
    total = ((shots.mean - level) * region).sum((-2, -1), keepdim=True)
    total = torch.where(total > 0, total, torch.ones_like(total))
    one = torch.ones_like(region)
    second = values[:, 2:, None, None].unbind(1)
    influences = (dx, dy, dx.square() - second[0], dy.square() - second[1], dx * dy - second[2])
    found = []
    for influence in influences:
        own = influence * one * region / total
        # A pixel of the background acts through the level, which is taken off every pixel of the region.
        acting = own - background * own.sum((-2, -1), keepdim=True)
        found.append((shots.sigma * acting).square().sum((-2, -1)))
    return torch.stack(found, dim=-1)
