"""Covariances of Gaussian processes, from the kernels of GPyTorch but in plain torch.

GPyTorch's own evaluation compares tensors and has autograd functions without forward derivatives, so that
``torch.func`` cannot pass it; and its distances, from expanded squares, lose half of the digits at neighbouring points.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.models.surrogates.spread import root

_TERMS = 12  # of the series, which then is exact to round-off below _SMALL
_SMALL = 0.1


def covariance(kernel: Any, x: Tensor, other: Tensor, paired: bool = False) -> Tensor:
    """Return the covariance of a Gaussian process between two sets of points.

    Args:
        kernel: GPyTorch's, made of ``RBFKernel``, ``MaternKernel``, ``RQKernel``, ``LinearKernel``, ``ScaleKernel``,
            ``AdditiveKernel`` and ``ProductKernel``.
        x: one set of points, shape `(*batch, n, d)`.
        other: the other set, shape `(*batch, m, d)`.
        paired: whether each point goes with the other one in its place only.

    Returns:
        Shape `(*batch, n, m)`, or `(*batch, n)` of pairs, in the square of the unit of the values.

    Raises:
        ValidationError: for another kernel.

    Gradient:
        Exact, at coinciding points too where the kernel is differentiable there.

    Source:
        C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning" (2006), chapter 4.
    """
    if kernel.active_dims is not None:
        x, other = x.index_select(-1, kernel.active_dims), other.index_select(-1, kernel.active_dims)

    return _of_columns(kernel, x, other, paired)


def _of_columns(kernel: Any, x: Tensor, other: Tensor, paired: bool) -> Tensor:
    """Return the covariance between points that have the kernel's columns only."""
    from gpytorch import kernels

    def per_kernel(value: Tensor) -> Tensor:
        return value[..., None] if paired else value[..., None, None]

    if type(kernel) is kernels.ScaleKernel:
        return per_kernel(kernel.outputscale) * _of_columns(kernel.base_kernel, x, other, paired)
    if type(kernel) is kernels.AdditiveKernel:
        return sum((covariance(part, x, other, paired) for part in kernel.kernels), start=x.new_zeros(()))
    if type(kernel) is kernels.ProductKernel:
        return math.prod((covariance(part, x, other, paired) for part in kernel.kernels), start=x.new_ones(()))
    if type(kernel) is kernels.LinearKernel:
        scaled = x * kernel.variance
        return (scaled * other).sum(-1) if paired else scaled @ other.transpose(-1, -2)
    if type(kernel) is kernels.RBFKernel:
        return (-0.5 * _squares(kernel, x, other, paired)).exp()
    if type(kernel) is kernels.RQKernel:
        alpha = per_kernel(kernel.alpha.squeeze(-1))
        return (1.0 + _squares(kernel, x, other, paired) / (2.0 * alpha)) ** -alpha
    if type(kernel) is kernels.MaternKernel:
        return matern(kernel.nu, _squares(kernel, x, other, paired))
    raise ValidationError(
        f"the Gaussian process has a {type(kernel).__name__}; expected RBFKernel, MaternKernel, RQKernel, "
        "LinearKernel, or scaled ones, sums and products of these"
    )


def matern(nu: float, squares: Tensor) -> Tensor:
    """Return Matérn's covariance of squared distances in units of the length scale.

    Near zero it is a series, whose derivatives are right at zero as well.

    Args:
        nu: 0.5, 1.5 or 2.5.
        squares: any shape.

    Gradient:
        Exact; for ``nu`` 0.5, which has a kink at zero, 0 there.
    """
    factors = {0.5: (1.0,), 1.5: (1.0, 1.0), 2.5: (1.0, 1.0, 1.0 / 3.0)}[nu]
    squares = 2.0 * nu * squares
    distance = root(squares)
    is_near = distance < _SMALL
    far = torch.where(is_near, 1.0, distance)
    direct = sum(factor * far**power for power, factor in enumerate(factors)) * (-far).exp()
    near = torch.where(is_near, squares, 0.0)
    coefficients = [_coefficient(factors, power) for power in range(_TERMS)]
    series = _polynomial(coefficients[::2], near) + root(near) * _polynomial(coefficients[1::2], near)
    return torch.where(is_near, series, direct)


def _coefficient(factors: tuple[float, ...], power: int) -> float:
    """Return what stands before a power of a in (f0 + f1 a + f2 a^2) exp(-a)."""
    return math.fsum(
        factor * (-1.0) ** (power - shift) / math.factorial(power - shift)
        for shift, factor in enumerate(factors)
        if power >= shift
    )


def _polynomial(coefficients: list[float], x: Tensor) -> Tensor:
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total


def _squares(kernel: Any, x: Tensor, other: Tensor, paired: bool) -> Tensor:
    """Return squared distances in units of the length scales."""
    if paired:
        return ((x - other) / kernel.lengthscale).square().sum(-1)
    return ((x.unsqueeze(-2) - other.unsqueeze(-3)) / kernel.lengthscale.unsqueeze(-2)).square().sum(-1)
