"""The beam at one place of a line, in the line's coordinates, with statistics computed when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.particles.bundle import Static
from lume_diff.particles.constants import c_light
from lume_diff.particles.coordinates import from_coordinates, reference_momentum, to_coordinates
from lume_diff.particles.statistics import BunchStatistics


@dataclass(frozen=True)
class Reference:
    """The reference particle at one place.

    Attributes:
        energy: total energy [eV], ``(*batch,)``.
        time: arrival time [s], ``(*batch,)``.
        s: path length [m], ``(*batch,)``.
    """

    energy: Tensor
    time: Tensor
    s: Tensor


@dataclass(frozen=True)
class TrackedBunch:
    """Particles ``(*batch, n, 7)`` in Cheetah's coordinates.

    What a statistic does not need is not computed: a beam size touches neither momenta nor times.

    Attributes:
        particles: (x, px, y, py, tau, p, 1) at the reference.
        weight: charge [C], ``(*batch, n)``.
        alive: survival probability, ``(*batch, n)``.
        born: survival probability at the entrance of the line.
        reference: where and at which energy and time.
        static: species, mass, charge number and ids.
    """

    particles: Tensor
    weight: Tensor
    alive: Tensor
    born: Tensor
    reference: Reference
    static: Static
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_group(cls, group: TorchParticleGroup, reference_energy: Tensor, reference_time: Tensor) -> TrackedBunch:
        """Return a bunch in the coordinates of a stage's own, fixed reference."""
        group = group.on_z_plane()
        placed = group._with(
            reference_energy=reference_energy.expand(torch.broadcast_shapes(reference_energy.shape, group.batch_shape)),
            reference_time=reference_time.expand(torch.broadcast_shapes(reference_time.shape, group.batch_shape)),
        )
        coordinates = to_coordinates(placed)
        particles = torch.cat((coordinates, torch.ones_like(coordinates[..., :1])), dim=-1)
        reference = Reference(reference_energy, reference_time, group.z[..., 0])
        return cls(particles, group.weight, group.alive, group.alive, reference, group._static)

    def moved(self, particles: Tensor, reference: Reference, alive: Tensor | None = None) -> TrackedBunch:
        """Return the bunch somewhere else."""
        return replace(
            self, particles=particles, reference=reference, alive=self.alive if alive is None else alive, _cache={}
        )

    def transported(self, matrix: Tensor, reference: Reference) -> TrackedBunch:
        """Return the bunch behind a linear stretch with map ``(*batch, 7, 7)``."""
        return self.moved(self.particles @ matrix.mT, reference)

    # What BunchStatistics wants of a bunch, in openPMD's units

    @property
    def x(self) -> Tensor:
        """Horizontal position [m], ``(*batch, n)``."""
        return self.particles[..., 0]

    @property
    def y(self) -> Tensor:
        """Vertical position [m], ``(*batch, n)``."""
        return self.particles[..., 2]

    @property
    def z(self) -> Tensor:
        """Position along the line [m], ``(*batch, n)``."""
        return self.reference.s.unsqueeze(-1).expand(self.x.shape)

    @property
    def _p0c(self) -> Tensor:
        return reference_momentum(self.reference.energy, self.mass).unsqueeze(-1)

    @property
    def px(self) -> Tensor:
        """Horizontal momentum [eV/c], ``(*batch, n)``."""
        return self.particles[..., 1] * self._p0c

    @property
    def py(self) -> Tensor:
        """Vertical momentum [eV/c], ``(*batch, n)``."""
        return self.particles[..., 3] * self._p0c

    @property
    def pz(self) -> Tensor:
        """Longitudinal momentum [eV/c], ``(*batch, n)``."""
        return self.group.pz

    @property
    def t(self) -> Tensor:
        """Time of arrival [s], ``(*batch, n)``."""
        return self.reference.time.unsqueeze(-1) + self.particles[..., 4] / c_light

    @property
    def mass(self) -> float:
        """Rest energy of a particle [eV]."""
        return self.static.mass

    @property
    def charge_number(self) -> float:
        """Charge of a particle [e]."""
        return self.static.charge_number

    @property
    def id(self) -> Tensor:
        """The particles' numbers, ``(n,)``."""
        return self.group.id

    def _once(self, key: str, make: Any) -> Any:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    @property
    def group(self) -> TorchParticleGroup:
        """The bunch as users see it."""
        return self._once(
            "group",
            lambda: from_coordinates(
                self.particles,
                self.weight,
                self.alive,
                self.reference.energy,
                self.reference.time,
                self.reference.s,
                self.static,
            ),
        )

    @property
    def moments(self) -> TorchMoments:
        """Mean and covariance of the living."""
        return self._once("moments", lambda: TorchMoments.from_particles(self.group))

    def statistic(self, key: str) -> Tensor:
        """Return a statistic of the living by openPMD name."""
        statistics: BunchStatistics = self._once("statistics", lambda: BunchStatistics(self, alive_only=True))  # type: ignore[arg-type]
        return statistics[key]

    @property
    def survival(self) -> Tensor:
        """The share of the charge that entered the line alive and lives here, ``(*batch,)``."""
        return (self.weight * self.alive).sum(-1) / (self.weight * self.born).sum(-1)


@dataclass(frozen=True)
class TrackedMoments:
    """Mean ``(*batch, 7)`` and covariance ``(*batch, 7, 7)`` in Cheetah's coordinates.

    Attributes:
        mean: (x, px, y, py, tau, p, 1) at the reference.
        cov: their covariance; the last row and column are zero.
        charge: [C], ``(*batch,)``.
        born: the charge at the entrance of the line.
        reference: where and at which energy and time.
        static: species, mass and charge number.
    """

    mean: Tensor
    cov: Tensor
    charge: Tensor
    born: Tensor
    reference: Reference
    static: Static
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_moments(cls, moments: TorchMoments, reference_energy: Tensor, reference_time: Tensor) -> TrackedMoments:
        """Return moments in the coordinates of a stage's own, fixed reference."""
        old, new = (reference_momentum(energy, moments.mass) for energy in (moments.reference_energy, reference_energy))
        ratio = old / new
        one = torch.ones_like(ratio)
        scale = torch.stack((one, ratio, one, ratio, one, ratio), dim=-1)
        late = (moments.reference_time - reference_time) * c_light
        excess = (moments.reference_energy - reference_energy) / new
        zero = torch.zeros_like(ratio)
        shift = torch.stack(torch.broadcast_tensors(zero, zero, zero, zero, late, excess), dim=-1)
        mean = moments.mean * scale + shift
        mean = torch.cat((mean, torch.ones_like(mean[..., :1])), dim=-1)
        cov = torch.nn.functional.pad(moments.cov * scale.unsqueeze(-1) * scale.unsqueeze(-2), (0, 1, 0, 1))
        reference = Reference(reference_energy, reference_time, moments.s)
        return cls(mean, cov, moments.charge, moments.charge, reference, moments._static)

    def moved(self, mean: Tensor, cov: Tensor, reference: Reference) -> TrackedMoments:
        """Return the moments somewhere else."""
        return replace(self, mean=mean, cov=cov, reference=reference, _cache={})

    def transported(self, matrix: Tensor, reference: Reference) -> TrackedMoments:
        """Return the moments behind a linear stretch with map ``(*batch, 7, 7)``."""
        mean = (matrix @ self.mean.unsqueeze(-1)).squeeze(-1)
        return self.moved(mean, matrix @ self.cov @ matrix.mT, reference)

    def blocked(self, reference: Reference) -> TrackedMoments:
        """Return what is left behind something that takes the whole beam."""
        return replace(self, charge=torch.zeros_like(self.charge), reference=reference, _cache={})

    @property
    def mass(self) -> float:
        """Rest energy of a particle [eV]."""
        return self.static.mass

    @property
    def charge_number(self) -> float:
        """Charge of a particle [e]."""
        return self.static.charge_number

    @property
    def moments(self) -> TorchMoments:
        """The moments as users see them."""
        if "moments" not in self._cache:
            batch = torch.broadcast_shapes(self.mean.shape[:-1], self.reference.energy.shape)
            self._cache["moments"] = TorchMoments._from_leaves(
                [
                    self.mean[..., :6].expand(*batch, 6),
                    self.cov[..., :6, :6].expand(*batch, 6, 6),
                    *(v.expand(batch) for v in (self.charge, self.reference.energy, self.reference.time, self.reference.s)),
                ],
                self.static,
            )
        return self._cache["moments"]

    def statistic(self, key: str) -> Tensor:
        """Return a statistic by openPMD name."""
        return self.moments[key]

    @property
    def survival(self) -> Tensor:
        """The share of the charge that is left, ``(*batch,)``."""
        return self.charge / self.born
