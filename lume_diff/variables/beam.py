"""Variables that are a whole beam: a bunch of particles, or its moments."""

from __future__ import annotations

import math
import sys
import warnings
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from pydantic import field_validator
from torch import Tensor

from lume_diff.errors import OutOfRangeWarning, ValidationError
from lume_diff.variables.base import Variable
from lume_diff.variables.coercion import refuse
from lume_diff.variables.limits import has_values

if TYPE_CHECKING:
    from lume_diff.particles import TorchMoments, TorchParticleGroup


class _BeamVariable(Variable):
    """Share what the two kinds of beam have in common; not for use outside this file."""

    _fields: ClassVar[tuple[str, ...]]
    """What must be finite."""

    @field_validator("default_value", mode="before")
    @classmethod
    def _no_default(cls, value: Any) -> None:
        if value is not None:
            raise ValueError("a beam is no part of a description; give it to the model instead")

    @property
    def is_differentiable(self) -> bool:
        """True: a beam is made of float tensors."""
        return True

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the batch dimensions of a beam."""
        return torch.Size(value.batch_shape)

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Any:
        """Return a beam in the model's dtype, or raise.

        Args:
            value: a TorchParticleGroup, or a `beamphysics.ParticleGroup`, which is converted; of a MomentsVariable a
                TorchMoments.
            dtype: the dtype of its tensors.
            device: where they go; None leaves them where they are.
            config: for an output, what NaN does: ``"error"``, ``"warn"`` or ``"none"``. NaN never passes on an input.

        Returns:
            The beam; one that fits is returned as it is.

        Raises:
            ValidationError: not such a beam, one without particles, or numbers that are not finite.

        Gradient: exact.
        """
        policy = self._policy(config)
        beam = self._beam(value, dtype).to(dtype=dtype, device=device)
        self._finite(beam, policy)
        return beam

    @abstractmethod
    def _beam(self, value: Any, dtype: torch.dtype) -> Any:
        """Return a value as a beam, or raise."""

    def _finite(self, beam: Any, policy: str) -> None:
        """Raise unless every number of the beam is finite; for an output the policy decides."""
        if self.read_only and policy == "none":
            return
        for field in self._fields:
            tensor: Tensor = getattr(beam, field)
            if not has_values(tensor) or math.isfinite(tensor.detach().sum().item()):
                continue
            count = int((~torch.isfinite(tensor)).sum())
            if count == 0:  # only the sum overflowed
                continue
            message = f"variable {self.name!r}: {count} of {tensor.numel()} values of {field!r} are not finite"
            if not self.read_only or policy == "error":
                raise ValidationError(f"{message}; leave those particles out, or find where the NaN came from")
            warnings.warn(message, OutOfRangeWarning, stacklevel=3)


@final
class ParticleGroupVariable(_BeamVariable):
    """Describe a bunch of particles; values are `lume_diff.particles.TorchParticleGroup`.

    The declared ``unit`` stays empty: each array of a bunch has its own. There is no ``default_value``; a model
    has its bunch from elsewhere.

    Raises:
        ValidationError: a field is unknown, missing or wrong.

    Example:
        >>> ParticleGroupVariable(name="final_particles", read_only=True).is_differentiable
        True
    """

    _fields = ("x", "y", "z", "px", "py", "pz", "t", "weight", "alive", "reference_energy", "reference_time")

    def _beam(self, value: Any, dtype: torch.dtype) -> TorchParticleGroup:
        from lume_diff.particles import TorchParticleGroup

        beamphysics = sys.modules.get("beamphysics")
        if isinstance(value, TorchParticleGroup):
            bunch = value
        elif beamphysics is not None and isinstance(value, beamphysics.ParticleGroup):
            bunch = TorchParticleGroup.from_particle_group(value, dtype=dtype)
        else:
            raise refuse(
                self.name,
                value,
                "a TorchParticleGroup or a beamphysics.ParticleGroup",
                "read a file with TorchParticleGroup.from_openpmd(path), convert a beam with .from_cheetah(beam)",
            )
        if bunch.n_particle == 0:
            raise ValidationError(f"variable {self.name!r}: received a bunch without particles; give at least one")
        return bunch


@final
class MomentsVariable(_BeamVariable):
    """Describe a bunch by its first and second moments; values are `lume_diff.particles.TorchMoments`.

    The declared ``unit`` stays empty, and there is no ``default_value``; a model has its beam from elsewhere.

    Raises:
        ValidationError: a field is unknown, missing or wrong.

    Example:
        >>> MomentsVariable(name="final_moments", read_only=True).read_only
        True
    """

    _fields = ("mean", "cov", "charge", "reference_energy", "reference_time", "s")

    def _beam(self, value: Any, dtype: torch.dtype) -> TorchMoments:
        from lume_diff.particles import TorchMoments

        if not isinstance(value, TorchMoments):
            raise refuse(
                self.name, value, "a TorchMoments", "take them of a bunch with TorchMoments.from_particles(bunch)"
            )
        return value
