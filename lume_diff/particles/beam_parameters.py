"""Moments from the parameters that a beam is described by."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.particles.arrays import reference_momentum
from lume_diff.particles.checks import as_float_tensors, broadcast_batch, check_bounds, check_finite, is_concrete
from lume_diff.particles.constants import c_light, species_constants
from lume_diff.particles.fields import check_reference_energy
from lume_diff.particles.moments import TorchMoments

_OWNER = "from_twiss"


def from_twiss(
    *, species: str = "electron", mass: float | None = None, species_charge: float | None = None, **parameters: Any
) -> TorchMoments:
    """Return the moments of given Twiss parameters and emittances.

    Args:
        species, mass, species_charge: as for `TorchMoments`.
        parameters: as for `TorchMoments.from_twiss`.

    Returns:
        The moments: <x x> = beta emit, <x x'> = -alpha emit, <x' x'> = gamma emit in each plane, where emit is
        norm_emit m c / p at the mean energy; nothing couples the planes.

    Raises:
        ValidationError: a beta that is not positive, a negative emittance or spread, or values not finite.

    Gradient: exact.

    Source: E. D. Courant and H. S. Snyder, Ann. Phys. 3 (1958) 1, doi:10.1016/0003-4916(58)90012-5.
    """
    constants = species_constants(species, mass, species_charge)
    if parameters.get("reference_energy") is None:
        parameters["reference_energy"] = parameters["energy"]
    values = as_float_tensors(parameters, _OWNER)
    batch = broadcast_batch({name: value.shape for name, value in values.items()}, _OWNER)
    check_finite(values, _OWNER)
    for name in ("norm_emit_x", "norm_emit_y", "sigma_t", "sigma_energy"):
        check_bounds(name, values[name], 0.0, None, _OWNER, "a size")
    for name in ("beta_x", "beta_y"):
        if is_concrete(values[name]) and not bool((values[name].detach() > 0.0).all()):
            raise ValidationError(f"{_OWNER}: {name} is {values[name].detach().min().item():g} m; expected more than 0")
    check_reference_energy(values["energy"], constants.mass, _OWNER)
    check_reference_energy(values["reference_energy"], constants.mass, _OWNER)
    v = {name: value.expand(batch) for name, value in values.items()}

    p0c = reference_momentum(v["reference_energy"], constants.mass)
    p = reference_momentum(v["energy"], constants.mass)
    zero = torch.zeros_like(p)
    rows: list[list[Tensor]] = [[zero] * 6 for _ in range(6)]
    for plane, i in (("x", 0), ("y", 2)):
        emit = v[f"norm_emit_{plane}"] * constants.mass / p
        alpha, beta, ratio = v[f"alpha_{plane}"], v[f"beta_{plane}"], p / p0c
        rows[i][i] = beta * emit
        rows[i][i + 1] = rows[i + 1][i] = -alpha * emit * ratio
        rows[i + 1][i + 1] = (1.0 + alpha * alpha) / beta * emit * ratio * ratio
    rows[4][4] = (v["sigma_t"] * c_light) ** 2
    rows[4][5] = rows[5][4] = v["cov_t__energy"] * c_light / p0c
    rows[5][5] = (v["sigma_energy"] / p0c) ** 2
    excess = (v["energy"] - v["reference_energy"]) / p0c
    mean = [v["mean_x"], v["mean_px"] / p0c, v["mean_y"], v["mean_py"] / p0c, zero, excess]
    return TorchMoments(
        mean=torch.stack(mean, dim=-1),
        cov=torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2),
        charge=v["charge"],
        reference_energy=v["reference_energy"],
        reference_time=v["reference_time"],
        s=v["s"],
        species=species,
        mass=mass,
        species_charge=species_charge,
    )
