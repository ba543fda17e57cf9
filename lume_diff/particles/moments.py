"""The first and second moments of a bunch as tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lume_diff.errors import ShapeError, UnknownVariableError, ValidationError, nearest_names
from lume_diff.particles.arrays import reference_momentum
from lume_diff.particles.bundle import Static, TensorBundle
from lume_diff.particles.checks import as_float_tensors, broadcast_batch, check_bounds, check_finite, is_concrete
from lume_diff.particles.constants import species_constants
from lume_diff.particles.coordinates import to_coordinates
from lume_diff.particles.fields import check_reference_energy
from lume_diff.particles.keys import statistic_unit
from lume_diff.particles.moment_statistics import MomentStatistics
from lume_diff.particles.weighted import round_off_of_constant, safe_divide

if TYPE_CHECKING:
    import cheetah

    from lume_diff.particles.group import TorchParticleGroup

_OWNER = "TorchMoments"
_BATCHED = ("charge", "reference_energy", "reference_time", "s")


class TorchMoments(TensorBundle):
    """Hold mean and covariance of a bunch on a z-plane, in Cheetah's coordinates.

    The coordinates are (x, px, y, py, tau, p): x, y, tau = c (t - reference_time) in m; px, py and
    p = (E - reference_energy) / c in units of the reference momentum.

    Args:
        mean: (*batch, 6).
        cov: (*batch, 6, 6), symmetric, without negative eigenvalues. It is the covariance of the charge as it
            is, without Bessel's correction, as ``sigma_x`` of a ParticleGroup has none.
        charge: of the living [C], not negative, (*batch,).
        reference_energy: total energy [eV], (*batch,).
        reference_time: [s], (*batch,).
        s: position of the plane [m], (*batch,).
        species: name of the species.
        mass: rest energy [eV], only for a species that is not known by name.
        species_charge: charge number, only for a species that is not known by name.

    Raises:
        ShapeError: shapes that do not fit.
        ValidationError: not float, not finite, not a covariance, or an unknown species. Values are not looked
            at inside torch.func transforms.

    Gradient: exact.

    Example:
        >>> from lume_diff.particles import TorchMoments
        >>> moments = TorchMoments.from_twiss(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6, energy=1e8)
        >>> moments["twiss_beta_x"]
        tensor(10., dtype=torch.float64)
    """

    __slots__ = ("charge", "cov", "mean", "reference_energy", "reference_time", "s")
    _leaf_names: ClassVar[tuple[str, ...]] = ("mean", "cov", "charge", "reference_energy", "reference_time", "s")

    mean: Tensor
    cov: Tensor
    charge: Tensor
    reference_energy: Tensor
    reference_time: Tensor
    s: Tensor

    def __init__(
        self,
        mean: Any,
        cov: Any,
        charge: Any = 0.0,
        reference_energy: Any = None,
        reference_time: Any = 0.0,
        s: Any = 0.0,
        species: str = "electron",
        *,
        mass: float | None = None,
        species_charge: float | None = None,
    ) -> None:
        if reference_energy is None:
            raise ValidationError(f"{_OWNER}: reference_energy is missing; expected the total energy [eV] it refers to")
        constants = species_constants(species, mass, species_charge)
        given = dict(zip(self._leaf_names, (mean, cov, charge, reference_energy, reference_time, s), strict=True))
        tensors = as_float_tensors(given, _OWNER)
        if tensors["mean"].shape[-1:] != (6,) or tensors["cov"].shape[-2:] != (6, 6):
            raise ShapeError(
                f"{_OWNER}: mean has shape {tuple(tensors['mean'].shape)} and cov {tuple(tensors['cov'].shape)}; "
                "expected (*batch, 6) and (*batch, 6, 6) in the order x, px, y, py, tau, p"
            )
        shapes = {"mean's batch": tensors["mean"].shape[:-1], "cov's batch": tensors["cov"].shape[:-2]}
        batch = broadcast_batch(shapes | {name: tensors[name].shape for name in _BATCHED}, _OWNER)
        tails = {"mean": (6,), "cov": (6, 6)}
        leaves = {name: tensor.expand((*batch, *tails.get(name, ()))) for name, tensor in tensors.items()}
        check_finite(leaves, _OWNER)
        check_bounds("charge", leaves["charge"], 0.0, None, _OWNER, "in C, taken positive for every species")
        check_reference_energy(leaves["reference_energy"], constants.mass, _OWNER)
        _check_covariance(leaves["cov"])
        for name, leaf in leaves.items():
            object.__setattr__(self, name, leaf)
        object.__setattr__(self, "_static", Static(species, constants.mass, constants.charge))

    @property
    def batch_shape(self) -> torch.Size:
        """The leading dimensions."""
        return self.mean.shape[:-1]

    @property
    def reference_momentum(self) -> Tensor:
        """The momentum at the reference energy [eV/c], (*batch,)."""
        return reference_momentum(self.reference_energy, self.mass)

    def __repr__(self) -> str:
        batch = f", batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"TorchMoments(species {self.species!r}{batch}, {self.dtype})"

    def __getitem__(self, key: str) -> Tensor:
        """Return a statistic by its openPMD name, in openPMD units.

        Args:
            key: ``mean_``, ``sigma_`` and ``cov_`` of x, y, z, px, py, t and energy, which are exact, and of
                quantities that depend on these (p, pz, gamma, xp, ...), to first order in the spread;
                ``norm_emit_x/y/4d``, ``twiss_*``, ``charge``, ``mass``, ``species_charge``.

        Returns:
            The value, (*batch,).

        Raises:
            UnknownVariableError: a statistic that is not there, or that needs particles.

        Gradient: exact; of what is computed to first order, that of the value given.
        """
        return MomentStatistics(self)[key]

    def twiss(self, plane: str = "x", p0c: Tensor | float | None = None) -> dict[str, Tensor]:
        """Return Twiss parameters and dispersion, named as by `TorchParticleGroup.twiss`.

        Args:
            plane: ``"x"``, ``"y"`` or ``"xy"``.
            p0c: reference momentum [eV/c]; left out, the mean momentum.

        Returns:
            ``alpha_x``, ``beta_x`` [m], ``gamma_x`` [1/m], ``emit_x`` [m], ``eta_x`` [m], ``etap_x``,
            ``norm_emit_x`` [m], and so for y; each (*batch,).

        Gradient: exact.
        """
        return MomentStatistics(self).twiss(plane, p0c)

    def statistics(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return many statistics at once: name to value, (*batch,).

        Args:
            keys: statistics' names, such as ``["sigma_x", "norm_emit_x"]``.

        Raises:
            UnknownVariableError: a statistic that is not there, or that needs particles.

        Gradient: exact; of what is computed to first order, that of the value given.
        """
        engine = MomentStatistics(self)
        return {key: engine[key] for key in keys}

    def units(self, key: str) -> str:
        """Return the unit of a statistic, as openPMD-beamphysics spells it."""
        return statistic_unit(key)

    def replace(self, **fields: Any) -> TorchMoments:
        """Return a copy with some fields changed, checked like new moments.

        Raises:
            UnknownVariableError: no such field.

        Gradient: exact.
        """
        known = (*self._leaf_names, "species", "mass", "species_charge")
        for name in fields:
            if name not in known:
                raise UnknownVariableError(f"{name!r} is not a field of {_OWNER}{nearest_names(name, known)}")
        current: dict[str, Any] = dict(self._leaves()) | {"species": self.species}
        if "species" not in fields:
            current |= {"mass": self.mass, "species_charge": self.charge_number}
        return TorchMoments(**(current | fields))

    # Conversions

    @classmethod
    def from_particles(cls, bunch: TorchParticleGroup) -> TorchMoments:
        """Return the moments of the living particles of a bunch, at the bunch's reference.

        Args:
            bunch: the particles; a bunch that is not on a z-plane is drifted to one.

        Returns:
            The moments. ``sigma_*`` and ``mean_*`` of x, y, px, py, t and energy equal those of
            ``bunch.alive_only``; ``cov_*`` and emittances of ``bunch.alive_only`` are larger than these by Bessel's
            factor, 1 / (1 - sum w^2 / (sum w)^2), which is n / (n - 1) for equal weights. All lost: zero moments and
            charge.

        Gradient: exact.
        """
        bunch = bunch.on_z_plane()
        weight = bunch.weight * bunch.alive
        charge = weight.sum(-1)
        share = safe_divide(weight, charge.unsqueeze(-1), 0.0)
        columns = to_coordinates(bunch).mT
        mean = (share.unsqueeze(-2) * columns).sum(-1)
        mean = mean + torch.where(charge.unsqueeze(-1) > 0.0, round_off_of_constant(columns, mean), 0.0)
        centred = columns - mean.unsqueeze(-1)
        cov = (share.unsqueeze(-2) * centred) @ centred.mT
        leaves = (mean, cov, charge, bunch.reference_energy, bunch.reference_time, bunch.z[..., 0])
        return cls._from_leaves(leaves, bunch._static.replace(id=None))

    @classmethod
    def from_twiss(
        cls,
        *,
        beta_x: Any,
        norm_emit_x: Any,
        beta_y: Any,
        norm_emit_y: Any,
        energy: Any,
        alpha_x: Any = 0.0,
        alpha_y: Any = 0.0,
        sigma_t: Any = 0.0,
        sigma_energy: Any = 0.0,
        cov_t__energy: Any = 0.0,
        charge: Any = 0.0,
        mean_x: Any = 0.0,
        mean_px: Any = 0.0,
        mean_y: Any = 0.0,
        mean_py: Any = 0.0,
        reference_energy: Any = None,
        reference_time: Any = 0.0,
        s: Any = 0.0,
        species: str = "electron",
        mass: float | None = None,
        species_charge: float | None = None,
    ) -> TorchMoments:
        """Return the moments of given Twiss parameters and emittances (see `beam_parameters.from_twiss`).

        Args:
            beta_x, beta_y: [m]; alpha_x, alpha_y: [1]; norm_emit_x, norm_emit_y: [m].
            energy: mean total energy [eV].
            sigma_t: [s]; sigma_energy: [eV]; cov_t__energy: [s eV].
            charge: [C].
            mean_x, mean_y: [m]; mean_px, mean_py: [eV/c].
            reference_energy: [eV], default ``energy``.
            reference_time: [s], which is the mean time too.
            s: position [m].
            species, mass, species_charge: as for the constructor.

        All (*batch,), broadcast.

        Returns:
            The moments, whose ``twiss_*`` and ``norm_emit_*`` are those given.

        Gradient: exact.
        """
        from lume_diff.particles.beam_parameters import from_twiss

        arguments = dict(locals())
        return from_twiss(**{name: value for name, value in arguments.items() if name not in ("cls", "from_twiss")})

    def to_cheetah(self) -> cheetah.ParameterBeam:
        """Return a `cheetah.ParameterBeam` at the same reference; the reference time has no place in it.

        Gradient: exact.
        """
        import cheetah

        from lume_diff.particles.cheetah_beams import cheetah_species

        return cheetah.ParameterBeam(
            mu=torch.cat([self.mean, torch.ones_like(self.mean[..., :1])], dim=-1),
            cov=torch.nn.functional.pad(self.cov, (0, 1, 0, 1)),
            energy=self.reference_energy,
            total_charge=self.charge,
            s=self.s,
            species=cheetah_species(self._static, self.mean),
        )

    @classmethod
    def from_cheetah(cls, beam: cheetah.ParameterBeam, *, reference_time: Any = 0.0) -> TorchMoments:
        """Return the moments of a `cheetah.ParameterBeam`; values are not checked.

        Args:
            beam: the beam; its own batch dimensions broadcast.
            reference_time: the time that tau counts from [s], (*batch,).

        Returns:
            The moments; charge = |total charge|.

        Raises:
            ValidationError: not a parameter beam.

        Gradient: exact.
        """
        from lume_diff.particles.cheetah_beams import static_of_species

        mu, cov = getattr(beam, "mu", None), getattr(beam, "cov", None)
        if not isinstance(mu, Tensor) or not isinstance(cov, Tensor):
            raise ValidationError(
                f"from_cheetah: {type(beam).__name__} given; expected a cheetah.ParameterBeam (particles: "
                "TorchParticleGroup.from_cheetah)"
            )
        time = torch.as_tensor(reference_time, dtype=mu.dtype, device=mu.device)
        scalars = (beam.total_charge.abs(), beam.energy, time, beam.s)
        batch = torch.broadcast_shapes(mu.shape[:-1], cov.shape[:-2], *(value.shape for value in scalars))
        leaves = [mu[..., :6].expand(*batch, 6), cov[..., :6, :6].expand(*batch, 6, 6)]
        leaves += [value.to(mu.dtype).expand(batch) for value in scalars]
        return cls._from_leaves(leaves, static_of_species(beam.species))


def _check_covariance(cov: Tensor) -> None:
    if not is_concrete(cov) or cov.numel() == 0:
        return
    cov = cov.detach()
    size = torch.sqrt(torch.diagonal(cov, dim1=-2, dim2=-1).clamp_min(0.0))
    size = torch.where(size == 0.0, 1.0, size)
    correlation = cov / size.unsqueeze(-1) / size.unsqueeze(-2)
    asymmetry = (correlation - correlation.mT).abs().max().item()
    if asymmetry > 1e-6:
        raise ValidationError(
            f"{_OWNER}: cov is not symmetric, by {asymmetry:g} of the diagonal; use (cov + cov.mT) / 2"
        )
    smallest = torch.linalg.eigvalsh(correlation).min().item()
    if smallest < -1e-6:
        raise ValidationError(
            f"{_OWNER}: cov is not a covariance: its correlation matrix has the eigenvalue {smallest:g}; expected none "
            "below 0 (a negative variance, or a correlation above 1)"
        )
