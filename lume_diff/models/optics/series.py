"""Transfer maps as power series in one strength, for elements of which only that strength varies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._assembly import place
from .linear import quadrupole

#: Powers of the strength that the series has, and the largest ``|k1| L^2`` at which these give the map to round-off.
TERMS, LIMIT = 12, 2.0


def quadrupole_series(
    length: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    tilt: Tensor | None = None,
    misalignment: Tensor | None = None,
) -> Tensor:
    """Expand the linear map of a quadrupole in its strength k1.

    Args:
        length: as of :func:`quadrupole` [m], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        tilt: as of :func:`quadrupole` [rad], shape `(*batch)`; None for none.
        misalignment: as of :func:`quadrupole` [m], shape `(*batch, 2)`; None for none.

    Returns:
        the coefficients of k1^0 ... k1^12 [m^(2 n) and the unit of the entry], shape `(*batch, 13, 7, 7)`. Their sum is
        the map to round-off, with its derivatives, where `|k1| length^2 <= 2`.

    Gradient:
        exact.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> k1 = 0.3
        >>> series = quadrupole_series(one, 1e8 * one, 510998.95)
        >>> total = sum(k1**n * series[n] for n in range(13))
        >>> torch.allclose(total, quadrupole(one, k1 * one, 1e8 * one, 510998.95), rtol=1e-14)
        True
    """
    square = length.square()
    terms = []
    for n in range(TERMS + 1):
        cosine = square.pow(n) / float(math.factorial(2 * n))
        sine = length * square.pow(n) / float(math.factorial(2 * n + 1))
        kick = length * square.pow(n - 1) / float(math.factorial(2 * n - 1)) if n else torch.zeros_like(length)
        sign = (-1.0) ** n
        # cos sqrt(u), L sinc sqrt(u) and -k1 L sinc sqrt(u), of u = k1 L^2 in x and of -u in y.
        terms.append(_focusing((sign * cosine, sign * sine, sign * kick), (cosine, sine, kick)))
    series = torch.stack(terms, dim=-3)
    if tilt is not None:
        series = place(series, tilt.unsqueeze(-1), None)
    if misalignment is not None:  # The displacement itself is in the constant term alone.
        dx, dy = (misalignment[..., i, None, None] for i in (0, 1))
        constant = -series[..., 0] * dx - series[..., 2] * dy
        series = torch.cat((series[..., :6].expand(*constant.shape, 6), constant.unsqueeze(-1)), dim=-1)
    zeroth = place(quadrupole(length, torch.zeros_like(length), energy, mass), tilt, misalignment)
    batch = torch.broadcast_shapes(series.shape[:-3], zeroth.shape[:-2])
    series, zeroth = series.expand(*batch, TERMS + 1, 7, 7), zeroth.expand(*batch, 7, 7)
    return torch.cat((zeroth.unsqueeze(-3), series[..., 1:, :, :]), dim=-3)


def _focusing(x: tuple[Tensor, Tensor, Tensor], y: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    zero = torch.zeros_like(x[0])
    rows = [[zero] * 7 for _ in range(7)]
    for at, (cosine, sine, kick) in ((0, x), (2, y)):
        rows[at][at] = rows[at + 1][at + 1] = cosine
        rows[at][at + 1], rows[at + 1][at] = sine, kick
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def sum_of_powers(series: Tensor, strength: Tensor) -> Tensor:
    """Add up a power series of maps.

    Args:
        series: coefficients of the powers from 0 to 12, shape `(n, 13, rows, columns)`.
        strength: what the powers are of, shape `(*batch, n)`.

    Returns:
        the maps, shape `(*batch, n, rows, columns)`.

    Gradient:
        exact, of any order.

    Example:
        >>> sum_of_powers(torch.ones(1, 13, 2, 2), torch.tensor([0.5]))[0, 0, 0].item()
        1.999755859375
    """
    square = strength * strength
    low = torch.stack((strength, square, square * strength, square * square), dim=-1)
    fourth = low[..., 3:]
    middle = low * fourth
    powers = torch.cat((low, middle, middle * fourth), dim=-1)
    flat, shape = series.flatten(-2), series.shape[-2:]
    if strength.dim() == 1:
        return torch.baddbmm(flat[:, :1], powers.unsqueeze(-2), flat[:, 1:]).view(-1, *shape)
    # One product for each element: the batch stays together behind it.
    powers = powers.flatten(0, -3).transpose(0, 1)
    maps = torch.baddbmm(flat[:, :1], powers, flat[:, 1:])
    return maps.view(len(series), *strength.shape[:-1], *shape).movedim(0, -3)
