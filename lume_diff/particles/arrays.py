"""Per-particle arrays of a bunch, with the definitions of openPMD-beamphysics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lume_diff.particles.constants import c_light
from lume_diff.particles.weighted import dot, safe_divide, safe_sqrt

if TYPE_CHECKING:
    from lume_diff.particles.statistics import BunchStatistics

Array = Callable[["BunchStatistics"], Tensor]
"""How a per-particle array is computed."""


def _sum_of_squares(first: Tensor, *others: Tensor) -> Tensor:
    """Return the sum of squares, in the given order and without fused operations, as ParticleGroup adds them.

    The energy shows the last bit: beta_z varies by little more than its round-off along a relativistic bunch.
    The sum is made in place, which saves fresh memory; no operation keeps the sum for its derivative.
    """
    tensors = (first, *others)
    if any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors):
        return sum((tensor * tensor for tensor in others), first * first)
    total = first * first
    for tensor in others:
        total.add_(tensor * tensor)
    return total


def momentum(px: Tensor, py: Tensor, pz: Tensor) -> Tensor:
    """Return the total momentum [eV/c], with a zero gradient for a particle at rest."""
    # The clamp keeps the square root's slope finite at rest, where the inner slope is zero.
    return torch.sqrt(_sum_of_squares(px, py, pz).clamp_min(torch.finfo(px.dtype).tiny))


def energy(px: Tensor, py: Tensor, pz: Tensor, mass: float) -> Tensor:
    """Return the total energy [eV]."""
    return _sum_of_squares(px, py, pz).add_(mass**2).sqrt_()


def reference_momentum(reference_energy: Tensor, mass: float) -> Tensor:
    """Return the momentum [eV/c] at a total energy [eV]; nothing cancels close to rest."""
    return torch.sqrt((reference_energy - mass) * (reference_energy + mass))


def _kinetic_energy(s: BunchStatistics) -> Tensor:
    p = s.array("p")
    return p * p / (s.array("energy") + s.bunch.mass)


def _radius(s: BunchStatistics) -> Tensor:
    x, y = s.bunch.x, s.bunch.y
    return safe_sqrt(_sum_of_squares(x, y))


def _cos_sin_theta(s: BunchStatistics) -> tuple[Tensor, Tensor]:
    return s.cached(
        "cos_sin_theta",
        lambda: (safe_divide(s.bunch.x, s.array("r"), 1.0), safe_divide(s.bunch.y, s.array("r"), 0.0)),
    )


def _pr(s: BunchStatistics) -> Tensor:
    cos, sin = _cos_sin_theta(s)
    return s.bunch.px * cos + s.bunch.py * sin


def _ptheta(s: BunchStatistics) -> Tensor:
    cos, sin = _cos_sin_theta(s)
    return s.bunch.py * cos - s.bunch.px * sin


def _higher_order_energy(s: BunchStatistics) -> Tensor:
    """Return the energy less its least-squares parabola in t (on a z-plane) or z/c (elsewhere).

    The fit counts every particle equally, as ParticleGroup's does; `alive_only` leaves out the lost ones. The
    abscissa is centred and scaled, and the powers made orthogonal, so nothing cancels.
    """
    on_plane = (s.sigma("z") < 1e-12).unsqueeze(-1)
    time = torch.where(on_plane, s.bunch.t, s.bunch.z / c_light)
    share = s.fit_weight
    count = share.sum(-1, keepdim=True)

    def average(values: Tensor) -> Tensor:
        return safe_divide(dot(share, values).unsqueeze(-1), count, 0.0)

    time = time - time[..., :1]
    time = time - average(time)
    if s.alive_only:  # Lost particles may be anywhere: they must not set the scale.
        time = torch.where(s.counted, time, 0.0)
    size = torch.amax(time.abs(), -1, keepdim=True)
    u = safe_divide(time, size, 0.0)
    square = u * u
    # Two particles or times leave nothing for the quadratic term: then it is dropped.
    quadratic = square - average(square) - safe_divide(average(u * square), average(square), 0.0) * u
    norm = average(quadratic * quadratic)
    quadratic = torch.where(norm > 1e-24, quadratic, 0.0)
    value = s.array("energy")
    value = value - value[..., :1]
    value = value - average(value)
    value = value - safe_divide(average(u * value), average(square), 0.0) * u
    return value - safe_divide(average(quadratic * value), average(quadratic * quadratic), 0.0) * quadratic


def _normalised(plane: str, formula: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> Array:
    def array(s: BunchStatistics) -> Tensor:
        alpha, beta, defined = (value.unsqueeze(-1) for value in s.mass_normalised_twiss(plane))
        value = formula(s.array(plane), s.array("p" + plane) / s.bunch.mass, alpha, beta)
        return torch.where(defined, value, torch.nan)

    return array


def _position_bar(x: Tensor, p: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return x / torch.sqrt(beta)


def _momentum_bar(x: Tensor, p: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return (alpha * x + beta * p) / torch.sqrt(beta)


def _action(x: Tensor, p: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    # A sum of squares, so nothing cancels.
    mixed = alpha * x + beta * p
    return (mixed * mixed + x * x) / (2.0 * beta)


def _field(name: str) -> Array:
    return lambda s: getattr(s.bunch, name)


ARRAYS: Mapping[str, Array] = {
    **{name: _field(name) for name in ("x", "y", "z", "px", "py", "pz", "t", "weight")},
    "status": lambda s: (s.bunch.alive > 0.5).to(s.bunch.x.dtype),
    "id": lambda s: s.bunch.id.to(s.bunch.x.dtype).expand(s.bunch.x.shape),
    "z/c": lambda s: s.bunch.z / c_light,
    "p": lambda s: momentum(s.bunch.px, s.bunch.py, s.bunch.pz),
    "energy": lambda s: energy(s.bunch.px, s.bunch.py, s.bunch.pz, s.bunch.mass),
    "kinetic_energy": _kinetic_energy,
    "xp": lambda s: s.bunch.px / s.bunch.pz,
    "yp": lambda s: s.bunch.py / s.bunch.pz,
    "higher_order_energy": _higher_order_energy,
    "r": _radius,
    "theta": lambda s: torch.atan2(s.bunch.y, s.bunch.x),
    "pr": _pr,
    "ptheta": _ptheta,
    "Lz": lambda s: s.bunch.x * s.bunch.py - s.bunch.y * s.bunch.px,
    "gamma": lambda s: s.array("energy") / s.bunch.mass,
    "beta": lambda s: s.array("p") / s.array("energy"),
    "beta_x": lambda s: s.bunch.px / s.array("energy"),
    "beta_y": lambda s: s.bunch.py / s.array("energy"),
    "beta_z": lambda s: s.bunch.pz / s.array("energy"),
    "x_bar": _normalised("x", _position_bar),
    "px_bar": _normalised("x", _momentum_bar),
    "y_bar": _normalised("y", _position_bar),
    "py_bar": _normalised("y", _momentum_bar),
    "Jx": _normalised("x", _action),
    "Jy": _normalised("y", _action),
}
