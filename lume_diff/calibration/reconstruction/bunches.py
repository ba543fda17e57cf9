"""From coordinates of order one to a bunch at the entrance of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lume_diff.calibration.reconstruction.generators import DIMENSIONS
from lume_diff.errors import ValidationError
from lume_diff.particles import TorchParticleGroup
from lume_diff.particles.bundle import Static
from lume_diff.particles.constants import c_light
from lume_diff.particles.coordinates import from_coordinates

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel


class Entrance:
    """Place a generated bunch at the entrance of a model: energy, plane and charge of its design bunch.

    Args:
        design: the bunch that the model was built with; what is not generated (time and energy of a transverse
            reconstruction) is taken from its spread.
        scale: size of each coordinate for points of order one, ``(d,)``: [m], [rad], and [m], [1] in six dimensions.

    Raises:
        ValidationError: for a scale of another length, or one that is not positive.
    """

    def __init__(self, design: TorchParticleGroup, scale: Tensor) -> None:
        if len(scale) not in DIMENSIONS or not bool((scale > 0.0).all()):
            raise ValidationError(
                f"scale is {scale.tolist()}; expected 4 or 6 positive numbers: sizes [m] and angles [rad]"
            )
        self.scale = scale.to(torch.float64)
        with torch.no_grad():
            self.energy = design["mean_energy"].double()
            self.sigma_energy = design["sigma_energy"].double()
            self.sigma_t = design["sigma_t"].double()
            self.charge = design["charge"].double()
            self.z = design["mean_z"].double()
            self.reference_energy, self.reference_time = design.reference_energy, design.reference_time
            # Angles and energies are relative to the bunch's own momentum, coordinates to the reference.
            momentum, reference = torch.sqrt(self.energy.square() - design.mass**2), design.reference_momentum
            ratio, one = momentum / reference, torch.ones_like(momentum)
            self._units = torch.stack((one, ratio, one, ratio, one, self.energy / reference))
            late = c_light * (design["mean_t"].double() - self.reference_time)
            self._centre = torch.stack((late, (self.energy - self.reference_energy) / reference))
            self._spread = torch.stack((c_light * self.sigma_t, self.sigma_energy / reference))
        self._static = Static(design.species, design.mass, design.charge_number)

    def bunch(self, points: Tensor, longitudinal: Tensor) -> TorchParticleGroup:
        """Return the bunch of generated points.

        Args:
            points: coordinates of order one, ``(n, d)``.
            longitudinal: normal points ``(n, 2)`` for time and energy where d is 4.

        Returns:
            A bunch of n particles of equal charge on the plane of the design bunch.

        Gradient:
            Exact, to ``points``.
        """
        weight, alive = self.weights(len(points)), torch.ones_like(self.charge).expand(len(points))
        return from_coordinates(
            self.coordinates(points, longitudinal),
            weight,
            alive,
            self.reference_energy,
            self.reference_time,
            self.z,
            self._static,
        )

    def weights(self, count: int) -> Tensor:
        """Return the charge of each of some particles [C], ``(count,)``."""
        return (self.charge / count).expand(count)

    def coordinates(self, points: Tensor, longitudinal: Tensor) -> Tensor:
        """Return the bunch as Cheetah's coordinates at the reference, ``(n, 6)``; see ``bunch``."""
        constants = (self.scale * self._units[: len(self.scale)], self._centre, self._spread)
        scale, centre, spread = (constant.to(points.dtype) for constant in constants)
        scaled = points * scale
        delay_and_energy = centre + (spread * longitudinal if points.shape[-1] == 4 else scaled[:, 4:])
        # One coordinate after the other in memory, as the bunch is used.
        return torch.cat((scaled[:, :4].mT, delay_and_energy.mT)).mT


def design_bunch(model: LUMEModel) -> TorchParticleGroup:
    """Return the bunch that a model starts from.

    Raises:
        ValidationError: for a model without ``initial_particles``.
    """
    if "initial_particles" not in model.input_names:
        raise ValidationError(
            "the model takes no 'initial_particles', so no bunch can be reconstructed at its entrance; give one that "
            "does, such as a CheetahModel with a ParticleBeam or the stages behind the source"
        )
    return model.get("initial_particles")


def design_scale(design: TorchParticleGroup) -> Tensor:
    """Return the rms sizes of a bunch in the coordinates of a generator, ``(6,)`` [m], [rad], [m], [1]."""
    with torch.no_grad():
        momentum = design["mean_p"]
        found = [
            design["sigma_x"],
            design["sigma_px"] / momentum,
            design["sigma_y"],
            design["sigma_py"] / momentum,
            c_light * design["sigma_t"],
            design["sigma_energy"] / design["mean_energy"],
        ]
        return torch.stack(found).double()
