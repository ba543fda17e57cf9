"""The inverse of a strictly monotone function, exact and with derivatives of any order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lume_diff.models.transforms import is_wrapped

_STEPS = 80
"""Enough for bisection alone to reach the last digit of a double."""


def solve(
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Return where a strictly monotone function takes given values.

    Newton's method, with a bisection wherever it would leave the bracket or gain too little; then two steps of Newton's
    method with the graph, which give the derivatives of the implicit function up to the third order.

    Args:
        value_and_slope: the function and its derivative, ``(*batch, n)`` to two of the same shape, differentiable.
        target: values, ``(*batch, n)``.
        low, high: where the function is looked at, ``(*batch, n)``; a target beyond ends at the nearer one.

    Returns:
        Arguments, ``(*batch, n)``.

    Gradient:
        Exact up to the third order, inside of the bracket.

    Source:
        W. H. Press et al., Numerical Recipes, 3rd ed., section 9.4 (safeguarded Newton).
    """
    x = _bracketed(value_and_slope, target.detach(), low.detach(), high.detach())
    for _ in range(2):
        value, slope = value_and_slope(x)
        x = x - (value - target) / slope
    return x


def _bracketed(
    value_and_slope: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    can_stop = not is_wrapped(target)
    with torch.no_grad():
        low, high = (end.expand(target.shape) for end in (low, high))
        rising = value_and_slope(high)[0] > value_and_slope(low)[0]
        x, width = 0.5 * (low + high), high - low
        for _ in range(_STEPS):
            value, slope = value_and_slope(x)
            is_above = (value > target) == rising
            low, high = torch.where(is_above, low, x), torch.where(is_above, x, high)
            newton = x - (value - target) / slope
            is_good = (newton >= low) & (newton <= high) & (high - low < 0.9 * width)
            width = torch.where(is_good, high - low, width)
            middle = 0.5 * (low + high)
            after = torch.where((newton >= low) & (newton <= high) & (is_good | (value == target)), newton, middle)
            if can_stop and bool(((after - x).abs() <= 4.0 * torch.finfo(x.dtype).eps * x.abs()).all()):
                return after
            x = after
    return x
