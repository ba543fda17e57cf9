"""The incoming beam at a line's reference, converted once while it stays the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.line.bunch import Tracked, TrackedBunch, TrackedMoments
from lume_diff.models.line.linear_statistics import Lasting
from lume_diff.models.transforms import in_transform, tensors_in
from lume_diff.particles import TorchParticleGroup


@dataclass(frozen=True)
class _Conversion:
    """What was given, its tensors in the versions that they had, and the beam that was made of it."""

    given: Sequence[Any]
    leaves: Sequence[Tensor]
    versions: Sequence[int]
    beam: Tracked

    def holds_for(self, given: Sequence[Any]) -> bool:
        return (
            all(a is b for a, b in zip(self.given, given, strict=True))
            and self.versions == [leaf._version for leaf in self.leaves]
            and not any(leaf.requires_grad for leaf in self.leaves)
        )


class IncomingBeam:
    """Convert what a model is given as its beam, and keep the last conversion that no graph hangs on."""

    def __init__(self) -> None:
        self._last: _Conversion | None = None

    def tracked(self, given: Sequence[Any]) -> Tracked:
        """Return the beam as it is tracked.

        Args:
            given: bunch or moments, reference energy [eV], reference time [s].
        """
        last = self._last  # read once: another thread may put its own there
        if last is not None and last.holds_for(given):
            return last.beam
        convert = TrackedBunch.from_group if isinstance(given[0], TorchParticleGroup) else TrackedMoments.from_moments
        beam = convert(*given)
        if isinstance(beam, TrackedBunch):
            beam = beam.passed(beam.reference, lasting=Lasting(beam.reference.energy))
        leaves = [tensor for value in given for tensor in tensors_in(value)]
        is_plain = not (in_transform() or torch.is_inference_mode_enabled())
        if is_plain and not any(leaf.requires_grad or leaf.is_inference() for leaf in leaves):
            self._last = _Conversion(given, leaves, [leaf._version for leaf in leaves], beam)
        return beam
