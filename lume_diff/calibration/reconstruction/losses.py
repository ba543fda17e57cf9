"""How far images of a bunch are from those that were measured: shape, size and pointing apart from each other."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.measures import moments, normalised


class Target(NamedTuple):
    """Measured images ``(settings, ny, nx)`` of unit sum, the mask of their pixels, and their centroids and sizes."""

    image: Tensor
    valid: Tensor
    pixel_size: tuple[float, float]
    centroid: Tensor
    size: Tensor


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
    return Target(lit, valid, pixel_size, centroid, size)


def sizes(image: Tensor, pixel_size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return centroids and rms sizes of images of any intensity in x and y, ``(..., 2)`` [m] each."""
    found = moments(image, pixel_size)
    smallest = 1e-3 * min(pixel_size) ** 2
    return found[..., :2], found[..., 2:4].clamp_min(smallest).sqrt()


def distances(predicted: Tensor, target: Target) -> Distance:
    """Compare predicted images ``(settings, ny, nx)`` of any intensity with measured ones.

    A prediction without any light on the screen is as far away as can be, and no number is divided by zero.

    Gradient:
        Exact.
    """
    image = normalised(predicted * target.valid)
    centroid, size = sizes(image, target.pixel_size)
    moved = _shifted(image, target.centroid - centroid, target.pixel_size)
    return Distance(
        aligned=(moved - target.image).abs().sum((-2, -1)),
        size=(size / target.size).log().abs().sum(-1),
        image=(image - target.image).abs().sum((-2, -1)),
        pointing=((centroid - target.centroid) / target.size).square().sum(-1),
    )


def _shifted(image: Tensor, offset: Tensor, pixel_size: tuple[float, float]) -> Tensor:
    """Return images moved by ``offset (settings, 2)`` [m], between pixels by interpolation."""
    ny, nx = image.shape[-2:]
    one, zero = torch.ones_like(offset[:, 0]), torch.zeros_like(offset[:, 0])
    across = -2.0 * offset[:, 0] / (nx * pixel_size[0])
    along = -2.0 * offset[:, 1] / (ny * pixel_size[1])
    matrix = torch.stack((torch.stack((one, zero, across), -1), torch.stack((zero, one, along), -1)), -2)
    flat = image.unsqueeze(1)
    grid = torch.nn.functional.affine_grid(matrix, list(flat.shape), align_corners=False)
    return torch.nn.functional.grid_sample(flat, grid, align_corners=False).squeeze(1)
