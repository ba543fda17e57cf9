"""What images say: projections, centroids and sizes, in torch, so that prediction and data are measured alike."""

from __future__ import annotations

import torch
from torch import Tensor


def axes(image: Tensor, pixel_size: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Return the positions of columns ``(nx,)`` and rows ``(ny,)`` [m], 0 at the middle of the image."""
    ny, nx = image.shape[-2:]
    x, y = (
        (torch.arange(count, dtype=image.dtype, device=image.device) - 0.5 * (count - 1)) * size
        for count, size in zip((nx, ny), pixel_size, strict=True)
    )
    return x, y


def normalised(image: Tensor) -> Tensor:
    """Return images whose pixels add up to one; one without light stays as it is."""
    total = image.sum((-2, -1), keepdim=True)
    lit = total > 0
    return torch.where(lit, image / torch.where(lit, total, torch.ones_like(total)), image)


def reciprocal(total: Tensor) -> Tensor:
    """Return ``1 / total``, and zero where there is no light to divide by."""
    lit = total > 0
    return torch.where(lit, 1.0 / torch.where(lit, total, 1.0), 0.0)


def moments(image: Tensor, pixel_size: tuple[float, float]) -> Tensor:
    """Return ``mean_x, mean_y`` [m] and ``cov_x__x, cov_y__y, cov_x__y`` [m^2] of images, ``(*batch, 5)``.

    An image without light has zeros.
    """
    x, y = axes(image, pixel_size)
    share = normalised(image)
    across, along = share.sum(-2), share.sum(-1)
    mean_x, mean_y = across @ x, along @ y
    dx, dy = x - mean_x.unsqueeze(-1), y - mean_y.unsqueeze(-1)
    cov_xx = (across * dx.square()).sum(-1)
    cov_yy = (along * dy.square()).sum(-1)
    cov_xy = ((share @ dx.unsqueeze(-1)).squeeze(-1) * dy).sum(-1)
    return torch.stack((mean_x, mean_y, cov_xx, cov_yy, cov_xy), dim=-1)


def projections(image: Tensor) -> Tensor:
    """Return the sums over rows and over columns one after the other, ``(*batch, nx + ny)``."""
    return torch.cat((image.sum(-2), image.sum(-1)), dim=-1)


def fitted_amplitude(predicted: Tensor, measured: Tensor, weight: Tensor, dim: tuple[int, ...]) -> Tensor:
    """Return the factor on ``predicted`` that comes nearest to ``measured``, for each image; 0 without a prediction.

    The intensity of a screen is in units of its own, so every image has a free factor, which is solved for exactly.
    """
    above = (weight * predicted * measured).sum(dim, keepdim=True)
    below = (weight * predicted.square()).sum(dim, keepdim=True)
    lit = below > 0
    return torch.where(lit, above / torch.where(lit, below, torch.ones_like(below)), torch.zeros_like(below))
