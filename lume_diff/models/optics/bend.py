"""First-order transfer maps of bends, smooth in every parameter; conventions as in :mod:`.linear`.

Source: K. L. Brown, SLAC-75 (1982); F. C. Iselin, The MAD Program Physical Methods Manual (1994), section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._assembly import assemble, pattern, rotate
from .special import relativistic_factors, stumpff

_BEND = pattern(
    {
        **{(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3, (0, 5): 4, (1, 5): 5, (4, 0): 6, (4, 1): 4, (4, 5): 7},
        **{(2, 2): 8, (2, 3): 9, (3, 2): 10, (3, 3): 11},
    },
    12,
)


class BendFocusing(NamedTuple):
    """Cosine-like, sine-like and dispersion functions of a combined-function bend.

    `dx` and `j1` are the dispersion and its integral for unit curvature.
    """

    kx2: Tensor
    cx: Tensor
    sx: Tensor
    dx: Tensor
    j1: Tensor
    cy: Tensor
    sy: Tensor


def bend_focusing(length: Tensor, k1: Tensor, hx: Tensor) -> BendFocusing:
    """Compute the functions that the first- and second-order maps of a bend are made of.

    Args:
        length: length [m], shape `(*batch)`.
        k1: normalised gradient [m^-2], shape `(*batch)`.
        hx: curvature [m^-1], shape `(*batch)`.

    Returns:
        the functions at the end of the body, each of shape `(*batch)`.

    Gradient:
        exact, also at k1 + hx^2 = 0.

    Example:
        >>> bend_focusing(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(0.0)).dx.item()
        2.0
    """
    length2 = length.square()
    kx2 = k1 + hx.square()
    u, v = torch.broadcast_tensors(kx2 * length2, -k1 * length2)
    c0, c1, c2, c3 = stumpff(torch.stack((u, v)), (0, 1, 2, 3))
    sx, sy = (c1 * length).unbind(0)
    return BendFocusing(kx2, c0[0], sx, c2[0] * length2, c3[0] * length2 * length, c0[1], sy)


def edge_strengths(
    hx: Tensor, edge_angle: Tensor, fringe_integral: Tensor | None, gap: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the focusing strengths of a bend's pole face in x and y.

    Args:
        hx: curvature [m^-1], shape `(*batch)`.
        edge_angle: angle between the pole face and the plane normal to the beam [rad], shape `(*batch)`.
        fringe_integral: field integral of the fringe, MAD's FINT [1], shape `(*batch)`; None for 0.
        gap: full gap, twice MAD's HGAP [m], shape `(*batch)`; None for 0.

    Returns:
        the matrix entries R21 and R43 of the face [m^-1], each of shape `(*batch)`.

    Gradient:
        exact.

    Source:
        K. L. Brown, SLAC-75 (1982), section on fringing fields.

    Example:
        >>> r21, r43 = edge_strengths(torch.tensor(0.5), torch.tensor(0.0), None, None)
        >>> r21.item()
        0.0
    """
    corrected = edge_angle
    if fringe_integral is not None and gap is not None:
        correction = fringe_integral * hx * gap * (1.0 + edge_angle.sin().square()) / edge_angle.cos()
        corrected = edge_angle - correction
    return hx * edge_angle.tan(), -hx * corrected.tan()


def dipole(
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
) -> Tensor:
    """Build the linear map of a sector bend with its two pole faces.

    As in Cheetah, `gap` holds for both faces, and both faces always act: `fringe_at` and `gap_exit` matter to
    drift-kick-drift tracking only. For a rectangular bend add `angle / 2` to both face angles: :func:`rbend`.

    Args:
        length: arc length, not zero [m], shape `(*batch)`.
        angle: bending angle, positive towards negative x [rad], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        k1: normalised gradient of the body [m^-2], shape `(*batch)`; None for 0.
        e1: angle of the entrance face [rad], shape `(*batch)`; None for 0.
        e2: angle of the exit face [rad], shape `(*batch)`; None for 0.
        tilt: rotation about the beam axis [rad], shape `(*batch)`; None for none.
        gap: full gap [m], shape `(*batch)`; None for 0.
        fringe_integral: field integral of the entrance fringe [1], shape `(*batch)`; None for 0.
        fringe_integral_exit: field integral of the exit fringe [1], shape `(*batch)`; None for `fringe_integral`.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact, also at angle = 0 and at k1 = -hx^2.

    Example:
        >>> angle = torch.tensor(0.0, requires_grad=True)
        >>> dipole(torch.tensor(1.0), angle, torch.tensor(1e8), 510998.95)[0, 5].backward()
        >>> round(angle.grad.item(), 3)
        0.5
    """
    _, igamma2, beta = relativistic_factors(energy, mass)
    hx = angle / length
    k1 = torch.zeros_like(hx) if k1 is None else k1
    kx2, cx, sx, dx, j1, cy, sy = bend_focusing(length, k1, hx)
    entrance_x, entrance_y = edge_strengths(hx, torch.zeros_like(hx) if e1 is None else e1, fringe_integral, gap)
    if fringe_integral_exit is None:
        fringe_integral_exit = fringe_integral
    exit_x, exit_y = edge_strengths(hx, torch.zeros_like(hx) if e2 is None else e2, fringe_integral_exit, gap)

    r16 = hx * dx / beta
    r26 = hx * sx / beta
    r11, r33 = cx + sx * entrance_x, cy + sy * entrance_y
    entries = (
        *(r11, sx, cx * entrance_x - kx2 * sx + exit_x * r11, cx + exit_x * sx),
        *(r16, r26 + exit_x * r16, r26 + entrance_x * r16),
        (hx.square() * j1 - length * igamma2) / beta.square(),
        *(r33, sy, cy * entrance_y + k1 * sy + exit_y * r33, cy + exit_y * sy),
    )
    matrix = assemble(entries, _BEND)
    return matrix if tilt is None else rotate(matrix, tilt)


def rbend(
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
) -> Tensor:
    """Build the linear map of a bend whose face angles are given relative to parallel faces.

    Args:
        length: arc length, as in Cheetah, not the chord; not zero [m], shape `(*batch)`.
        angle: as in :func:`dipole` [rad], shape `(*batch)`.
        energy: reference energy [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        k1: as in :func:`dipole` [m^-2], shape `(*batch)`; None for 0.
        e1: inclination of the entrance face against a parallel one [rad], shape `(*batch)`; None for 0.
        e2: inclination of the exit face against a parallel one [rad], shape `(*batch)`; None for 0.
        tilt: rotation about the beam axis [rad], shape `(*batch)`; None for none.
        gap: full gap [m], shape `(*batch)`; None for 0.
        fringe_integral: field integral of the entrance fringe [1], shape `(*batch)`; None for 0.
        fringe_integral_exit: field integral of the exit fringe [1], shape `(*batch)`; None for `fringe_integral`.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Gradient:
        exact, also through the face angles.

    Example:
        >>> rbend(torch.tensor(1.0), torch.tensor(0.1), torch.tensor(1e8), 510998.95).shape
        torch.Size([7, 7])
    """
    half = 0.5 * angle
    e1 = half if e1 is None else e1 + half
    e2 = half if e2 is None else e2 + half
    return dipole(length, angle, energy, mass, k1, e1, e2, tilt, gap, fringe_integral, fringe_integral_exit)
