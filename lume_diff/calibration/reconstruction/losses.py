"""How far images of a bunch are from those that were measured: shape, size and pointing apart from each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.measures import axes, normalised, reciprocal


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
    """Return measured images with what is compared of them; light below zero does not count."""
    lit = normalised((image * valid).clamp_min(0.0))
    centroid, size = sizes(lit, pixel_size)
    return Target(lit, valid, pixel_size, centroid, size, bool((valid == 1.0).all()))


def sizes(image: Tensor, pixel_size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return centroids and rms sizes of images of any intensity in x and y, ``(..., 2)`` [m] each."""
    along = image.sum(-1)
    return _sizes(image.sum(-2), along, reciprocal(along.sum(-1)), axes(image, pixel_size), pixel_size)


def _sizes(
    across: Tensor, along: Tensor, per_total: Tensor, places: tuple[Tensor, Tensor], pixel_size: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return centroids and rms sizes from the sums over rows ``(..., nx)`` and over columns ``(..., ny)``."""
    centroids, squares = [], []
    for profile, place in zip((across, along), places, strict=True):
        share = profile * per_total.unsqueeze(-1)
        centroid = share @ place
        centroids.append(centroid)
        squares.append((share * (place - centroid.unsqueeze(-1)).square()).sum(-1))
    smallest = 1e-3 * min(pixel_size) ** 2
    return torch.stack(centroids, -1), torch.stack(squares, -1).clamp_min(smallest).sqrt()


def distances(predicted: Tensor, target: Target) -> Distance:
    """Compare predicted images ``(settings, ny, nx)`` of any intensity with measured ones.

    A prediction without any light on the screen is as far away as can be, and no number is divided by zero.

    Gradient:
        Exact.
    """
    seen = predicted if target.is_whole else predicted * target.valid
    along = seen.sum(-1)
    per_total = reciprocal(along.sum(-1))
    centroid, size = _sizes(seen.sum(-2), along, per_total, axes(seen, target.pixel_size), target.pixel_size)
    image = seen * per_total[:, None, None]
    moved = _shifted(image, target.centroid - centroid, target.pixel_size)
    return Distance(
        aligned=_sum_of_differences(moved, target.image),
        size=(size / target.size).log().abs().sum(-1),
        image=_sum_of_differences(image, target.image),
        pointing=((centroid - target.centroid) / target.size).square().sum(-1),
    )


def _sum_of_differences(image: Tensor, other: Tensor) -> Tensor:
    found: Tensor = torch.linalg.vector_norm(image - other, 1, (-2, -1))
    return found


def _shifted(image: Tensor, offset: Tensor, pixel_size: tuple[float, float]) -> Tensor:
    """Return images moved by ``offset (settings, 2)`` [m], between pixels by interpolation."""
    ny, nx = image.shape[-2:]
    back = -offset / offset.new_tensor(pixel_size)
    whole = back.detach().floor()
    part = (back - whole)[..., None, None]
    # A frame of zeros takes what is looked for beyond the edge; all pixels of an image move alike.
    framed = torch.nn.functional.pad(image, (1, 1, 1, 1))
    column, row = (
        (torch.arange(1, count + 2, device=image.device) + start.long().unsqueeze(-1)).clamp(0, count + 1)
        for count, start in zip((nx, ny), whole.unbind(-1), strict=True)
    )
    place = row.unsqueeze(-1) * (nx + 2) + column.unsqueeze(-2)
    found = framed.flatten(1).gather(1, place.flatten(1)).view(-1, ny + 1, nx + 1)
    found = torch.lerp(found[:, :-1], found[:, 1:], part[:, 1])
    return torch.lerp(found[..., :-1], found[..., 1:], part[:, 0])
