"""Profiles: projections of images against those of a prediction of free intensity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.measures import fitted_amplitude
from lume_diff.calibration.likelihoods.shots import Shots, screen_shots, with_granularity


class Profiles(Likelihood):
    """Compare the projections of images on x and on y: robust against noise of single pixels, and cheap.

    Args:
        robust: see ``Likelihood``.

    Gradient:
        Exact.
    """

    def target(self, data: Any) -> Shots:
        """Take mean images, their standard errors and the mask."""
        return screen_shots(data)

    def granular(self, target: Shots, particles: float) -> Shots:
        """Allow for the noise of the prediction."""
        return with_granularity(target, particles)

    def deviations(self, predicted: Mapping[str, Tensor], target: Shots) -> Tensor:
        """Return the deviation of every column and row that counts, ``(n,)``."""
        image = predicted[target.output]
        weight = target.valid / target.sigma.square()
        factor = fitted_amplitude(image, target.mean, weight, (-2, -1))
        off = target.valid * (factor * image - target.mean)
        parts = []
        for axis in (-2, -1):
            variance = (target.valid * target.sigma.square()).sum(axis)
            seen = variance > 0
            parts.append(off.sum(axis)[seen] / variance[seen].sqrt())
        return torch.cat(parts)
