r"""Second-order transfer maps of whole stacks of elements, smooth in every parameter.

A map is a tensor T of shape `(*batch, 7, 7, 7)` that acts as z_i -> sum_jk T_ijk z_j z_k on the coordinates of
:mod:`.linear`; because the seventh coordinate is 1, T[..., 6, :] holds the first-order map. The layout and, away from
its singular points, the values are Cheetah 0.8.4's.

Three integrals of the dispersion function d(s) = (1 - cos(sqrt(k) s)) / k differ from their definition in Cheetah
0.8.4, and with them the maps of sextupoles and of bends with k1:

* J2 = integral of d^2: Cheetah lacks a factor 1 / kx2 (0.00614 instead of 0.00361 at k = 1.7, L = 0.6);
* J_d, for a sextupole L^4 / 24: Cheetah has L^4 / 3, so that (with x = 1, px = 2, y = 3, py = 4) T_144 is 8 times
  too large and T_324 is k2 L^4 times -1/2 instead of 1/12;
* J3 = integral of d^3: Cheetah diverges for kx2 -> 0 (0.00500 instead of 0.00044 at k = 1.7, L = 0.6).

`integrals="cheetah"` keeps the first two as Cheetah has them, `integrals="exact"` corrects them; J3 is always exact.
With exact integrals the maps are symplectic to second order.

Source: F. C. Iselin, The MAD Program Physical Methods Manual (1994), section 5; K. L. Brown, SLAC-75 (1982).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lume_diff.errors import ValidationError

from . import linear
from ._assembly import displacement_matrices, edge_matrix, rotation_matrix
from .bend import bend_focusing, edge_strengths
from .special import relativistic_factors, stumpff

Integrals = Literal["cheetah", "exact"]
Terms = Mapping[tuple[int, int, int], Tensor]


@lru_cache(maxsize=16)
def _cells(keys: tuple[tuple[int, int, int], ...]) -> list[int]:
    """Return where each cell of T[:, :6, :] finds its value; a list, as a cached tensor must not leave a transform."""
    where = {key: number for number, key in enumerate(keys)}
    return [where.get((i, j, k), len(keys)) for i in range(7) for j in range(6) for k in range(7)]


def _assemble(terms: Terms, first_order: Tensor) -> Tensor:
    """Build T from its second-order terms and the first-order map."""
    entries = torch.broadcast_tensors(first_order[..., 0, 0], *terms.values())[1:]
    table = torch.stack((*entries, torch.zeros_like(entries[0])), dim=-1)
    shape = table.shape[:-1]
    cells = torch.tensor(_cells(tuple(terms)), dtype=torch.int64, device=table.device)
    quadratic = table.index_select(-1, cells).reshape(*shape, 7, 6, 7)
    return torch.cat((quadratic, first_order.expand(*shape, 7, 7).unsqueeze(-2)), dim=-2)


def _between(exit_: Tensor, t: Tensor, entrance: Tensor) -> Tensor:
    """Return the map of: linear map `entrance`, then T, then linear map `exit_`."""
    t = (exit_ @ t.flatten(-2)).unflatten(-1, (7, 7))
    entrance = entrance.unsqueeze(-3)
    return entrance.mT @ t @ entrance


def _place(t: Tensor, tilt: Tensor | None, misalignment: Tensor | None) -> Tensor:
    if tilt is not None:
        rotation = rotation_matrix(tilt)
        t = _between(rotation.mT, t, rotation)
    if misalignment is not None:
        entrance, exit_ = displacement_matrices(misalignment)
        t = _between(exit_, t, entrance)
    return t


def _drift_terms(length: Tensor, energy: Tensor, mass: Tensor | float) -> dict[tuple[int, int, int], Tensor]:
    _, igamma2, beta = relativistic_factors(energy, mass)
    slip = length / beta
    half = 0.5 * slip
    return {
        **{(0, 1, 5): -slip, (2, 3, 5): -slip, (4, 1, 1): half, (4, 3, 3): half},
        (4, 5, 5): 1.5 * length * igamma2 / (beta * beta * beta),
    }


def second_order_drift(length: Tensor, energy: Tensor, mass: Tensor | float) -> Tensor:
    """Build the second-order map of a drift.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.

    Returns:
        T, shape `(*batch, 7, 7, 7)`.

    Gradient:
        exact.

    Example:
        >>> second_order_drift(torch.tensor(2.0), torch.tensor(1e8), 510998.95).shape
        torch.Size([7, 7, 7])
    """
    return _assemble(_drift_terms(length, energy, mass), linear.drift(length, energy, mass))


def second_order_quadrupole(
    length: Tensor,
    k1: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    tilt: Tensor | None = None,
    misalignment: Tensor | None = None,
) -> Tensor:
    """Build the second-order map of a quadrupole.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        k1: normalised gradient, positive focuses in x [m^-2], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        tilt: rotation about the beam axis [rad], shape `(*batch)`; None for none.
        misalignment: displacement (dx, dy) [m], shape `(*batch, 2)`; None for none.

    Returns:
        T, shape `(*batch, 7, 7, 7)`.

    Gradient:
        exact, also at k1 = 0.

    Example:
        >>> one = torch.tensor(1.0)
        >>> second_order_quadrupole(one, 0.0 * one, 1e8 * one, 510998.95).shape
        torch.Size([7, 7, 7])
    """
    _, igamma2, beta = relativistic_factors(energy, mass)
    u = k1 * length.square()
    c0, c1 = stumpff(torch.stack((u, -u)), (0, 1))
    (cx, cy), (sx, sy) = c0.unbind(0), (c1 * length).unbind(0)
    half = 0.5 / beta
    k_half, k_quarter = k1 * half, 0.5 * k1 * half
    scx, scy = sx * cx, sy * cy
    diagonal_x, diagonal_y = k_half * length * sx, -k_half * length * sy
    terms = {
        **{(0, 0, 5): diagonal_x, (1, 1, 5): diagonal_x, (2, 2, 5): diagonal_y, (3, 3, 5): diagonal_y},
        **{(0, 1, 5): -half * (sx + length * cx), (2, 3, 5): -half * (sy + length * cy)},
        **{(1, 0, 5): -k_half * (sx - length * cx), (3, 2, 5): k_half * (sy - length * cy)},
        **{(4, 0, 0): k_quarter * (length - scx), (4, 2, 2): -k_quarter * (length - scy)},
        **{(4, 0, 1): -k_half * sx * sx, (4, 2, 3): k_half * sy * sy},
        **{(4, 1, 1): 0.5 * half * (length + scx), (4, 3, 3): 0.5 * half * (length + scy)},
        (4, 5, 5): 1.5 * length * igamma2 / (beta * beta * beta),
    }
    return _place(_assemble(terms, linear.quadrupole(length, k1, energy, mass)), tilt, misalignment)


def dispersion_integrals(length: Tensor, k: Tensor, integrals: Integrals = "exact") -> tuple[Tensor, Tensor]:
    r"""Compute J2 and J3, the integrals from 0 to L of d(s)^2 and d(s)^3 with d(s) = (1 - cos(sqrt(k) s)) / k.

    J2 = L^5 (8 C_5(4u) - 2 C_5(u)) and J3 = L^7 (15/4 C_7(u) - 96 C_7(4u) + 729/4 C_7(9u)) with u = k L^2.

    Args:
        length: length L [m], shape `(*batch)`.
        k: focusing strength, of either sign [m^-2], shape `(*batch)`.
        integrals: "exact", or "cheetah" for J2 as Cheetah 0.8.4 has it, which is k J2.

    Returns:
        J2 [m^5] and J3 [m^7], each of shape `(*batch)`.

    Raises:
        ValidationError: an unknown `integrals`.

    Gradient:
        exact, also at k = 0.

    Example:
        >>> j2, j3 = dispersion_integrals(torch.tensor(1.0), torch.tensor(0.0))
        >>> round(1.0 / j2.item()), round(1.0 / j3.item())
        (20, 56)
    """
    _check(integrals)
    length2 = length * length
    u = k * length2
    c5, c7 = stumpff(torch.stack((u, 4.0 * u, 9.0 * u)), (5, 7))
    length5 = length2 * length2 * length
    j2 = length5 * (8.0 * c5[1] - 2.0 * c5[0])
    j3 = length5 * length2 * (3.75 * c7[0] - 96.0 * c7[1] + 182.25 * c7[2])
    return (k * j2 if integrals == "cheetah" else j2), j3


def _check(integrals: Integrals) -> None:
    if integrals not in ("cheetah", "exact"):
        raise ValidationError(f"integrals = {integrals!r}: expected 'cheetah' or 'exact'")


def _bend_terms(
    length: Tensor, k1: Tensor, hx: Tensor, energy: Tensor, mass: Tensor | float, integrals: Integrals
) -> Terms:
    _, igamma2, beta = relativistic_factors(energy, mass)
    kx2, cx, sx, dx, j1, cy, sy = bend_focusing(length, k1, hx)
    j2, j3 = dispersion_integrals(length, kx2, integrals)
    ib = 1.0 / beta
    h, h2 = hx * ib, hx * hx * ib  # curvature and its square over beta
    hib = h * ib
    khk = 2.0 * hx * k1
    sext = h * khk / 6.0
    k_half = 0.5 * k1 * ib
    dx2, sxdx = dx * dx, sx * dx
    scx, scy = sx * cx, sy * cy
    lcx, lcy = length * cx, length * cy
    hk1, hdx, hsx = hx * k1, hx * dx, hx * sx
    mixed = sx * dx2 - 2.0 * cx * j2
    cubic = dx2 * dx - 2.0 * sx * j2
    axis_y = (h2 * j1 - 0.5 * length * ib) * k1 * sy
    return {
        (0, 0, 0): -khk * (sx * sx + dx) / 6.0 - 0.5 * hx * kx2 * sx * sx,
        (0, 0, 1): -khk * sxdx / 3.0 + hx * scx,
        (0, 1, 1): -khk * dx2 / 6.0 + 0.5 * hdx * cx,
        (0, 0, 5): -sext * (3.0 * sx * j1 - dx2) + h2 * sx * sx + k_half * length * sx,
        (0, 1, 5): -sext * mixed + 0.5 * h2 * (sxdx + cx * j1) - 0.5 * ib * (sx + lcx),
        (0, 5, 5): -sext * h * cubic + 0.5 * hib * (hx * hx * sx * j1 - length * sx - igamma2 * dx),
        (0, 2, 2): 0.5 * hk1 * dx,
        (0, 3, 3): -0.5 * hdx,
        (1, 0, 0): -khk * sx * (1.0 + 2.0 * cx) / 6.0,
        (1, 0, 1): -khk * dx * (1.0 + 2.0 * cx) / 3.0,
        (1, 1, 1): -khk * sxdx / 3.0 - 0.5 * hsx,
        (1, 0, 5): -sext * (3.0 * cx * j1 + sxdx) - k_half * (sx - lcx),
        (1, 1, 5): -sext * (3.0 * sx * j1 + dx2) + k_half * length * sx,
        (1, 5, 5): -sext * h * mixed - 0.5 * hib * (k1 * (cx * j1 - sxdx) + igamma2 * sx),
        (1, 2, 2): 0.5 * hk1 * sx,
        (1, 3, 3): -0.5 * hsx,
        (2, 0, 2): hk1 * sx * sy,
        (2, 0, 3): hsx * cy,
        (2, 1, 2): hk1 * dx * sy,
        (2, 1, 3): hdx * cy,
        (2, 2, 5): axis_y,
        (2, 3, 5): h2 * j1 * cy - 0.5 * ib * (sy + lcy),
        (3, 0, 2): hk1 * sx * cy,
        (3, 0, 3): hk1 * sx * sy,
        (3, 1, 2): hk1 * dx * cy,
        (3, 1, 3): hk1 * dx * sy,
        (3, 2, 5): h2 * k1 * j1 * cy + k_half * (sy - lcy),
        (3, 3, 5): axis_y,
        (4, 0, 0): 0.5 * (-sext * (sxdx + 3.0 * j1) + k_half * (length - scx)),
        (4, 0, 1): -sext * dx2 - k_half * sx * sx,
        (4, 1, 1): -sext * j2 + 0.5 * ib * sx + 0.5 * k_half * (j1 - sxdx),
        (4, 0, 5): -sext * h * (3.0 * dx * j1 - 4.0 * j2) - hib * (0.5 * k1 * j1 * (1.0 + cx) + igamma2 * sx),
        (4, 1, 5): -sext * h * cubic - hib * (0.5 * k1 * sx * j1 + igamma2 * dx),
        (4, 5, 5): -sext * h * h * (3.0 * j3 - 2.0 * dx * j2)
        - hib * h * k1 * (sx * dx2 - j2 * (1.0 + 2.0 * cx)) / 6.0
        - 1.5 * ib * ib * ib * igamma2 * (hx * hx * j1 - length),
        (4, 2, 2): 0.5 * (h2 * k1 * j1 - k_half * (length - scy)),
        (4, 2, 3): k_half * sy * sy,
        (4, 3, 3): -0.5 * h2 * j1 + 0.25 * ib * (length + scy),
    }


def second_order_dipole(
    length: Tensor,
    angle: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    k1: Tensor | None = None,
    e1: Tensor | None = None,
    e2: Tensor | None = None,
    tilt: Tensor | None = None,
    gap: Tensor | None = None,
    fringe_integral: Tensor | None = None,
    fringe_integral_exit: Tensor | None = None,
    integrals: Integrals = "cheetah",
) -> Tensor:
    """Build the second-order map of a sector bend; its pole faces act to first order, as in Cheetah.

    Args:
        length: arc length, not zero [m], shape `(*batch)`.
        angle: bending angle [rad], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        k1: normalised gradient of the body [m^-2], shape `(*batch)`; None for 0.
        e1: angle of the entrance face [rad], shape `(*batch)`; None for 0. Add `angle / 2` for a rectangular bend.
        e2: angle of the exit face [rad], shape `(*batch)`; None for 0.
        tilt: rotation about the beam axis [rad], shape `(*batch)`; None for none.
        gap: full gap [m], shape `(*batch)`; None for 0.
        fringe_integral: field integral of the entrance fringe [1], shape `(*batch)`; None for 0.
        fringe_integral_exit: field integral of the exit fringe [1], shape `(*batch)`; None for `fringe_integral`.
        integrals: "cheetah" or "exact", which matters where k1 != 0; see the module.

    Returns:
        T, shape `(*batch, 7, 7, 7)`.

    Raises:
        ValidationError: an unknown `integrals`.

    Gradient:
        exact, also at angle = 0 and at k1 = -hx^2.

    Example:
        >>> one = torch.tensor(1.0)
        >>> second_order_dipole(one, 0.1 * one, 1e8 * one, 510998.95).shape
        torch.Size([7, 7, 7])
    """
    hx = angle / length
    k1 = torch.zeros_like(hx) if k1 is None else k1
    body = linear.dipole(length, angle, energy, mass, k1)
    t = _assemble(_bend_terms(length, k1, hx, energy, mass, integrals), body)
    if e1 is not None or e2 is not None or fringe_integral is not None or fringe_integral_exit is not None:
        fringe_integral_exit = fringe_integral if fringe_integral_exit is None else fringe_integral_exit
        flat = torch.zeros_like(hx)
        entrance = edge_strengths(hx, flat if e1 is None else e1, fringe_integral, gap)
        exit_ = edge_strengths(hx, flat if e2 is None else e2, fringe_integral_exit, gap)
        t = _between(edge_matrix(*exit_), t, edge_matrix(*entrance))
    return _place(t, tilt, None)


def second_order_sextupole(
    length: Tensor,
    k2: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    tilt: Tensor | None = None,
    misalignment: Tensor | None = None,
    integrals: Integrals = "cheetah",
) -> Tensor:
    """Build the second-order map of a sextupole.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        k2: normalised second derivative of the field [m^-3], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        tilt: rotation about the beam axis [rad], shape `(*batch)`; None for none.
        misalignment: displacement (dx, dy) [m], shape `(*batch, 2)`; None for none.
        integrals: "cheetah" or "exact"; see the module.

    Returns:
        T, shape `(*batch, 7, 7, 7)`.

    Raises:
        ValidationError: an unknown `integrals`.

    Gradient:
        exact, also at k2 = 0.

    Example:
        >>> one = torch.tensor(1.0)
        >>> second_order_sextupole(one, 3.0 * one, 1e8 * one, 510998.95)[1, 0, 0].item()
        -1.5
    """
    _check(integrals)
    kl = k2 * length
    kl2, kl3 = kl * length, kl * length * length
    kl4 = kl3 * length
    jd = kl4 / (3.0 if integrals == "cheetah" else 24.0)
    terms = {
        **_drift_terms(length, energy, mass),
        **{(0, 0, 0): -kl2 / 4.0, (0, 0, 1): -kl3 / 6.0, (0, 1, 1): -kl4 / 24.0},
        **{(0, 2, 2): kl2 / 4.0, (0, 2, 3): kl3 / 6.0, (0, 3, 3): jd},
        **{(1, 0, 0): -kl / 2.0, (1, 0, 1): -kl2 / 2.0, (1, 1, 1): -kl3 / 6.0},
        **{(1, 2, 2): kl / 2.0, (1, 2, 3): kl2 / 2.0, (1, 3, 3): kl3 / 6.0},
        **{(2, 0, 2): kl2 / 2.0, (2, 0, 3): kl3 / 6.0, (2, 1, 2): kl3 / 6.0, (2, 1, 3): kl4 / 6.0 - 2.0 * jd},
        **{(3, 0, 2): kl, (3, 0, 3): kl2 / 2.0, (3, 1, 2): kl2 / 2.0, (3, 1, 3): kl3 / 3.0},
    }
    return _place(_assemble(terms, linear.drift(length, energy, mass)), tilt, misalignment)
