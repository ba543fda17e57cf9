"""First-order transfer maps of whole stacks of elements, smooth in every parameter.

All functions take broadcastable tensors with any leading element and batch dimensions, so that the quadrupoles of a
line are one call on stacked parameters. They return `(*batch, 7, 7)` matrices that act on the column vector
(x [m], px [1], y [m], py [1], tau [m], p [1], 1) with px = P_x / p0, tau = c (t - t_ref) and p = (E - E0) / (p0 c), as
Cheetah's do, and equal Cheetah 0.8.4's maps in value. `energy` is the reference energy [eV] including the rest
energy, `mass` the rest energy [eV]. The gradient is exact, of any order and in forward and reverse mode, at every
value including zero strength; `torch.func` transforms apply.

Source: K. L. Brown, SLAC-75 (1982); the coordinates and the general map follow F. C. Iselin, The MAD Program
Physical Methods Manual (1994), section 5.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._assembly import assemble, displace, pattern, place
from .bend import dipole, rbend
from .special import relativistic_factors, stumpff

__all__ = ["corrector", "dipole", "drift", "identity", "quadrupole", "rbend", "sextupole", "solenoid", "undulator"]

_DRIFT = pattern({(0, 1): 0, (2, 3): 0, (4, 5): 1}, 2)
_QUADRUPOLE = pattern(
    {(0, 0): 0, (1, 1): 0, (0, 1): 1, (1, 0): 2, (2, 2): 3, (3, 3): 3, (2, 3): 4, (3, 2): 5, (4, 5): 6}, 7
)
_SOLENOID = pattern(
    {
        **{(0, 0): 0, (1, 1): 0, (2, 2): 0, (3, 3): 0, (0, 1): 1, (2, 3): 1, (0, 2): 2, (1, 3): 2},
        **{(0, 3): 3, (1, 0): 4, (3, 2): 4, (1, 2): 5, (2, 0): 6, (3, 1): 6, (2, 1): 7, (3, 0): 8, (4, 5): 9},
    },
    10,
)
_CORRECTOR = pattern({(0, 1): 0, (2, 3): 0, (4, 5): 1, (1, 6): 2, (3, 6): 3}, 4)
_UNDULATOR = pattern(
    {(0, 0): 0, (1, 1): 0, (2, 2): 1, (3, 3): 1, (0, 1): 2, (2, 3): 3, (1, 0): 4, (3, 2): 5, (4, 5): 6}, 7
)


def _drift_r56(length: Tensor, energy: Tensor, mass: Tensor | float) -> Tensor:
    _, igamma2, beta = relativistic_factors(energy, mass)
    return -length * igamma2 / beta.square()


def drift(length: Tensor, energy: Tensor, mass: Tensor | float) -> Tensor:
    """Build the linear map of a drift; also that of a marker, an inactive screen or a sextupole.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact.

    Example:
        >>> drift(torch.tensor(2.0), torch.tensor(1e8), 510998.95)[0, 1].item()
        2.0
    """
    return assemble((length, _drift_r56(length, energy, mass)), _DRIFT)


def identity(like: Tensor) -> Tensor:
    """Build identity maps, one for each entry of a tensor.

    Args:
        like: any tensor that has the batch shape, dtype and device wanted, shape `(*batch)`.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        none: the map is constant.

    Example:
        >>> identity(torch.zeros(3)).shape
        torch.Size([3, 7, 7])
    """
    return torch.eye(7, dtype=like.dtype, device=like.device).expand(*like.shape, 7, 7)


def quadrupole(
    length: Tensor,
    k1: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    tilt: Tensor | None = None,
    misalignment: Tensor | None = None,
) -> Tensor:
    """Build the linear map of a quadrupole.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        k1: normalised gradient, positive focuses in x [m^-2], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        tilt: rotation about the beam axis [rad], shape `(*batch)`; None for none.
        misalignment: displacement (dx, dy) [m], shape `(*batch, 2)`; None for none.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact, also at k1 = 0.

    Example:
        >>> k1 = torch.zeros(3, requires_grad=True)
        >>> quadrupole(torch.ones(3), k1, torch.tensor(1e8), 510998.95)[:, 1, 0].sum().backward()
        >>> k1.grad
        tensor([-1., -1., -1.])
    """
    r56 = _drift_r56(length, energy, mass)
    u = k1 * length.square()
    c0, c1 = stumpff(torch.stack((u, -u)), (0, 1))
    sx, sy = (c1 * length).unbind(0)
    cx, cy = c0.unbind(0)
    matrix = assemble((cx, sx, -k1 * sx, cy, sy, k1 * sy, r56), _QUADRUPOLE)
    return place(matrix, tilt, misalignment)


def solenoid(
    length: Tensor, k: Tensor, energy: Tensor, mass: Tensor | float, misalignment: Tensor | None = None
) -> Tensor:
    """Build the linear map of a solenoid with its hard-edged ends.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        k: half the normalised field, B / (2 B rho) [m^-1], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        misalignment: displacement (dx, dy) [m], shape `(*batch, 2)`; None for none.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact, also at k = 0.

    Example:
        >>> solenoid(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(1e8), 510998.95)[2, 3].item()
        2.0
    """
    theta = length * k
    c, si = stumpff(theta.square(), (0, 1))
    s, s_k = theta * si, length * si
    sc, ss = s * c, s * s_k
    k_sc, k_s2 = k * sc, k * s.square()
    r56 = _drift_r56(length, energy, mass)
    matrix = assemble((c.square(), c * s_k, sc, ss, -k_sc, -k_s2, -sc, -ss, k_s2, r56), _SOLENOID)
    return matrix if misalignment is None else displace(matrix, misalignment)


def corrector(
    length: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    horizontal_angle: Tensor | None = None,
    vertical_angle: Tensor | None = None,
) -> Tensor:
    """Build the linear map of a horizontal, vertical or combined corrector: a drift, with its kick at the end.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        horizontal_angle: kick in px [rad], shape `(*batch)`; None for 0.
        vertical_angle: kick in py [rad], shape `(*batch)`; None for 0.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact.

    Example:
        >>> corrector(torch.tensor(0.0), torch.tensor(1e8), 510998.95, torch.tensor(0.5))[1, 6].item()
        0.5
    """
    zero = torch.zeros_like(length)
    horizontal = zero if horizontal_angle is None else horizontal_angle
    vertical = zero if vertical_angle is None else vertical_angle
    return assemble((length, _drift_r56(length, energy, mass), horizontal, vertical), _CORRECTOR)


def undulator(length: Tensor, energy: Tensor, mass: Tensor | float, period: Tensor, kx: Tensor, ky: Tensor) -> Tensor:
    """Build the linear map of an undulator, averaged over its periods.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        period: period; zero or less means no focusing [m], shape `(*batch)`.
        kx: undulator parameter of the vertical field, focusing in y [1], shape `(*batch)`.
        ky: undulator parameter of the horizontal field, focusing in x [1], shape `(*batch)`.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact, also at kx = ky = 0.

    Example:
        >>> one = torch.tensor(1.0)
        >>> undulator(one, 1e8 * one, 510998.95, 0.03 * one, 0.0 * one, 0.0 * one)[0, 1].item()
        1.0
    """
    gamma, igamma2, beta = relativistic_factors(energy, mass)
    has_period = period > 0.0
    momentum = torch.where(has_period, period, 1.0) * gamma * beta
    frequency = torch.where(has_period, math.sqrt(2.0) * math.pi / momentum, 0.0)
    k2 = torch.stack(torch.broadcast_tensors((frequency * ky).square(), (frequency * kx).square()))
    c0, c1 = stumpff(k2 * length.square(), (0, 1))
    s = c1 * length
    focus = -k2 * s
    r56 = -length * igamma2 * (beta.square().reciprocal() + 0.5 * (kx.square() + ky.square()))
    return assemble((c0[0], c0[1], s[0], s[1], focus[0], focus[1], r56), _UNDULATOR)


def sextupole(length: Tensor, energy: Tensor, mass: Tensor | float) -> Tensor:
    """Build the linear map of a sextupole, which is that of a drift; tilt and displacement do not matter to it.

    Args:
        length: length, of either sign [m], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact.

    Example:
        >>> sextupole(torch.tensor(2.0), torch.tensor(1e8), 510998.95)[2, 3].item()
        2.0
    """
    return drift(length, energy, mass)
