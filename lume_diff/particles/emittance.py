"""Emittances and Twiss parameters from covariances, by the definitions of openPMD-beamphysics."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.particles.weighted import safe_divide, safe_sqrt

Covariance = Callable[[str, str], Tensor]
"""Covariance of two per-particle arrays by name, (*batch,)."""


def norm_emit_2d(cov: Covariance, plane: str, mass: float) -> Tensor:
    """Return the normalised emittance of one plane.

    Args:
        cov: covariances in openPMD units.
        plane: ``"x"`` or ``"y"``.
        mass: rest energy [eV].

    Returns:
        sqrt(det cov(x, p_x)) / mc [m], (*batch,).

    Gradient: exact; zero where the emittance is 0.

    Source: K. Floettmann, Phys. Rev. ST Accel. Beams 6 (2003) 034202, doi:10.1103/PhysRevSTAB.6.034202.
    """
    xp = cov(plane, "p" + plane)
    return safe_sqrt(cov(plane, plane) * cov("p" + plane, "p" + plane) - xp * xp) / mass


def norm_emit_4d(cov: Covariance, mass: float) -> Tensor:
    """Return the normalised transverse emittance sqrt(det cov(x, px, y, py)) / (mc)^2 [m^2], (*batch,).

    Gradient: exact; zero where the emittance is 0.
    """
    names = {"x": 1.0, "px": mass, "y": 1.0, "py": mass}
    return safe_sqrt(_det4([[cov(a, b) / (u * v) for b, v in names.items()] for a, u in names.items()]))


def _det4(entry: list[list[Tensor]]) -> Tensor:
    """Return the determinant of a 4 x 4 matrix, by 2 x 2 minors: a polynomial, smooth where it vanishes."""

    def minors(a: list[Tensor], b: list[Tensor]) -> dict[tuple[int, int], Tensor]:
        return {(i, j): a[i] * b[j] - a[j] * b[i] for i in range(4) for j in range(i + 1, 4)}

    upper, lower = minors(entry[0], entry[1]), minors(entry[2], entry[3])
    return (
        upper[0, 1] * lower[2, 3]
        - upper[0, 2] * lower[1, 3]
        + upper[0, 3] * lower[1, 2]
        + upper[1, 2] * lower[0, 3]
        - upper[1, 3] * lower[0, 2]
        + upper[2, 3] * lower[0, 1]
    )


def check_plane(plane: str) -> None:
    """Raise unless the plane is ``"x"``, ``"y"`` or a string of these."""
    if not isinstance(plane, str) or not plane or any(p not in ("x", "y") for p in plane):
        raise ValidationError(f"plane={plane!r} of twiss: expected 'x', 'y' or 'xy'")


def twiss_and_dispersion(cov: Covariance, plane: str, p0c: Tensor, mass: float) -> dict[str, Tensor]:
    """Return Twiss parameters and dispersion of one plane.

    Args:
        cov: covariances in openPMD units.
        plane: ``"x"`` or ``"y"``.
        p0c: reference momentum [eV/c], (*batch,).
        mass: rest energy [eV].

    Returns:
        alpha, beta [m], gamma [1/m], emit [m], eta [m], etap, norm_emit [m]; each (*batch,). Without energy
        spread the dispersion is 0; with zero emittance alpha, beta and gamma are NaN.

    Gradient: exact; zero where a value is undefined.

    Source: USPAS 2019, "Creation and analysis of beam distributions", as in openPMD-beamphysics; with
    x' = p_x / p0 and delta = p / p0.
    """
    momentum = "p" + plane
    dd = cov("p", "p") / (p0c * p0c)
    # A spread of the size of round-off is none: its correlations with x are random and would count in full.
    dd = torch.where(dd < (8.0 * torch.finfo(dd.dtype).eps) ** 2, 0.0, dd)
    xd, pd = cov(plane, "p") / p0c, cov(momentum, "p") / (p0c * p0c)
    eta, etap = safe_divide(xd, dd, 0.0), safe_divide(pd, dd, 0.0)
    eb = cov(plane, plane) - xd * eta
    eg = cov(momentum, momentum) / (p0c * p0c) - pd * etap
    ea = xd * etap - cov(plane, momentum) / p0c
    emit = safe_sqrt(eb * eg - ea * ea)
    return {
        "alpha": safe_divide(ea, emit, math.nan),
        "beta": safe_divide(eb, emit, math.nan),
        "gamma": safe_divide(eg, emit, math.nan),
        "emit": emit,
        "eta": eta,
        "etap": etap,
        "norm_emit": emit * p0c / mass,
    }
