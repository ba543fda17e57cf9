"""A bunch of particles as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from lume_diff.errors import ShapeError, UnknownVariableError, ValidationError, nearest_names
from lume_diff.particles import arrays, planes
from lume_diff.particles.access import AliveOnly, StatisticAccess
from lume_diff.particles.bundle import Static, TensorBundle
from lume_diff.particles.checks import as_float_tensors, check_id
from lume_diff.particles.constants import species_constants
from lume_diff.particles.fields import FIELDS, REFERENCES, check_fields, expand_fields, with_references
from lume_diff.particles.keys import statistic_unit
from lume_diff.particles.statistics import BunchStatistics

if TYPE_CHECKING:
    import os

    import beamphysics
    import cheetah

_OWNER = "TorchParticleGroup"


class TorchParticleGroup(TensorBundle, StatisticAccess):
    """Hold a bunch of particles as float tensors.

    The bunch is immutable, a torch pytree (tensors are the leaves), and has statistics by openPMD name.

    Args:
        x, y, z: position [m], each (*batch, n).
        px, py, pz: momentum [eV/c], each (*batch, n).
        t: time [s], (*batch, n).
        weight: charge that a particle stands for [C], not negative, (*batch, n).
        alive: survival probability, 0 to 1, (*batch, n); default 1.
        reference_energy: total energy that the stage refers to [eV], (*batch,). Default: the living particles'
            charge-weighted mean energy, now, as a constant. It never follows the particles later.
        reference_time: time that the stage refers to [s], (*batch,). Default: the mean time, in the same way.
        species: name of the species.
        id: unique integers, (n,); default 1 to n.
        mass: rest energy [eV], only for a species that is not known by name.
        species_charge: charge number, only for a species that is not known by name.

    Shapes broadcast without copying; numbers, lists, arrays and tensors are taken; the default dtype is float64.

    Raises:
        ShapeError: no particle, or shapes that do not fit.
        ValidationError: not float, not finite, a negative weight or no charge at all, a survival probability
            outside [0, 1], ids that are not unique, or an unknown species. Values are not looked at inside
            torch.func transforms.

    Gradient: exact.

    Example:
        >>> import torch
        >>> from lume_diff.particles import TorchParticleGroup
        >>> x = torch.linspace(-1e-3, 1e-3, 5, dtype=torch.float64, requires_grad=True)
        >>> pg = TorchParticleGroup(x=x, y=0.0, z=0.0, px=0.0, py=0.0, pz=1e8, t=0.0, weight=2e-13)
        >>> pg["sigma_x"].backward()
        >>> len(pg), pg.units("sigma_x")
        (5, 'm')
    """

    __slots__ = (*FIELDS, *REFERENCES)
    _leaf_names: ClassVar[tuple[str, ...]] = (*FIELDS, *REFERENCES)

    x: Tensor
    y: Tensor
    z: Tensor
    px: Tensor
    py: Tensor
    pz: Tensor
    t: Tensor
    weight: Tensor
    alive: Tensor
    reference_energy: Tensor
    reference_time: Tensor

    def __init__(
        self,
        x: Any,
        y: Any,
        z: Any,
        px: Any,
        py: Any,
        pz: Any,
        t: Any,
        weight: Any,
        alive: Any = None,
        *,
        reference_energy: Any = None,
        reference_time: Any = None,
        species: str = "electron",
        id: Any = None,
        mass: float | None = None,
        species_charge: float | None = None,
    ) -> None:
        constants = species_constants(species, mass, species_charge)
        given = dict(zip(FIELDS, (x, y, z, px, py, pz, t, weight, 1.0 if alive is None else alive), strict=True))
        references = {"reference_energy": reference_energy, "reference_time": reference_time}
        given |= {name: value for name, value in references.items() if value is not None}
        leaves = expand_fields(as_float_tensors(given, _OWNER), _OWNER)
        check_fields(leaves, constants.mass, _OWNER)
        if id is not None:
            id = check_id(id, leaves["x"].shape[-1], leaves["x"].device, _OWNER)
        static = Static(species, constants.mass, constants.charge, id)
        for name, leaf in with_references(leaves, constants.mass).items():
            object.__setattr__(self, name, leaf)
        object.__setattr__(self, "_static", static)

    # What it is

    @property
    def id(self) -> Tensor:
        """The particles' numbers, int64, (n,)."""
        if self._static.id is None:
            return torch.arange(1, self.n_particle + 1, device=self.x.device)
        return self._static.id

    @property
    def n_particle(self) -> int:
        """The number of particles of one bunch, lost ones included."""
        return self.x.shape[-1]

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.x.shape[:-1]

    def __len__(self) -> int:
        return self.n_particle

    def __repr__(self) -> str:
        batch = f", batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"TorchParticleGroup({self.n_particle} particles of species {self.species!r}{batch}, {self.dtype})"

    def units(self, key: str) -> str:
        """Return the unit of a statistic, as openPMD-beamphysics spells it."""
        return statistic_unit(key)

    @property
    def in_z_coordinates(self) -> bool:
        """Whether all particles of each bunch have one z. Needs values: not inside torch.func transforms."""
        return planes.is_common(self.z)

    @property
    def in_t_coordinates(self) -> bool:
        """Whether all particles of each bunch have one time. Needs values: not inside torch.func transforms."""
        return planes.is_common(self.t)

    # Arrays that are wanted often

    @property
    def p(self) -> Tensor:
        """The total momentum [eV/c], (*batch, n)."""
        return arrays.momentum(self.px, self.py, self.pz)

    @property
    def energy(self) -> Tensor:
        """The total energy [eV], (*batch, n)."""
        return arrays.energy(self.px, self.py, self.pz, self.mass)

    @property
    def charge(self) -> Tensor:
        """The charge of all particles [C], lost ones included, (*batch,)."""
        return self.weight.sum(-1)

    @property
    def reference_momentum(self) -> Tensor:
        """The momentum at the reference energy [eV/c], (*batch,)."""
        return arrays.reference_momentum(self.reference_energy, self.mass)

    # Statistics

    def _statistics(self) -> BunchStatistics:
        return BunchStatistics(self)

    @property
    def alive_only(self) -> AliveOnly:
        """The statistics of the living particles: ``pg.alive_only["sigma_x"]``."""
        return AliveOnly(self)

    def __getitem__(self, key: Any) -> Any:
        """Return a statistic by name, or some of the particles by index, slice or mask.

        Args:
            key: a name, such as ``"sigma_x"`` (all of `openPMD-beamphysics`, and ``"percentile_90_x"``), or
                whatever indexes a tensor (n,).

        Returns:
            A tensor (*batch,) or (*batch, n) in openPMD units; for an index a group.

        Raises:
            UnknownVariableError: no such statistic.
            ShapeError: an index that leaves no particle.

        Gradient: exact.
        """
        if isinstance(key, str):
            return self._statistics()[key]
        return self._select(key)

    def _select(self, index: Any) -> Self:
        index = torch.as_tensor(index) if isinstance(index, Sequence) else index
        if isinstance(index, Integral):
            index = slice(int(index), int(index) + 1 or None)
        if getattr(index, "ndim", 1) != 1:
            raise ShapeError(
                f"{_OWNER}: an index of shape {tuple(index.shape)}; expected a slice, or an index or mask (n,) that "
                "holds for all bunches of the batch"
            )
        chosen = self.id[index]
        if chosen.numel() == 0:
            raise ShapeError(f"{_OWNER}: the index leaves no particle of {self.n_particle}; a bunch has at least one")
        return self._with(
            static=self._static.replace(id=chosen), **{name: getattr(self, name)[..., index] for name in FIELDS}
        )

    # Changed copies

    def replace(self, **fields: Any) -> TorchParticleGroup:
        """Return a copy with some fields changed, checked like a new bunch.

        Args:
            fields: any of the constructor's; shapes broadcast. The reference stays as it is unless given.

        Returns:
            The changed bunch.

        Raises:
            UnknownVariableError: no such field.
            ShapeError, ValidationError: as the constructor.

        Gradient: exact.

        Example:
            >>> import torch
            >>> from lume_diff.particles import TorchParticleGroup
            >>> pg = TorchParticleGroup(torch.zeros(3), 0.0, 0.0, 0.0, 0.0, 1e8, 0.0, 1e-12)
            >>> pg.replace(pz=pg.pz * 1.01)["mean_pz"]
            tensor(1.0100e+08)
        """
        known = (*self._leaf_names, "species", "id", "mass", "species_charge")
        for name in fields:
            if name not in known:
                raise UnknownVariableError(f"{name!r} is not a field of {_OWNER}{nearest_names(name, known)}")
        current: dict[str, Any] = dict(self._leaves())
        current |= {"species": self.species, "id": self._static.id}
        if "species" not in fields:
            current |= {"mass": self.mass, "species_charge": self.charge_number}
        changed = TorchParticleGroup(**(current | fields))
        return changed._with(static=changed._static.replace(notes=self.notes))

    def noted(self, note: str) -> Self:
        """Return a copy with one more note on what was done."""
        return self._with(static=self._static.replace(notes=(*self.notes, note)))

    def batch_item(self, index: Any) -> Self:
        """Return some bunches of a batch.

        Args:
            index: whatever indexes a tensor of shape (*batch,).

        Returns:
            The bunches picked.

        Raises:
            ShapeError: not a batch.

        Gradient: exact.
        """
        if not self.batch_shape:
            raise ShapeError(f"{_OWNER}: batch_item({index!r}) of a single bunch; expected a batch")
        index = index if isinstance(index, tuple) else (index,)
        return self._map(lambda tensor: tensor[index])

    @staticmethod
    def stack(bunches: Sequence[TorchParticleGroup]) -> TorchParticleGroup:
        """Return bunches of one shape and species as a batch with a new first dimension.

        Ids stay where all bunches have the same; notes are those of the first.

        Raises:
            ShapeError: none, or different shapes.
            ValidationError: different species.

        Gradient: exact.
        """
        bunches = list(bunches)
        if not bunches:
            raise ShapeError(f"{_OWNER}.stack: no bunch given; expected at least one")
        if len({bunch.x.shape for bunch in bunches}) > 1:
            raise ShapeError(
                f"{_OWNER}.stack: shapes {[tuple(bunch.x.shape) for bunch in bunches]}; expected one shape"
            )
        if len({(bunch.species, bunch.mass, bunch.charge_number) for bunch in bunches}) > 1:
            raise ValidationError(f"{_OWNER}.stack: species {[bunch.species for bunch in bunches]}; expected one")
        leaves = [torch.stack([getattr(bunch, name) for bunch in bunches]) for name in bunches[0]._leaf_names]
        same = all(bunch._static == bunches[0]._static for bunch in bunches)
        static = bunches[0]._static if same else bunches[0]._static.replace(id=None)
        return TorchParticleGroup._from_leaves(leaves, static)

    # Drifts

    def drift_to_z(self, z: Any = None) -> TorchParticleGroup:
        """Drift each particle along its momentum to a plane of constant z, and note it.

        Args:
            z: where [m], (*batch,). Default: the charge-weighted mean z of the living particles.

        Returns:
            The bunch on the plane, each particle at its own time (see `planes.drift_to_z`).

        Gradient: exact, also to z.
        """
        return planes.drift_to_z(self, z)

    def on_z_plane(self) -> TorchParticleGroup:
        """Return the bunch on a z-plane: itself if it is on one, else drifted to its mean z.

        Where the values cannot tell (inside torch.func transforms), or z carries a gradient, the drift is
        always applied; on a plane it changes no value.
        """
        return self if planes.is_known_on_plane(self) else planes.drift_to_z(self)

    # Conversions

    @classmethod
    def from_particle_group(
        cls,
        particle_group: beamphysics.ParticleGroup,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        reference_energy: Any = None,
        reference_time: Any = None,
    ) -> TorchParticleGroup:
        """Make a bunch from a `beamphysics.ParticleGroup` (see `conversions.from_particle_group`)."""
        from lume_diff.particles.conversions import from_particle_group

        return from_particle_group(particle_group, dtype, device, reference_energy, reference_time)

    def to_particle_group(self) -> beamphysics.ParticleGroup:
        """Return a `beamphysics.ParticleGroup` (see `conversions.to_particle_group`). Gradient: none."""
        from lume_diff.particles.conversions import to_particle_group

        return to_particle_group(self)

    @classmethod
    def from_openpmd(
        cls,
        path: str | os.PathLike[str],
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        reference_energy: Any = None,
        reference_time: Any = None,
    ) -> TorchParticleGroup:
        """Read an openPMD beam file (see `conversions.from_openpmd`)."""
        from lume_diff.particles.conversions import from_openpmd

        return from_openpmd(path, dtype, device, reference_energy, reference_time)

    def to_openpmd(self, path: str | os.PathLike[str]) -> None:
        """Write an openPMD beam file (see `conversions.to_openpmd`)."""
        from lume_diff.particles.conversions import to_openpmd

        to_openpmd(self, path)

    @classmethod
    def from_cheetah(
        cls, beam: cheetah.ParticleBeam, *, reference_time: Any = 0.0, id: Any = None
    ) -> TorchParticleGroup:
        """Make a bunch from a `cheetah.ParticleBeam` (see `cheetah_beams.from_cheetah`). Gradient: exact."""
        from lume_diff.particles.cheetah_beams import from_cheetah

        return from_cheetah(beam, reference_time=reference_time, id=id)

    def to_cheetah(self) -> cheetah.ParticleBeam:
        """Return a `cheetah.ParticleBeam` (see `cheetah_beams.to_cheetah`). Gradient: exact."""
        from lume_diff.particles.cheetah_beams import to_cheetah

        return to_cheetah(self)
