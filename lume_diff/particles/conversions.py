"""Conversion of bunches to and from openPMD-beamphysics' ParticleGroup and its files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import LatticeError, ShapeError, ValidationError
from lume_diff.particles.constants import load_beamphysics
from lume_diff.particles.fields import FIELDS
from lume_diff.particles.group import TorchParticleGroup

if TYPE_CHECKING:
    import beamphysics


def from_particle_group(
    particle_group: beamphysics.ParticleGroup,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    reference_energy: Any = None,
    reference_time: Any = None,
) -> TorchParticleGroup:
    """Return a `beamphysics.ParticleGroup` as tensors.

    Args:
        particle_group: the particles. A t-snapshot stays one until `on_z_plane`, `drift_to_z` or `to_cheetah`.
        dtype: of the tensors.
        device: of the tensors.
        reference_energy: [eV]; default the living particles' mean energy.
        reference_time: [s]; default the living particles' mean time.

    Returns:
        The bunch; alive is 1 where the status is 1 and 0 for every other status; ids are kept.

    Raises:
        ValidationError: not a ParticleGroup, or bad values.
        ShapeError: an empty bunch.

    Gradient: none; numpy arrays have no history.

    Example:
        >>> from beamphysics.particles import single_particle
        >>> from_particle_group(single_particle(pz=1e8)).n_particle
        1
    """
    data = getattr(particle_group, "data", None)
    if not isinstance(data, dict) or not {"x", "status", "species"} <= set(data):
        raise ValidationError(
            f"from_particle_group: {type(particle_group).__name__} given; expected a beamphysics.ParticleGroup"
        )

    def tensor(name: str) -> Tensor:
        return torch.tensor(data[name], dtype=dtype, device=device)

    fields: dict[str, Any] = {name: tensor(name) for name in FIELDS if name != "alive"}
    return TorchParticleGroup(
        **fields,
        alive=torch.tensor(data["status"] == 1, dtype=dtype, device=device),
        reference_energy=reference_energy,
        reference_time=reference_time,
        species=str(data["species"]),
        id=torch.tensor(data["id"], dtype=torch.int64) if "id" in data else None,
    )


def to_particle_group(bunch: TorchParticleGroup) -> beamphysics.ParticleGroup:
    """Return a bunch as a `beamphysics.ParticleGroup`.

    Args:
        bunch: one bunch, not a batch.

    Returns:
        The particles; status is 1 where alive > 0.5, else 0; ids are kept. The reference has no place in it.

    Raises:
        ShapeError: a batch.
        ValidationError: a species that openPMD-beamphysics does not know.

    Gradient: none; it becomes numpy.

    Example:
        >>> import torch
        >>> from lume_diff.particles import TorchParticleGroup
        >>> len(to_particle_group(TorchParticleGroup(torch.zeros(3), 0.0, 0.0, 0.0, 0.0, 1e8, 0.0, 1e-12)))
        3
    """
    beamphysics = load_beamphysics()
    known = beamphysics.species.MASS_OF

    if bunch.batch_shape:
        raise ShapeError(
            f"to_particle_group: a batch of shape {tuple(bunch.batch_shape)}; a ParticleGroup holds one bunch: "
            "pick one by batch_item(0)"
        )
    if bunch.species not in known:
        raise ValidationError(
            f"to_particle_group: species {bunch.species!r} is not known to openPMD-beamphysics, which has "
            f"{', '.join(sorted(known))}"
        )
    data: dict[str, Any] = {
        name: getattr(bunch, name).detach().cpu().to(torch.float64).numpy().copy() for name in FIELDS if name != "alive"
    }
    data["status"] = (bunch.alive.detach().cpu() > 0.5).to(torch.int64).numpy()
    data["id"] = bunch.id.cpu().numpy().copy()
    data["species"] = bunch.species
    return beamphysics.ParticleGroup(data=data)


def from_openpmd(
    path: str | os.PathLike[str],
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    reference_energy: Any = None,
    reference_time: Any = None,
) -> TorchParticleGroup:
    """Read an openPMD beam file.

    Args:
        path: an HDF5 file with one iteration and one species.
        dtype, device, reference_energy, reference_time: as for `from_particle_group`.

    Returns:
        The bunch.

    Raises:
        LatticeError: no such file, or not an openPMD beam file.
        ValidationError, ShapeError: bad values in it, or no particle.

    Gradient: none.
    """
    file = Path(path)
    if not file.is_file():
        raise LatticeError(f"beam file {str(file)!r} does not exist; expected an openPMD HDF5 file")
    try:
        particle_group = load_beamphysics().ParticleGroup(h5=str(file))
    except Exception as error:  # h5py, KeyError or ValueError, by what is wrong with the file
        raise LatticeError(
            f"beam file {str(file)!r} is not an openPMD beam file ({type(error).__name__}: {error}); expected HDF5 "
            "with the openPMD-beamphysics records of one species, as ParticleGroup.write makes it"
        ) from error
    try:
        return from_particle_group(particle_group, dtype, device, reference_energy, reference_time)
    except (ShapeError, ValidationError) as error:
        raise type(error)(f"beam file {str(file)!r}: {error}") from error


def to_openpmd(bunch: TorchParticleGroup, path: str | os.PathLike[str]) -> None:
    """Write a bunch to an openPMD beam file.

    Args:
        bunch: one bunch, not a batch.
        path: the HDF5 file, which is replaced.

    Raises:
        ShapeError, ValidationError: as `to_particle_group`.

    Gradient: none.
    """
    to_particle_group(bunch).write(str(Path(path)))
