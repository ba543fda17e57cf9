"""Statistics behind a linear stretch from the moments before it: particles are looked at once, not at every place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.guards import is_differentiated
from lume_diff.models.line.reference import Reference
from lume_diff.models.transforms import in_transform, in_vmap
from lume_diff.particles import TorchMoments, parse_key
from lume_diff.particles.arrays import reference_momentum
from lume_diff.particles.bundle import Static
from lume_diff.particles.constants import c_light
from lume_diff.particles.emittance import norm_emit_2d, norm_emit_4d, twiss_and_dispersion
from lume_diff.particles.weighted import round_off_of_constant, safe_divide, safe_sqrt

#: Which coordinate a quantity is a linear function of.
_COORDINATES = {"x": 0, "px": 1, "y": 2, "py": 3, "t": 4, "energy": 5, "kinetic_energy": 5, "gamma": 5}
_MOMENTUM = "p"


@lru_cache(maxsize=4096)
def is_linear(key: str) -> bool:
    """Tell whether a statistic follows exactly from mean and covariance before a linear stretch.

    Those of x, px, y, py, t and the energy do, because they are linear in Cheetah's coordinates; those of the total
    momentum too, because no linear element changes it. Others (pz, angles, velocities, ranges, percentiles) do not.
    """
    operator, names, _ = parse_key(key)
    match operator:
        case "mean" | "sigma" | "cov":
            return all(name in _COORDINATES or name == _MOMENTUM for name in names)
        case "twiss":
            return True
        case "scalar":
            return names[0] in ("norm_emit_x", "norm_emit_y", "norm_emit_4d", "charge")
    return False


def needs_momentum(key: str) -> bool:
    """Tell whether a linear statistic needs the total momentum, which only an element that keeps it passes on."""
    operator, names, _ = parse_key(key)
    return operator == "twiss" or _MOMENTUM in names


@dataclass(frozen=True)
class KnownMoments:
    """Mean and spread of the living of a bunch, a row for each coordinate and one for the total momentum.

    The covariance is kept as a triangular factor from the particles themselves, ``cov = factor @ factor.mT``: behind a
    stretch that focuses by a factor f, a covariance would lose f^2 in digits, the factor loses f, as particles do.

    Attributes:
        table: factor and, as the last column, mean of (x, px, y, py, tau, p, 1), ``(*batch, 7, k + 1)``.
        momentum: the same of the total momentum [eV/c], ``(*batch, k + 1)``.
        charge: of the living [C], ``(*batch,)``.
        unbiased: the factor (Bessel's) that makes a covariance of the charge one of a sample, ``(*batch,)``.
    """

    table: Tensor
    momentum: Tensor
    charge: Tensor
    unbiased: Tensor

    @classmethod
    def of(cls, rows: Tensor, weight: Tensor, energy: Tensor, mass: float) -> KnownMoments | None:
        """Return the moments of particles, or None where they do not say all: nobody lives, or a number is not finite.

        Args:
            rows: (x, px, y, py, tau, p, 1), ``(*batch, 7, n)``.
            weight: charge times survival probability [C], ``(*batch, n)``.
            energy: reference energy [eV], ``(*batch,)``.
            mass: rest energy [eV].

        Gradient:
            None: the particles are taken as constants.
        """
        excess = rows[..., 5, :] * reference_momentum(energy, mass).unsqueeze(-1)
        square = (energy.unsqueeze(-1) - mass + excess) * (energy.unsqueeze(-1) + mass + excess)
        rows = torch.cat((rows[..., :6, :], square.clamp_min(0.0).sqrt().unsqueeze(-2)), dim=-2)
        charge = weight.sum(-1)
        share = weight / charge.unsqueeze(-1)
        mean = torch.linalg.vecdot(rows, share.unsqueeze(-2))
        mean = mean + round_off_of_constant(rows, mean)
        centred = (rows - mean.unsqueeze(-1)) * share.sqrt().unsqueeze(-2)
        factor = torch.linalg.qr(centred.mT, mode="r").R.mT
        forward = (square > 0.0) | (share == 0.0)
        if not bool(forward.all() & factor.isfinite().all() & mean.isfinite().all()):
            return None
        norm = charge - torch.linalg.vecdot(weight, weight) / charge
        whole = torch.cat((factor, mean.unsqueeze(-1)), dim=-1)
        one = torch.zeros_like(whole[..., :1, :])
        one[..., -1] = 1.0
        table = torch.cat((whole[..., :6, :], one), dim=-2)
        return cls(table, whole[..., 6, :], charge, safe_divide(charge, norm, math.nan))

    def along(self) -> KnownMoments:
        """Return the same with a dimension for places, which broadcasts, after those of the batch."""
        table, momentum = self.table.unsqueeze(-3), self.momentum.unsqueeze(-2)
        return KnownMoments(table, momentum, self.charge.unsqueeze(-1), self.unbiased.unsqueeze(-1))


class Lasting:
    """What is known of a bunch that stays the same from run to run; found out when somebody asks.

    Args:
        energy: reference energy of its coordinates [eV], ``(*batch,)``.
    """

    def __init__(self, energy: Tensor) -> None:
        self._energy = energy
        self._found: tuple[KnownMoments | None] | None = None

    def moments(self, rows: Tensor, weight: Tensor, alive: Tensor, mass: float) -> KnownMoments | None:
        """Return its moments, or None where these do not say all, or would cut the graph that the particles have.

        Args:
            rows, weight, alive, mass: of the bunch, always the same.
        """
        found = self._found
        if found is not None:
            return found[0]
        if any(tensor.requires_grad or is_differentiated(tensor) for tensor in (rows, weight, alive, self._energy)):
            return None
        if in_vmap(rows) or in_vmap(weight) or in_vmap(alive) or in_vmap(self._energy):
            return None
        moments = KnownMoments.of(rows, weight * alive, self._energy, mass)
        if not (in_transform() or torch.is_inference_mode_enabled()):
            self._found = (moments,)
        return moments


class LinearStatistics:
    """Statistics at one place, or at many places that are a dimension of the batch.

    Those of the total momentum hold where every element of the stretch has kept it.

    Args:
        known: moments before the stretch.
        matrix: the map from there to here, ``(*batch, 7, 7)``; None for none.
        reference: the reference particle here.
        static: species, mass and charge number.
    """

    def __init__(self, known: KnownMoments, matrix: Tensor | None, reference: Reference, static: Static) -> None:
        self._known, self._matrix, self._reference, self._static = known, matrix, reference, static
        self._table = known.table if matrix is None else matrix @ known.table
        self._cache: dict[Any, Tensor] = {}

    def along(self, matrices: Tensor, reference: Reference) -> LinearStatistics:
        """Return statistics at many places behind this one.

        Args:
            matrices: maps from here to the places, ``(*batch, places, 7, 7)``.
            reference: the reference particle there, ``(*batch, places)`` or with one place for all.
        """
        if self._matrix is not None:
            matrices = matrices @ self._matrix.unsqueeze(-3)
        return LinearStatistics(self._known.along(), matrices, reference, self._static)

    @property
    def _p0c(self) -> Tensor:
        if "p0c" not in self._cache:
            self._cache["p0c"] = reference_momentum(self._reference.energy, self._static.mass)
        return self._cache["p0c"]

    def _unit(self, name: str) -> Tensor | float | None:
        """Return what a coordinate is multiplied with to give a quantity, None for one."""
        match name:
            case "x" | "y":
                return None
            case "t":
                return 1.0 / c_light
        return self._p0c / self._static.mass if name == "gamma" else self._p0c

    def _row(self, name: str) -> Tensor:
        """Return the spread of a quantity along the columns of the factor, ``(*batch, k)``."""
        if name not in self._cache:
            if name == _MOMENTUM:
                row = self._known.momentum[..., :-1]
            else:
                row, unit = self._table[..., _COORDINATES[name], :-1], self._unit(name)
                if unit is not None:
                    row = row * (unit.unsqueeze(-1) if isinstance(unit, Tensor) else unit)
            self._cache[name] = row
        return self._cache[name]

    def mean(self, name: str) -> Tensor:
        """Return the mean, (*batch,)."""
        if name == _MOMENTUM:
            return self._known.momentum[..., -1]
        value, unit, reference = self._table[..., _COORDINATES[name], -1], self._unit(name), self._reference
        value = value if unit is None else value * unit
        match name:
            case "t":
                return reference.time + value
            case "energy":
                return reference.energy + value
            case "kinetic_energy":
                return reference.energy - self._static.mass + value
            case "gamma":
                return reference.energy / self._static.mass + value
        return value

    def sigma(self, name: str) -> Tensor:
        """Return the standard deviation (biased, as ParticleGroup's), (*batch,); where it is 0 its gradient is too."""
        row = self._row(name)
        return safe_sqrt(torch.linalg.vecdot(row, row))

    def cov(self, a: str, b: str) -> Tensor:
        """Return the covariance (unbiased, as ParticleGroup's), (*batch,)."""
        return torch.linalg.vecdot(self._row(a), self._row(b)) * self._known.unbiased

    def twiss(self, plane: str) -> Mapping[str, Tensor]:
        """Return Twiss parameters and dispersion of one plane, each (*batch,)."""
        return twiss_and_dispersion(self.cov, plane, self.mean(_MOMENTUM), self._static.mass)

    def __getitem__(self, key: str) -> Tensor:
        operator, names, _ = parse_key(key)
        match operator:
            case "mean" | "sigma":
                value: Tensor = getattr(self, operator)(names[0])
                return value
            case "cov":
                return self.cov(*names)
            case "twiss":
                kind, plane = names
                if ("twiss", plane, kind) not in self._cache:
                    self._cache |= {("twiss", plane, found): value for found, value in self.twiss(plane).items()}
                return self._cache["twiss", plane, kind]
        match names[0]:
            case "charge":
                return self._known.charge
            case "norm_emit_4d":
                return norm_emit_4d(self.cov, self._static.mass)
        return norm_emit_2d(self.cov, names[0][-1], self._static.mass)

    def moments(self) -> TorchMoments:
        """Return mean and covariance, without Bessel's correction, in Cheetah's coordinates."""
        spread, reference = self._table[..., :6, :-1], self._reference
        mean, cov = self._table[..., :6, -1], spread @ spread.mT
        scalars = (self._known.charge, reference.energy, reference.time, reference.s)
        batch = torch.broadcast_shapes(mean.shape[:-1], *(value.shape for value in scalars))
        leaves = [mean.expand(*batch, 6), cov.expand(*batch, 6, 6), *(value.expand(batch) for value in scalars)]
        return TorchMoments._from_leaves(leaves, self._static.replace(id=None))
