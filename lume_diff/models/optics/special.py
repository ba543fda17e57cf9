"""Special functions of accelerator optics, with derivatives that are right at and near their singular points.

A transfer map written with `sin(sqrt(k) L) / sqrt(k)` or `(1 - cos(sqrt(k) L)) / k` is 0/0 at k = 0, and its automatic
derivatives are wrong well before that. Written with Stumpff functions it is a smooth function of k of either sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lume_diff.errors import ValidationError

_HIGHEST = 7
# Closed forms replace the series of so many terms beyond this |u|. They lose digits of C_k at small u, and more of
# its derivatives, the higher k is; the series loses digits at large u > 0. Powers of two,
# so that scaling with them is exact.
_RANGES = {1: (0.25, 8), 3: (8.0, 16), 7: (32.0, 28)}


def _powers(x: Tensor, count: int) -> Tensor:
    """Return x^0 ... x^(count - 1), count a multiple of four, along a new last dimension, by products only."""
    x2 = x * x
    low = torch.stack((torch.ones_like(x), x, x2, x2 * x), dim=-1)
    x4 = x2 * x2
    high = [torch.ones_like(x), x4]
    while len(high) < count // 4:
        high.append(high[-1] * x4)
    product = torch.stack(high, dim=-1).unsqueeze(-1) * low.unsqueeze(-2)
    return product.flatten(-2)


def _stumpff_table(orders: tuple[int, ...]) -> Tensor:
    """Return the coefficients of (u / limit)^n; unscaled powers of u would overflow in single precision."""
    limit, count = _range(orders)
    return torch.tensor(
        [[(-limit) ** n / math.factorial(2 * n + k) for k in orders] for n in range(count)],
        dtype=torch.float64,
        device="cpu",
    )


def _range(orders: tuple[int, ...]) -> tuple[float, int]:
    return next(_RANGES[k] for k in _RANGES if max(orders) <= k)


# Made at import: a tensor made on first use inside a torch.func transform or in inference mode must not outlive it.
_TABLES = {orders: _stumpff_table(orders) for orders in ((0, 1), (1,), (1, 2), (0, 1, 2, 3), (5, 7))}


def stumpff(u: Tensor, orders: Sequence[int] = (0, 1, 2, 3)) -> tuple[Tensor, ...]:
    r"""Evaluate the Stumpff functions C_k(u) = sum_n (-u)^n / (2n + k)!.

    C_0 = cos sqrt(u), C_1 = sin sqrt(u) / sqrt(u), C_{k+2} = (1/k! - C_k) / u, continued to u <= 0, where they
    become hyperbolic. Asking for several orders at once costs hardly more than asking for one.

    Args:
        u: argument, of either sign and any size [1], shape `(*batch)`.
        orders: the k wanted, each from 0 to 7.

    Returns:
        C_k(u) for each order asked for [1], each of shape `(*batch)`.

    Raises:
        ValidationError: an order is outside 0 to 7.

    Gradient:
        exact, of any order, and accurate to round-off at and near u = 0; dC_k/du = (k C_{k+2} - C_{k+1}) / 2.

    Source:
        K. Stumpff, Himmelsmechanik I (1959), section 41; J. M. A. Danby, Fundamentals of Celestial Mechanics
        (1988), section 6.9.

    Example:
        >>> import torch
        >>> c0, c1 = stumpff(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), (0, 1))
        >>> torch.allclose(c1[2], torch.tensor(1.0, dtype=torch.float64).sin())
        True
    """
    orders = tuple(orders)
    top = max(orders)
    if min(orders) < 0 or top > _HIGHEST:
        raise ValidationError(f"orders = {orders}: expected integers from 0 to {_HIGHEST}; ask for those only")
    limit, count = _range(orders)
    table = (_TABLES[orders] if orders in _TABLES else _stumpff_table(orders)).to(dtype=u.dtype, device=u.device)

    is_positive, is_negative = u > limit, u < -limit
    is_far = is_positive | is_negative
    near = (_powers(torch.where(is_far, 0.0, u) * (1.0 / limit), count) @ table).unbind(-1)

    u_far = torch.where(is_far, u, limit)
    root_positive = torch.where(is_positive, u, limit).sqrt()
    root_negative = torch.where(is_negative, -u, limit).sqrt()
    far: dict[int, Tensor] = {}
    if any(k % 2 == 0 for k in orders):
        far[0] = torch.where(is_positive, root_positive.cos(), root_negative.cosh())
    if any(k % 2 == 1 for k in orders):
        far[1] = torch.where(is_positive, root_positive.sin() / root_positive, root_negative.sinh() / root_negative)
    for k in range(2, top + 1):
        if k - 2 in far:
            far[k] = (1.0 / math.factorial(k - 2) - far[k - 2]) / u_far
    return tuple(torch.where(is_far, far[k], value) for k, value in zip(orders, near, strict=True))


def sinc(x: Tensor) -> Tensor:
    """Evaluate sin(x) / x, which is 1 at x = 0.

    Args:
        x: argument [rad], shape `(*batch)`.

    Returns:
        sin(x) / x [1], shape `(*batch)`.

    Gradient:
        exact, of any order, and accurate to round-off at and near x = 0.

    Example:
        >>> import torch
        >>> sinc(torch.tensor(0.0)).item()
        1.0
    """
    return stumpff(x * x, (1,))[0]


_LOG_LIMIT, _LOG_TERMS = 0.4, 20
_ATANH_TABLE = torch.tensor([1.0 / (2 * n + 1) for n in range(_LOG_TERMS)], dtype=torch.float64, device="cpu")


def log1p_over_x(x: Tensor) -> Tensor:
    r"""Evaluate log(1 + x) / x, which is 1 at x = 0.

    Near zero it is atanh(w) / w * 2 / (2 + x) with w = x / (2 + x), a fast series in w^2.

    Args:
        x: argument, above -1 [1], shape `(*batch)`.

    Returns:
        log(1 + x) / x [1], shape `(*batch)`.

    Gradient:
        exact, of any order, and accurate to round-off at and near x = 0.

    Example:
        >>> import torch
        >>> log1p_over_x(torch.tensor(0.0)).item()
        1.0
    """
    is_far = x.abs() > _LOG_LIMIT
    x_near = torch.where(is_far, 0.0, x)
    x_far = torch.where(is_far, x, 1.0)
    scale = (2.0 + x_near).reciprocal()
    w = x_near * scale
    series = _powers(w * w, _LOG_TERMS) @ _ATANH_TABLE.to(dtype=x.dtype, device=x.device)
    return torch.where(is_far, x_far.log1p() / x_far, 2.0 * scale * series)


def sqrt1p_minus_1(x: Tensor) -> Tensor:
    """Evaluate sqrt(1 + x) - 1 without cancellation.

    Args:
        x: argument, above -1 [1], shape `(*batch)`.

    Returns:
        sqrt(1 + x) - 1 [1], shape `(*batch)`.

    Gradient:
        exact, of any order.

    Example:
        >>> import torch
        >>> sqrt1p_minus_1(torch.tensor(3.0)).item()
        1.0
    """
    return x / ((1.0 + x).sqrt() + 1.0)


def relativistic_factors(energy: Tensor, mass: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Compute gamma, 1 / gamma^2 and beta of the reference particle.

    Args:
        energy: total energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.

    Returns:
        gamma, 1 / gamma^2 and beta [1], each of shape `(*batch)`.

    Gradient:
        exact.

    Example:
        >>> gamma, igamma2, beta = relativistic_factors(torch.tensor(1e8), 510998.95)
        >>> bool(gamma > 195)
        True
    """
    gamma = energy / mass
    igamma2 = gamma.square().reciprocal()
    return gamma, igamma2, (1.0 - igamma2).sqrt()
