"""The beam at one place of a line, in the line's coordinates, with statistics computed when asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.line.apertures import Cut
from lume_diff.models.line.linear_statistics import Lasting, LinearStatistics, is_linear, needs_momentum
from lume_diff.models.line.reference import Reference
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.particles.bundle import Static
from lume_diff.particles.constants import c_light
from lume_diff.particles.coordinates import from_coordinates, reference_momentum, to_coordinates
from lume_diff.particles.statistics import BunchStatistics
from lume_diff.particles.weighted import safe_divide, safe_sqrt


@dataclass(frozen=True)
class TrackedBunch:
    """Particles in Cheetah's coordinates (x, px, y, py, tau, p, 1) at the reference, a row for each coordinate.

    What a statistic does not need is not computed: a beam size touches neither momenta nor times, and behind a linear
    stretch the horizontal one takes one row of the map.

    Attributes:
        rows: coordinates behind the last element that is not linear, ``(*batch, 7, n)``.
        matrix: the map from there to here, ``(*batch, 7, 7)``; None for none.
        weight: charge [C], ``(*batch, n)``.
        alive: survival probability, ``(*batch, n)``.
        born: survival probability at the entrance of the line.
        reference: where and at which energy and time.
        static: species, mass, charge number and ids.
        cuts: where hard apertures have cut the bunch.
        sharp: survival probability with hard edges where the apertures are soft.
        lasting: the moments of the rows, once they are known; only where rows, ``alive`` and ``weight`` stay the same
            from run to run.
        keeps_momentum: whether nothing that ``matrix`` stands for changes the momentum of a particle.
    """

    rows: Tensor
    matrix: Tensor | None
    weight: Tensor
    alive: Tensor
    born: Tensor
    reference: Reference
    static: Static
    cuts: tuple[Cut, ...] = ()
    sharp: Tensor | None = None
    lasting: Lasting | None = None
    keeps_momentum: bool = True
    _cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_group(cls, group: TorchParticleGroup, reference_energy: Tensor, reference_time: Tensor) -> TrackedBunch:
        """Return a bunch in the coordinates of a stage's own, fixed reference."""
        group = group.on_z_plane()
        old = len(group.batch_shape)
        batch = torch.broadcast_shapes(reference_energy.shape, reference_time.shape, group.batch_shape)
        if batch != group.batch_shape:
            group = group._map(lambda leaf: leaf.expand(*batch, *leaf.shape[old:]))
        placed = group._with(
            reference_energy=reference_energy.expand(batch), reference_time=reference_time.expand(batch)
        )
        columns = to_coordinates(placed).mT
        rows = torch.cat((columns, torch.ones_like(columns[..., :1, :])), dim=-2)
        reference = Reference(reference_energy, reference_time, group.z[..., 0])
        cuts = Cut.noted(group)
        return cls(rows, None, group.weight, group.alive, group.alive, reference, group._static, cuts)

    def moved(self, particles: Tensor, reference: Reference, **changes: Any) -> TrackedBunch:
        """Return the bunch behind an element that is not linear, with particles ``(*batch, n, 7)``."""
        fresh: dict[str, Any] = {"matrix": None, "lasting": None, "keeps_momentum": True, "_cache": {}}
        return replace(self, rows=particles.mT, reference=reference, **fresh, **changes)

    def passed(self, reference: Reference, **changes: Any) -> TrackedBunch:
        """Return the bunch behind something that leaves the coordinates as they are."""
        if "alive" in changes:
            changes.setdefault("lasting", None)
        return replace(self, reference=reference, _cache={}, **changes)

    def transported(self, matrix: Tensor, reference: Reference, keeps_momentum: bool = True) -> TrackedBunch:
        """Return the bunch behind a linear stretch with map ``(*batch, 7, 7)``."""
        total = matrix if self.matrix is None else matrix @ self.matrix
        keeps = self.keeps_momentum and keeps_momentum
        return replace(self, matrix=total, reference=reference, keeps_momentum=keeps, _cache={})

    @property
    def _linear(self) -> LinearStatistics | None:
        """Statistics from the moments of the rows, or None where these are not known or would cut a graph."""
        if self.lasting is None:
            return None
        if "linear" not in self._cache:
            known = self.lasting.moments(self.rows, self.weight, self.alive, self.mass)
            self._cache["linear"] = (
                None if known is None else LinearStatistics(known, self.matrix, self.reference, self.static)
            )
        return self._cache["linear"]

    def linear_along(self, matrices: Tensor, reference: Reference) -> LinearStatistics | None:
        """Return statistics at many places of a linear stretch, None where the particles have to be looked at.

        Args:
            matrices: maps from here to the places, ``(*batch, places, 7, 7)``.
            reference: energies and times there, ``(*batch, places)`` or with one place for all.
        """
        linear = self._linear
        return None if linear is None else linear.along(matrices, reference)

    @property
    def particles(self) -> Tensor:
        """All coordinates, ``(*batch, n, 7)``."""
        return self._all_rows().mT

    def _all_rows(self) -> Tensor:
        return self.rows if self.matrix is None else self._once("rows", lambda: self.matrix @ self.rows)

    def coordinate(self, index: int) -> Tensor:
        """Return one coordinate of all particles, ``(*batch, n)``."""
        if self.matrix is None or "rows" in self._cache:
            return self._all_rows()[..., index, :]
        matrix = self.matrix
        return self._once(f"row {index}", lambda: (matrix[..., index : index + 1, :] @ self.rows)[..., 0, :])

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions of the coordinates."""
        shape = self.rows.shape[:-2]
        return shape if self.matrix is None else torch.broadcast_shapes(shape, self.matrix.shape[:-2])

    # What BunchStatistics wants of a bunch, in openPMD's units

    @property
    def x(self) -> Tensor:
        """Horizontal position [m], ``(*batch, n)``."""
        return self.coordinate(0)

    @property
    def y(self) -> Tensor:
        """Vertical position [m], ``(*batch, n)``."""
        return self.coordinate(2)

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
        return self._once("px", lambda: self.coordinate(1) * self._p0c)

    @property
    def py(self) -> Tensor:
        """Vertical momentum [eV/c], ``(*batch, n)``."""
        return self._once("py", lambda: self.coordinate(3) * self._p0c)

    @property
    def pz(self) -> Tensor:
        """Longitudinal momentum [eV/c], ``(*batch, n)``."""
        return self.group.pz

    @property
    def t(self) -> Tensor:
        """Time of arrival [s], ``(*batch, n)``."""
        return self._once("t", lambda: self.reference.time.unsqueeze(-1) + self.coordinate(4) / c_light)

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
        linear = self._linear
        if linear is not None:
            return self._once("moments", linear.moments)
        return self._once("moments", lambda: TorchMoments.from_particles(self.group))

    def statistic(self, key: str) -> Tensor:
        """Return a statistic of the living by openPMD name.

        Behind a linear stretch it comes from the moments of a bunch that stays the same, where these say it exactly.
        """
        if self.lasting is not None and is_linear(key) and (self.keeps_momentum or not needs_momentum(key)):
            linear = self._linear
            if linear is not None:
                return linear[key]
        statistics = BunchStatistics(self, alive_only=True)  # type: ignore[arg-type]
        # Only what it has computed is kept: kept itself, it and the bunch would keep each other from being freed.
        statistics._cache = self._once("statistics", dict)
        return statistics[key]

    @property
    def survival(self) -> Tensor:
        """The share of the charge that entered the line alive and lives here, ``(*batch,)``; NaN where none did."""
        return safe_divide((self.weight * self.alive).sum(-1), (self.weight * self.born).sum(-1), math.nan)


#: Statistics that are an entry of the covariance, and where it is.
_SIZES = {"sigma_x": 0, "sigma_y": 2}


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

    def moved(self, mean: Tensor, cov: Tensor, reference: Reference, **changes: Any) -> TrackedMoments:
        """Return the moments somewhere else."""
        return replace(self, mean=mean, cov=cov, reference=reference, _cache={}, **changes)

    def passed(self, reference: Reference) -> TrackedMoments:
        """Return the moments behind something that leaves them as they are."""
        return replace(self, reference=reference, _cache={})

    def transported(self, matrix: Tensor, reference: Reference) -> TrackedMoments:
        """Return the moments behind a linear stretch with map ``(*batch, 7, 7)``."""
        mean = (matrix @ self.mean.unsqueeze(-1)).squeeze(-1)
        return self.moved(mean, matrix @ self.cov @ matrix.mT, reference)

    @property
    def batch_shape(self) -> torch.Size:
        """Leading dimensions of the coordinates."""
        return self.mean.shape[:-1]

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
                    *(
                        v.expand(batch)
                        for v in (self.charge, self.reference.energy, self.reference.time, self.reference.s)
                    ),
                ],
                self.static,
            )
        return self._cache["moments"]

    def statistic(self, key: str) -> Tensor:
        """Return a statistic by openPMD name; a size needs no reference particle."""
        place = _SIZES.get(key)
        return self.moments[key] if place is None else safe_sqrt(self.cov[..., place, place])

    @property
    def survival(self) -> Tensor:
        """The share of the charge that is left, ``(*batch,)``."""
        is_charged = self.born > 0
        return torch.where(is_charged, self.charge / torch.where(is_charged, self.born, 1.0), 1.0)


#: A beam at one place of a line, whichever way it is described.
Tracked = TrackedBunch | TrackedMoments
