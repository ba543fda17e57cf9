"""Accelerating cavities: Cheetah's model in forms without cancellation, smooth where the energy gain vanishes.

Cheetah's longitudinal terms are 0/0 at zero energy gain. With the rapidities eta of the reference particle before and
after the cavity (gamma = cosh eta) they are, exactly,

    (gamma0 gamma1 (beta0 beta1 - 1) + 1) / (gamma0 - gamma1)^2 = -1 / D,   D = cosh(eta0 + eta1) - 1,

and alike for the second-order terms T566, T556, T555; see :func:`longitudinal_terms`.

As in Cheetah 0.8.4, the energy that a particle gains beside the reference, and the second-order terms, follow V itself
and not -q V: right for electrons, but positive particles get a chirp of the other sign than `cavity_matrix` gives them.

Conventions: `phase` in degrees, the crest at 0; the energy gain of the reference particle is -q V cos(phase) with q
the charge number (-1 for electrons); `energy` and `mass` in eV; coordinates as in :mod:`.linear`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.particles.constants import c_light

from ._assembly import assemble, pattern
from .special import log1p_over_x, relativistic_factors, stumpff

CavityType = Literal["standing_wave", "traveling_wave"]

_CELLS = {(0, 0): 0, (2, 2): 0, (0, 1): 1, (2, 3): 1, (1, 0): 2, (3, 2): 2, (1, 1): 3, (3, 3): 3}
_STANDING = pattern({**_CELLS, (4, 4): 4, (4, 5): 5, (5, 4): 6, (5, 5): 7}, 8)
_TRAVELING = pattern({**_CELLS, (5, 4): 4, (5, 5): 3}, 5)


class _Field(NamedTuple):
    """What every part of the cavity model needs."""

    cos_phase: Tensor
    sin_phase: Tensor
    wave_number: Tensor
    voltage: Tensor  # times -q
    gain: Tensor  # [eV]
    gamma0: Tensor
    beta0: Tensor
    gamma1: Tensor
    beta1: Tensor


def _field(
    voltage: Tensor,
    phase: Tensor,
    frequency: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    charge_number: Tensor | float,
) -> _Field:
    phi = phase.deg2rad()
    effective = -voltage * charge_number
    cos_phase = phi.cos()
    gain = effective * cos_phase
    gamma0, _, beta0 = relativistic_factors(energy, mass)
    gamma1, _, beta1 = relativistic_factors(energy + gain, mass)
    wave_number = 2.0 * math.pi / c_light * frequency
    return _Field(cos_phase, phi.sin(), wave_number, effective, gain, gamma0, beta0, gamma1, beta1)


def cavity_reference_energy(
    energy: Tensor, voltage: Tensor, phase: Tensor, charge_number: Tensor | float = -1.0
) -> Tensor:
    """Compute the reference energy after a cavity.

    Args:
        energy: reference energy before [eV], shape `(*batch)`.
        voltage: voltage [V], shape `(*batch)`.
        phase: phase, 0 on crest [deg], shape `(*batch)`.
        charge_number: charge of a particle [e], scalar.

    Returns:
        reference energy after [eV], shape `(*batch)`.

    Gradient:
        exact.

    Example:
        >>> cavity_reference_energy(torch.tensor(5e6), torch.tensor(1e6), torch.tensor(0.0)).item()
        6000000.0
    """
    return energy - voltage * charge_number * phase.deg2rad().cos()


def cavity_matrix(
    length: Tensor,
    voltage: Tensor,
    phase: Tensor,
    frequency: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    charge_number: Tensor | float = -1.0,
    cavity_type: CavityType = "standing_wave",
) -> Tensor:
    """Build the linear map of a cavity, from coordinates at the incoming to those at the outgoing reference energy.

    A cavity of zero length has no transverse focusing (Cheetah's is 0/0 there).

    Args:
        length: length [m], shape `(*batch)`.
        voltage: voltage, of either sign [V], shape `(*batch)`.
        phase: phase, 0 on crest [deg], shape `(*batch)`.
        frequency: frequency [Hz], shape `(*batch)`.
        energy: reference energy before [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        charge_number: charge of a particle [e], scalar.
        cavity_type: "standing_wave", or "traveling_wave", which has no r56.

    Returns:
        transfer matrices, shape `(*batch, 7, 7)`.

    Raises:
        ValidationError: an unknown `cavity_type`.

    Gradient:
        exact, also at voltage = 0 and at phase = +-90.

    Source:
        J. Rosenzweig and L. Serafini, Phys. Rev. E 49, 1599 (1994), doi:10.1103/PhysRevE.49.1599.

    Example:
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> cavity_matrix(one, 0.0 * one, 0.0 * one, 1.3e9 * one, 1e8 * one, 510998.95)[0, 1].item()
        1.0
    """
    field = _field(voltage, phase, frequency, energy, mass, charge_number)
    return _matrix(length, energy, mass, field, cavity_type)


def _matrix(length: Tensor, energy: Tensor, mass: Tensor | float, field: _Field, cavity_type: CavityType) -> Tensor:
    cos_phase, sin_phase, wave_number, voltage, gain, gamma0, beta0, gamma1, beta1 = field
    energy1 = energy + gain
    ratio = energy / energy1
    log_ratio = log1p_over_x(gain / energy)
    has_length = length != 0.0
    inverse_length = torch.where(has_length, torch.where(has_length, length, 1.0).reciprocal(), 0.0)

    if cavity_type == "standing_wave":
        alpha = math.sqrt(0.125) * voltage / energy * log_ratio
        cos_alpha, sinc_alpha = stumpff(alpha.square(), (0, 1))
        sin_alpha = alpha * sinc_alpha
        skew = math.sqrt(2.0) * cos_phase * sin_alpha
        r21 = -voltage * sin_alpha * (0.5 + cos_phase.square()) * inverse_length / (math.sqrt(2.0) * energy1)
        momentum0, momentum1 = beta0 * gamma0, beta1 * gamma1
        bunching = wave_number * sin_phase * voltage / mass
        r55 = 1.0 - length * beta0 * bunching / (momentum1 * (gamma0 * gamma1 + momentum0 * momentum1 - 1.0))
        r56 = -length * (gamma0 + gamma1) / (gamma1.square() * gamma0 * beta1 * (beta0 + beta1))
        standing = (
            *(cos_alpha - skew, sinc_alpha * log_ratio * length, r21, ratio * (cos_alpha + skew)),
            *(r55, r56, bunching / momentum1, ratio * beta0 / beta1),
        )
        return assemble(standing, _STANDING)
    if cavity_type == "traveling_wave":
        r12 = length * log_ratio
        entrance = -0.5 * gain * inverse_length / energy
        exit_ = 0.5 * gain * inverse_length / energy1
        r11 = 1.0 + r12 * entrance
        traveling = (
            *(r11, r12, exit_ * r11 + ratio * entrance, exit_ * r12 + ratio),
            wave_number * sin_phase * voltage / energy1,
        )
        return assemble(traveling, _TRAVELING)
    raise ValidationError(f"cavity_type = {cavity_type!r}: expected 'standing_wave' or 'traveling_wave'")


def longitudinal_terms(
    length: Tensor,
    voltage: Tensor,
    phase: Tensor,
    frequency: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    charge_number: Tensor | float = -1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Compute the second-order terms of tau that Cheetah adds to the linear map of a cavity.

    With a = beta0 gamma0, b = beta1 gamma1, D = gamma0 gamma1 + a b - 1, S = gamma0 b + a gamma1 and g = V / m,

        T566 = L (gamma0 + gamma1) (a^2 + a b + b^2) / (2 a b^3 (a + b))
        T556 = beta0 k L g sin(phi) (b gamma1 + S) / (b^3 D)
        T555 = (beta0 k)^2 L g / 2 * (g sin^2(phi) (gamma1 + b S / D) / (b^3 D) + cos(phi) / (b D)),

    which equals Cheetah's quotients of differences. As in Cheetah these hold where the reference particle gains
    energy; elsewhere T566 = 3 L / (2 gamma0^2 beta0^3), to which the above is continuous, and T556 = T555 = 0. Cheetah
    takes that choice for a whole batch at once (`.any()`), here each entry has its own. All are zero where the voltage
    is zero, because an inactive cavity is a linear map.

    Args:
        length: length [m], shape `(*batch)`.
        voltage: voltage, of either sign [V], shape `(*batch)`.
        phase: phase, 0 on crest [deg], shape `(*batch)`.
        frequency: frequency [Hz], shape `(*batch)`.
        energy: reference energy before [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        charge_number: charge of a particle [e], scalar.

    Returns:
        T566 [m], T556 [1] and T555 [m^-1], each of shape `(*batch)`.

    Gradient:
        exact on either side of the jumps at zero voltage and zero energy gain, which belong to the model.

    Example:
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> t566, t556, t555 = longitudinal_terms(one, 1e6 * one, 0.0 * one, 1.3e9 * one, 5e6 * one, 510998.95)
        >>> t556.item()
        0.0
    """
    return _longitudinal_terms(length, voltage, mass, _field(voltage, phase, frequency, energy, mass, charge_number))


def _longitudinal_terms(
    length: Tensor, voltage: Tensor, mass: Tensor | float, field: _Field
) -> tuple[Tensor, Tensor, Tensor]:
    cos_phase, sin_phase, wave_number, _, gain, gamma0, beta0, gamma1, beta1 = field
    a, b = beta0 * gamma0, beta1 * gamma1
    b3 = b * b * b
    d = gamma0 * gamma1 + a * b - 1.0
    s = gamma0 * b + a * gamma1
    g = voltage / mass
    bunching = beta0 * wave_number
    skew = g * sin_phase

    gaining = length * (gamma0 + gamma1) * (a * a + a * b + b * b) / (2.0 * a * b3 * (a + b))
    t566 = torch.where(gain > 0.0, gaining, 1.5 * length * gamma0 / (a * a * a))
    t556 = bunching * length * skew * (b * gamma1 + s) / (b3 * d)
    curvature = skew * skew * (gamma1 + b * s / d) / b3 + g * cos_phase / b
    t555 = 0.5 * bunching * bunching * length * curvature / d
    is_on, is_gaining = voltage != 0.0, gain > 0.0
    return torch.where(is_on, t566, 0.0), torch.where(is_gaining, t556, 0.0), torch.where(is_gaining, t555, 0.0)


def cavity_track(
    particles: Tensor,
    length: Tensor,
    voltage: Tensor,
    phase: Tensor,
    frequency: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    charge_number: Tensor | float = -1.0,
    cavity_type: CavityType = "standing_wave",
) -> tuple[Tensor, Tensor]:
    """Track particles through a cavity.

    Args:
        particles: coordinates at the incoming reference energy, shape `(*batch, n, 7)`.
        length: length [m], shape `(*batch)`.
        voltage: voltage, of either sign [V], shape `(*batch)`.
        phase: phase, 0 on crest [deg], shape `(*batch)`.
        frequency: frequency [Hz], shape `(*batch)`.
        energy: reference energy before [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        charge_number: charge of a particle [e], scalar.
        cavity_type: "standing_wave" or "traveling_wave".

    Returns:
        coordinates at the outgoing reference energy, shape `(*batch, n, 7)`, and that energy [eV], shape `(*batch)`.

    Raises:
        ValidationError: an unknown `cavity_type`.

    Gradient:
        exact, but for the jumps of :func:`longitudinal_terms`.

    Example:
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> beam = torch.zeros(10, 7, dtype=torch.float64)
        >>> beam, energy = cavity_track(beam, one, 1e6 * one, 0.0 * one, 1.3e9 * one, 5e6 * one, 510998.95)
        >>> energy.item()
        6000000.0
    """
    field = _field(voltage, phase, frequency, energy, mass, charge_number)
    matrix = _matrix(length, energy, mass, field, cavity_type)
    out = particles @ matrix.mT
    tau_in, p_in = particles[..., 4], particles[..., 5]
    tau, p = _longitudinal_kick(out[..., 4], tau_in, p_in, length, voltage, energy, mass, field)
    shape = torch.broadcast_shapes(out.shape[:-1], tau.shape, p.shape)
    tau, p = tau.expand(shape), p.expand(shape)
    if out.shape[:-1] != shape:
        out = out.expand(*shape, 7)
    tracked = torch.cat((out[..., :4], tau.unsqueeze(-1), p.unsqueeze(-1), out[..., 6:]), dim=-1)
    return tracked, energy + field.gain


def _longitudinal_kick(
    tau_linear: Tensor,
    tau: Tensor,
    p: Tensor,
    length: Tensor,
    voltage: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    field: _Field,
) -> tuple[Tensor, Tensor]:
    """Return tau and p after the cavity, for `(*batch, n)` particles."""
    t566, t556, t555 = (t.unsqueeze(-1) for t in _longitudinal_terms(length, voltage, mass, field))
    scale = (energy * field.beta0).unsqueeze(-1)
    momentum1 = ((energy + field.gain) * field.beta1).unsqueeze(-1)
    half = 0.5 * (field.beta0 * field.wave_number).unsqueeze(-1) * tau
    sine = half.sin()
    cos_phase, sin_phase = field.cos_phase.unsqueeze(-1), field.sin_phase.unsqueeze(-1)
    wave = 2.0 * sine * (sin_phase * half.cos() - cos_phase * sine)  # cos(phase - 2 half) - cos(phase)
    p_out = (p * scale + (voltage * field.beta0).unsqueeze(-1) * wave) / momentum1
    tau_out = tau_linear + t566 * p.square() + t556 * tau * p + t555 * tau.square()
    return tau_out, p_out


def cavity_moments(
    mu: Tensor,
    cov: Tensor,
    length: Tensor,
    voltage: Tensor,
    phase: Tensor,
    frequency: Tensor,
    energy: Tensor,
    mass: Tensor | float,
    charge_number: Tensor | float = -1.0,
    cavity_type: CavityType = "standing_wave",
) -> tuple[Tensor, Tensor, Tensor]:
    """Propagate mean and covariance through a cavity as Cheetah's `ParameterBeam` does.

    The longitudinal moments follow Cheetah's formulas, which are rough: var(p) is kept, and var(tau) and cov(tau, p)
    are both set to T566 var(p)^2 + T556 cov(tau, p) var(p) + T555 var(tau)^2. Track particles where they matter.
    Where the voltage is zero the map is linear.

    Args:
        mu: mean coordinates, the last one 1, shape `(*batch, 7)`.
        cov: covariance, the last row and column 0, shape `(*batch, 7, 7)`.
        length: length [m], shape `(*batch)`.
        voltage: voltage, of either sign [V], shape `(*batch)`.
        phase: phase, 0 on crest [deg], shape `(*batch)`.
        frequency: frequency [Hz], shape `(*batch)`.
        energy: reference energy before [eV], shape `(*batch)`.
        mass: rest energy [eV], scalar.
        charge_number: charge of a particle [e], scalar.
        cavity_type: "standing_wave" or "traveling_wave".

    Returns:
        mean `(*batch, 7)`, covariance `(*batch, 7, 7)` and outgoing reference energy [eV] `(*batch)`.

    Raises:
        ValidationError: an unknown `cavity_type`.

    Gradient:
        exact, but for the jumps at zero voltage and zero energy gain.

    Example:
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> mu, cov = torch.zeros(7, dtype=torch.float64), torch.zeros(7, 7, dtype=torch.float64)
        >>> mu, cov, energy = cavity_moments(
        ...     mu, cov, one, 1e6 * one, 0.0 * one, 1.3e9 * one, 5e6 * one, 510998.95
        ... )
        >>> energy.item()
        6000000.0
    """
    field = _field(voltage, phase, frequency, energy, mass, charge_number)
    matrix = _matrix(length, energy, mass, field, cavity_type)
    mean = (matrix @ mu.unsqueeze(-1)).squeeze(-1)
    # one particle at the mean
    tau, p = _longitudinal_kick(
        mean[..., 4, None], mu[..., 4, None], mu[..., 5, None], length, voltage, energy, mass, field
    )
    mean = torch.cat((mean[..., :4], tau, p, mean[..., 6:]), dim=-1)

    linear = matrix @ cov @ matrix.mT
    t566, t556, t555 = _longitudinal_terms(length, voltage, mass, field)
    c44, c45, c55 = cov[..., 4, 4], cov[..., 4, 5], cov[..., 5, 5]
    rough = t566 * c55.square() + t556 * c45 * c55 + t555 * c44.square()
    rough, kept = torch.broadcast_tensors(rough, c55)
    block = torch.stack((rough, rough, rough, kept), dim=-1).unflatten(-1, (2, 2))
    block = torch.where((voltage != 0.0)[..., None, None], block, linear[..., 4:6, 4:6])
    rows = torch.cat((linear[..., 4:6, :4], block, linear[..., 4:6, 6:]), dim=-1)
    return mean, torch.cat((linear[..., :4, :], rows, linear[..., 6:, :]), dim=-2), energy + field.gain
