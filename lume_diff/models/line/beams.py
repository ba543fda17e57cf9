"""Whatever describes an incoming beam, as the bunch or the moments that a line tracks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lume_diff.errors import LatticeError, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup


def as_beam(beam: Any, dtype: torch.dtype, device: torch.device) -> TorchParticleGroup | TorchMoments:
    """Return an incoming beam as a bunch on a z-plane, or as moments.

    Args:
        beam: a ``TorchParticleGroup``, ``TorchMoments``, ``beamphysics.ParticleGroup``, ``cheetah.ParticleBeam``,
            ``cheetah.ParameterBeam``, or the path of an openPMD (``.h5``) or Astra (``.astra``, ``.ini``, ``.txt``,
            ``.001``) file.
        dtype, device: of the result.

    Raises:
        ValidationError: for anything else.
        LatticeError: for a file that is not what it should be.
    """
    if isinstance(beam, (str, os.PathLike)):
        beam = read_beam(Path(beam))
    if isinstance(beam, TorchParticleGroup):
        return beam.to(device=device, dtype=dtype).on_z_plane()
    if isinstance(beam, TorchMoments):
        return beam.to(device=device, dtype=dtype)
    module = type(beam).__module__.partition(".")[0]
    if module in ("beamphysics", "pmd_beamphysics"):
        return TorchParticleGroup.from_particle_group(beam, dtype=dtype, device=device).on_z_plane()
    if module == "cheetah" and hasattr(beam, "particles"):
        return TorchParticleGroup.from_cheetah(beam).to(device=device, dtype=dtype)
    if module == "cheetah" and hasattr(beam, "mu"):
        return TorchMoments.from_cheetah(beam).to(device=device, dtype=dtype)
    raise ValidationError(
        f"beam is a {type(beam).__module__}.{type(beam).__qualname__}; expected a TorchParticleGroup, TorchMoments, "
        "a beamphysics.ParticleGroup, a Cheetah beam, or the path of an openPMD or Astra file"
    )


def read_beam(path: Path) -> TorchParticleGroup:
    """Read a bunch from an openPMD or Astra file.

    Raises:
        LatticeError: if the file is missing or neither.
    """
    if not path.is_file():
        raise LatticeError(f"beam file {str(path)!r} does not exist; expected an openPMD (.h5) or Astra file")
    with path.open("rb") as file:
        is_hdf5 = file.read(8) == b"\x89HDF\r\n\x1a\n"
    if is_hdf5 or path.suffix in (".h5", ".hdf5"):
        return TorchParticleGroup.from_openpmd(path)
    import cheetah

    try:
        return TorchParticleGroup.from_cheetah(cheetah.ParticleBeam.from_astra(str(path), dtype=torch.float64))
    except Exception as error:
        raise LatticeError(
            f"beam file {str(path)!r} is neither an openPMD file (HDF5) nor an Astra distribution: {error}"
        ) from error
