"""Images: their light against a prediction of free intensity, in all detail that a bunch of macroparticles has."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.detail import Detail, DetailLikelihood
from lume_diff.calibration.likelihoods.measures import fitted_amplitude


class Images(DetailLikelihood):
    """Compare images, the mean of the shots of each setting with its standard error, with free intensity.

    Pixels are weighted by their errors, to which the number of macroparticles that predict them adds, and then
    compared by smooth bumps: single pixels of a bunch of few particles are noise, whose derivatives are noise too and
    would pass for information. Bumps are orthonormal, so that the noise of their amplitudes is white as that of the
    pixels is. Pixels that are masked and settings without a beam do not count.

    Finer bumps resolve more of a beam's shape and need more particles: single ones in the tails pull at its size. With
    the default a few thousand are enough.

    Args:
        detail: standard deviation of the bumps in rms sizes of each measured beam; 0 to compare pixel by pixel, for
            models whose images are smooth.
        robust: see ``Likelihood``.

    Raises:
        ValidationError: for a detail that is negative or coarser than 2 rms sizes.

    Gradient:
        Exact.
    """

    def measured_share(self, target: Detail) -> Tensor:
        """Return the variance that the noise of the data gives to every deviation, ``(n,)``."""
        if not self.detail:
            return target.measured[target.shots.counted]
        found = []
        for setting in target.seen:
            along, across = target.bumps[setting]
            found.append((along.square() @ target.measured[setting] @ across.square().mT).flatten())
        return torch.cat(found)

    def measured_noise(self, slope: Tensor, target: Detail) -> Tensor:
        """Return the covariance that the noise of the data gives to ``slope^T deviations``; bumps share pixels."""
        if not self.detail:
            return slope.mT @ (self.measured_share(target).unsqueeze(-1) * slope)
        sizes = [len(along) * len(across) for along, across in (target.bumps[setting] for setting in target.seen)]
        found = slope.new_zeros(slope.shape[-1], slope.shape[-1])
        for setting, part in zip(target.seen, slope.split(sizes), strict=True):
            along, across = target.bumps[setting]
            bumps = part.mT.unflatten(-1, (len(along), len(across)))
            pixels = ((along.mT @ bumps @ across) * target.measured[setting].sqrt()).flatten(1)
            found = found + pixels @ pixels.mT
        return found

    def deviations(self, predicted: Mapping[str, Tensor], target: Detail) -> Tensor:
        """Return the deviation of every bump, or of every pixel, that counts, ``(n,)``."""
        shots = target.shots
        weight = shots.valid / shots.sigma
        expected, measured = weight * predicted[shots.output], weight * shots.mean
        if not self.detail:
            factor = fitted_amplitude(expected, measured, torch.ones_like(weight), (-2, -1))
            return (factor * expected - measured)[shots.counted]
        found = []
        for setting in target.seen:
            along, across = target.bumps[setting]
            # The factor is fitted to bumps: that which fits noisy pixels best is too small.
            light, wanted = (along @ image[setting] @ across.mT for image in (expected, measured))
            factor = fitted_amplitude(light, wanted, torch.ones_like(wanted), (-2, -1))
            found.append((factor * light - wanted).flatten())
        return torch.cat(found)
