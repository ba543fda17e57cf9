"""Weighted sums with safe gradients: the arithmetic below all bunch statistics."""

from __future__ import annotations

import torch
from torch import Tensor


def safe_sqrt(value: Tensor) -> Tensor:
    """Return the square root, 0 with a zero gradient at and below 0 (round-off); NaN stays NaN."""
    zero = value <= 0.0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, value)))


def safe_divide(numerator: Tensor, denominator: Tensor, otherwise: float) -> Tensor:
    """Return the quotient, and ``otherwise`` with a zero gradient where the denominator is 0."""
    zero = denominator == 0.0
    return torch.where(zero, otherwise, numerator / torch.where(zero, 1.0, denominator))


def round_off_of_constant(values: Tensor, mean: Tensor) -> Tensor:
    """Return what a mean lacks where all values are the same, and 0 elsewhere, as a constant, (*batch,).

    Added to the mean it makes the spread of a constant exactly 0, so that its square root is recognised as
    singular; it is below the last digits, so no derivative belongs to it.
    """
    values = values.detach()
    constant = torch.amin(values, -1) == torch.amax(values, -1)
    return torch.where(constant, values[..., 0] - mean.detach(), 0.0)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of products over the last dimension, (*batch,)."""
    return torch.linalg.vecdot(a, b)


def percentile(values: Tensor, weight: Tensor, fraction: float) -> Tensor:
    """Return the weighted percentile: linear between the mid-points of the sorted particles' weights.

    Particle k of the sorted ones stands at (S_k - w_k / 2) / S_n, where S is the cumulative weight, which is
    Hazen's definition for equal weights. Particles without weight are left out.

    Args:
        values: (*batch, n).
        weight: (*batch, n).
        fraction: between 0 and 1.

    Returns:
        The percentile, (*batch,).

    Gradient: exact, piecewise.

    Source: R. J. Hyndman and Y. Fan, "Sample quantiles in statistical packages", Am. Stat. 50 (1996) 361,
    definition 5, with weights.
    """
    counted = weight > 0.0
    order = torch.argsort(torch.where(counted, values.detach(), torch.inf), dim=-1)
    largest = torch.amax(torch.where(counted, values, -torch.inf), -1, keepdim=True)
    values = torch.gather(torch.where(counted, values, largest), -1, order)
    weight = torch.gather(weight.expand(values.shape), -1, order)
    cumulative = torch.cumsum(weight, dim=-1)
    total = cumulative[..., -1:]
    position = (cumulative - 0.5 * weight) / torch.where(total == 0.0, 1.0, total)
    last = values.shape[-1] - 1
    above = (position < fraction).sum(dim=-1, keepdim=True)
    low, high = (above - 1).clamp(0, last), above.clamp(0, last)
    v0, v1 = torch.gather(values, -1, low), torch.gather(values, -1, high)
    p0, p1 = torch.gather(position, -1, low), torch.gather(position, -1, high)
    share = safe_divide(fraction - p0, p1 - p0, 0.0)
    return (v0 + share * (v1 - v0)).squeeze(-1)


def living_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean, (*batch,); of all particles equally where no weight is left."""
    weight = torch.where(weight.sum(-1, keepdim=True) > 0.0, weight, 1.0)
    mean = dot(weight, values) / weight.sum(-1)
    return mean + round_off_of_constant(values, mean)
