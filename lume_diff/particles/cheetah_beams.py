"""Conversion of bunches to and from Cheetah's particle beams."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import PhysicsWarning, ValidationError
from lume_diff.particles.bundle import Static
from lume_diff.particles.checks import check_id, is_concrete
from lume_diff.particles.constants import known_species, species_constants
from lume_diff.particles.coordinates import from_coordinates, to_coordinates
from lume_diff.particles.fields import check_reference_energy
from lume_diff.particles.group import TorchParticleGroup

if TYPE_CHECKING:
    import cheetah


def to_cheetah(bunch: TorchParticleGroup) -> cheetah.ParticleBeam:
    """Return a bunch as a Cheetah beam at the bunch's own reference.

    A bunch that is not on a z-plane is drifted to its mean z first.

    Args:
        bunch: the particles, (*batch, n).

    Returns:
        The beam: tau = c (t - reference_time), p = (E - reference_energy) / p0c, s = z, positive charges,
        survival probabilities; ids and the reference time have no place in it.

    Raises:
        ValidationError: a reference energy at rest.

    Warns:
        PhysicsWarning: particles with pz <= 0, which Cheetah takes as moving forward.

    Gradient: exact.

    Example:
        >>> import torch
        >>> from lume_diff.particles import TorchParticleGroup
        >>> pg = TorchParticleGroup(torch.zeros(3), 0.0, 0.0, 0.0, 0.0, 1e8, 0.0, 1e-12)
        >>> to_cheetah(pg).particles.shape
        torch.Size([3, 7])
    """
    import cheetah

    check_reference_energy(bunch.reference_energy, bunch.mass, "to_cheetah")
    if is_concrete(bunch.pz) and bool((bunch.pz.detach() <= 0.0).any()):
        warnings.warn(
            f"{int((bunch.pz.detach() <= 0.0).sum())} particles have pz <= 0; Cheetah knows forward motion only and "
            "takes them as moving forward",
            PhysicsWarning,
            stacklevel=3,
        )
    bunch = bunch.on_z_plane()
    coordinates = to_coordinates(bunch)
    return cheetah.ParticleBeam(
        particles=torch.cat([coordinates, torch.ones_like(coordinates[..., :1])], dim=-1),
        energy=bunch.reference_energy,
        particle_charges=bunch.weight,
        survival_probabilities=bunch.alive,
        s=bunch.z[..., 0],
        species=cheetah_species(bunch._static, bunch.x),
    )


def from_cheetah(beam: cheetah.ParticleBeam, *, reference_time: Any = 0.0, id: Any = None) -> TorchParticleGroup:
    """Return a Cheetah beam as a bunch on the z-plane z = s.

    Args:
        beam: the beam; its own batch dimensions broadcast.
        reference_time: the time that tau counts from [s], (*batch,).
        id: integers, (n,), which Cheetah does not keep; default 1 to n.

    Returns:
        The bunch: t = reference_time + tau / c, weight = |charge|, alive = survival probability. Values are not
        checked.

    Raises:
        ValidationError: not a particle beam.
        ShapeError: ids of another number.

    Gradient: exact.

    Example:
        >>> import cheetah, torch
        >>> beam = cheetah.ParticleBeam.from_parameters(num_particles=10, dtype=torch.float64)
        >>> from_cheetah(beam).n_particle
        10
    """
    particles = getattr(beam, "particles", None)
    if not isinstance(particles, Tensor):
        raise ValidationError(
            f"from_cheetah: {type(beam).__name__} given; expected a cheetah.ParticleBeam (moments: "
            "TorchMoments.from_cheetah)"
        )
    static = static_of_species(beam.species)
    if id is not None:
        static = static.replace(id=check_id(id, particles.shape[-2], particles.device, "from_cheetah"))
    return from_coordinates(
        particles,
        weight=beam.particle_charges.abs(),
        alive=beam.survival_probabilities,
        reference_energy=beam.energy,
        reference_time=torch.as_tensor(reference_time, dtype=particles.dtype, device=particles.device),
        s=beam.s,
        static=static,
    )


def cheetah_species(static: Static, like: Tensor) -> cheetah.Species:
    """Return the Cheetah species of a bunch, in the dtype and on the device of a tensor."""
    from cheetah import Species

    kwargs: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
    if static.species in Species.known:
        return Species(static.species, **kwargs)
    return Species(
        static.species,
        num_elementary_charges=torch.tensor(static.charge_number, **kwargs),
        mass_eV=torch.tensor(static.mass, **kwargs),
    )


def static_of_species(species: cheetah.Species) -> Static:
    """Return name, mass and charge number of a Cheetah species, which are constants here."""
    if species.name in known_species():
        constants = species_constants(species.name)
    else:
        mass, charge = species.mass_eV.detach().item(), species.num_elementary_charges.detach().item()
        constants = species_constants(species.name, mass, charge)
    return Static(species.name, constants.mass, constants.charge)
