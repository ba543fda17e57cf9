"""Images: their light against a prediction of free intensity, in all detail that a bunch of macroparticles has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.granularity import with_granularity
from lume_diff.calibration.likelihoods.measures import fitted_amplitude
from lume_diff.calibration.likelihoods.moments import beam_moments
from lume_diff.calibration.likelihoods.shots import Shots, screen_shots
from lume_diff.errors import ValidationError

#: Distance between bumps in their standard deviations: neighbours overlap enough to leave no gap, and not more.
_SPACING = 1.5


class Detail(NamedTuple):
    """Images, and the bumps that they are compared by.

    Attributes:
        shots: images and errors of their pixels.
        bumps: for each setting orthonormal rows along y ``(m, ny)`` and along x ``(k, nx)``; None for pixel by pixel.
    """

    shots: Shots
    bumps: list[tuple[Tensor, Tensor]] | None


class Images(Likelihood):
    """Compare images, the mean of the shots of each setting with its standard error, with free intensity.

    Pixels are weighted by their errors, to which the number of macroparticles that predict them adds, and then
    compared by smooth bumps: single pixels of a bunch of few particles are noise, whose derivatives are noise too and
    would pass for information. Bumps are orthonormal, so that the noise of their amplitudes is white as that of the
    pixels is. Pixels that are masked and settings without a beam do not count.

    Use many particles: tails that a few of them predict pull at a beam's size, so that from 5000 an emittance can be
    two of its standard errors off, while those of other parameters are too large rather than too small. ``Moments``
    has neither fault for bunches with exact moments.

    Args:
        detail: standard deviation of the bumps in rms sizes of each measured beam; 0 to compare pixel by pixel, for
            models whose images are smooth.
        robust: see ``Likelihood``.

    Raises:
        ValidationError: for a negative detail.

    Gradient:
        Exact.
    """

    def __init__(self, detail: float = 0.5, robust: float | None = None) -> None:
        super().__init__(robust)
        if not 0.0 <= detail <= 2.0:
            raise ValidationError(f"detail is {detail!r}; expected between 0, for single pixels, and 2 rms sizes")
        self.detail = detail

    def target(self, data: Any) -> Detail:
        """Take mean images, their standard errors and the mask, and bumps that are as fine as each beam."""
        shots = screen_shots(data)
        if not self.detail:
            return Detail(shots, None)
        found = beam_moments(shots)
        bumps = []
        for moments, image in zip(found, shots.mean, strict=True):
            sizes = moments[2:4].clamp_min(0.0).sqrt() / torch.tensor(shots.pixel_size)
            widths = (self.detail * sizes).tolist()
            across, along = (_bumps(n, width) for n, width in zip(reversed(image.shape), widths, strict=True))
            bumps.append((along, across))
        return Detail(shots, bumps)

    def granular(self, target: Detail, particles: float) -> Detail:
        """Allow for the noise of the prediction."""
        return target._replace(shots=with_granularity(target.shots, particles))

    def deviations(self, predicted: Mapping[str, Tensor], target: Detail) -> Tensor:
        """Return the deviation of every bump, or of every pixel, that counts, ``(n,)``."""
        shots = target.shots
        weight = shots.valid / shots.sigma
        expected, measured = weight * predicted[shots.output], weight * shots.mean
        if target.bumps is None:
            factor = fitted_amplitude(expected, measured, torch.ones_like(weight), (-2, -1))
            return (factor * expected - measured)[shots.counted]
        seen = shots.counted.any(-1).any(-1).tolist()
        found = []
        for here, there, (along, across), counts in zip(
            expected.unbind(), measured.unbind(), target.bumps, seen, strict=True
        ):
            if counts:
                # The factor is fitted to bumps: that which fits noisy pixels best is too small.
                light, wanted = along @ here @ across.mT, along @ there @ across.mT
                factor = fitted_amplitude(light, wanted, torch.ones_like(wanted), (-2, -1))
                found.append((factor * light - wanted).flatten())
        return torch.cat(found)

    def __repr__(self) -> str:
        return f"Images({self.detail}, robust={self.robust})"


def _bumps(count: int, width: float) -> Tensor:
    """Return orthonormal rows ``(m, count)`` that span Gaussian bumps of a width [pixels]; single pixels if narrow."""
    number = max(round(count / (_SPACING * width)), 1) if width > 0.0 else count
    if number >= count:
        return torch.eye(count, dtype=torch.float64)
    pixels = torch.arange(count, dtype=torch.float64)
    centres = (torch.arange(number, dtype=torch.float64) + 0.5) * (count / number) - 0.5
    rows = torch.exp(-0.5 * ((pixels - centres.unsqueeze(-1)) / width).square())
    root = torch.linalg.cholesky(rows @ rows.mT)
    return torch.linalg.solve_triangular(root, rows, upper=False)
