"""Profiles: projections of images against those of a prediction of free intensity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.granularity import with_granularity
from lume_diff.calibration.likelihoods.measures import fitted_amplitude
from lume_diff.calibration.likelihoods.shots import Shots, screen_shots


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
        expected, measured = target.valid * predicted[target.output], target.valid * target.mean
        variance = target.valid * target.sigma.square()
        parts = []
        for axis in (-2, -1):
            noise = variance.sum(axis)
            seen = noise > 0
            error = torch.where(seen, noise, torch.ones_like(noise)).sqrt()
            here, there = expected.sum(axis) / error, measured.sum(axis) / error
            # The factor is fitted to profiles: that which fits noisy pixels best is too small.
            factor = fitted_amplitude(here, there, seen.to(here.dtype), (-1,))
            parts.append((factor * here - there)[seen])
        return torch.cat(parts)
