"""How far images of a bunch are from those that were measured: shape, size and pointing apart from each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.measures import axes, normalised, reciprocal
from lume_diff.calibration.reconstruction.alignment import Comparison


class Target(NamedTuple):
    """Measured images ``(settings, ny, nx)`` of unit sum, the mask of their pixels, and their centroids and sizes.

    Attributes:
        is_whole: whether no pixel is masked.
    """

    image: Tensor
    valid: Tensor
    pixel_size: tuple[float, float]
    centroid: Tensor
    size: Tensor
    is_whole: bool = False

    def to(self, dtype: torch.dtype) -> Target:
        """Return the same in another precision."""
        image, valid, centroid, size = (v.to(dtype) for v in (self.image, self.valid, self.centroid, self.size))
        return Target(image, valid, self.pixel_size, centroid, size, self.is_whole)


class Distance(NamedTuple):
    """Distances of images, ``(settings,)`` each.

    Attributes:
        aligned: sum of absolute differences after the centroids were laid on each other, between 0 and 2.
        size: sum of the absolute logarithms of the ratios of rms sizes.
        image: sum of absolute differences as the images are.
        pointing: squared distance of the centroids in measured beam sizes.
    """

    aligned: Tensor
    size: Tensor
    image: Tensor
    pointing: Tensor


def target_of(image: Tensor, valid: Tensor, pixel_size: tuple[float, float]) -> Target:
    """Return measured images with what is compared of them."""
    lit = normalised(image * valid)
    centroid, size = sizes(lit, pixel_size)
    return Target(lit, valid, pixel_size, centroid, size, bool((valid == 1.0).all()))


def sizes(image: Tensor, pixel_size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return centroids and rms sizes of images of any intensity in x and y, ``(..., 2)`` [m] each."""
    centroids, squares = [], []
    per_total = reciprocal(image.sum((-2, -1))).unsqueeze(-1)
    for axis, place in zip((-2, -1), axes(image, pixel_size), strict=True):
        share = image.sum(axis) * per_total
        centroid = share @ place
        centroids.append(centroid)
        squares.append((share * (place - centroid.unsqueeze(-1)).square()).sum(-1))
    return torch.stack(centroids, -1), torch.stack(squares, -1).clamp_min(_smallest(pixel_size)).sqrt()


def distances(predicted: Tensor, target: Target) -> Distance:
    """Compare predicted images ``(settings, ny, nx)`` of any intensity with measured ones.

    A prediction without any light on the screen is as far away as can be, and no number is divided by zero.

    Gradient:
        Exact.
    """
    seen = predicted if target.is_whole else predicted * target.valid
    pixel = seen.new_tensor(target.pixel_size)
    places = axes(seen, target.pixel_size)
    aligned, apart, centroid, variance = Comparison.apply(seen, target.image, *places, target.centroid, pixel)
    size = variance.clamp_min(_smallest(target.pixel_size)).sqrt()
    return Distance(
        aligned=aligned,
        size=(size / target.size).log().abs().sum(-1),
        image=apart,
        pointing=((centroid - target.centroid) / target.size).square().sum(-1),
    )


def _smallest(pixel_size: tuple[float, float]) -> float:
    """Return the smallest variance of an image [m^2]."""
    return 1e-3 * min(pixel_size) ** 2
