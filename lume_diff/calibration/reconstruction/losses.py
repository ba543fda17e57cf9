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
        powers: of the distances of columns and of rows from the centroid, in pixels, 0 to 2: ``(settings, nx, 3)`` and
            ``(settings, ny, 3)``.
        variance: squared sizes in pixels, ``(settings, 2)``.
        smallest: variance that counts for an image, in pixels in x and y, ``(2,)``.
    """

    image: Tensor
    valid: Tensor
    pixel_size: tuple[float, float]
    centroid: Tensor
    size: Tensor
    is_whole: bool
    powers: tuple[Tensor, Tensor]
    variance: Tensor
    smallest: Tensor

    def to(self, dtype: torch.dtype) -> Target:
        """Return the same in another precision."""
        image, valid, centroid, size = (v.to(dtype) for v in (self.image, self.valid, self.centroid, self.size))
        columns, rows = (powers.to(dtype) for powers in self.powers)
        variance, smallest = self.variance.to(dtype), self.smallest.to(dtype)
        rest = (self.pixel_size, centroid, size, self.is_whole, (columns, rows), variance, smallest)
        return Target(image, valid, *rest)


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
    away = [
        (place - centre.unsqueeze(-1)) / width
        for place, centre, width in zip(axes(lit, pixel_size), centroid.unbind(-1), pixel_size, strict=True)
    ]
    columns, rows = (torch.stack((torch.ones_like(d), d, d.square()), dim=-1) for d in away)
    square = lit.new_tensor(pixel_size).square()
    return Target(
        image=lit,
        valid=valid,
        pixel_size=pixel_size,
        centroid=centroid,
        size=size,
        is_whole=bool((valid == 1.0).all()),
        powers=(columns, rows),
        variance=size.square() / square,
        smallest=_smallest(pixel_size) / square,
    )


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
    return Distance(*Comparison.apply(seen, target))


def _smallest(pixel_size: tuple[float, float]) -> float:
    """Return the smallest variance of an image [m^2]."""
    return 1e-3 * min(pixel_size) ** 2
