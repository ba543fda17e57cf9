"""Detail: measured images with bumps that are as fine as the beam on each, and likelihoods that compare by them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.granularity import granular_variance, smoothed
from lume_diff.calibration.likelihoods.moments import beam_moments
from lume_diff.calibration.likelihoods.shots import Shots, screen_shots
from lume_diff.errors import ValidationError

#: Distance between bumps in their standard deviations: neighbours overlap enough to leave no gap, and not more.
_SPACING = 1.5
#: How far errors of pixels are smoothed, in widths of the bumps.
_SMOOTHING = 0.5


class Detail(NamedTuple):
    """Images, and the bumps that they are compared by.

    Attributes:
        shots: images and errors of their pixels.
        measured: share of the data's own noise in the variance of each pixel, ``(settings, ny, nx)``; the rest is that
            of a prediction.
        widths: of the bumps in x and y [pixels], ``(settings, 2)``.
        bumps: for each setting orthonormal rows along y ``(m, ny)`` and along x ``(k, nx)``.
    """

    shots: Shots
    measured: Tensor
    widths: Tensor
    bumps: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, data: Any, detail: float) -> Detail:
        """Take mean images and their errors from a data set, and bumps of ``detail`` rms sizes of each beam."""
        shots = screen_shots(data)
        sizes = beam_moments(shots)[:, 2:4].clamp_min(0.0).sqrt() / shots.mean.new_tensor(shots.pixel_size)
        widths = detail * sizes
        variance = smoothed(shots.sigma.square(), _SMOOTHING * widths)
        ny, nx = shots.mean.shape[-2:]
        bumps = [(_bumps(ny, along), _bumps(nx, across)) for across, along in widths.tolist()]
        measured = shots.valid * shots.sigma.square() / variance
        return cls(shots._replace(sigma=variance.sqrt()), measured, widths, bumps)

    def granular(self, particles: float) -> Detail:
        """Return the same with errors that allow for a prediction from this many macroparticles."""
        own = self.shots.sigma.square()
        variance = own + granular_variance(self.shots, _SMOOTHING * self.widths, particles)
        shots = self.shots._replace(sigma=variance.sqrt())
        return self._replace(shots=shots, measured=self.measured * own / variance)

    @property
    def seen(self) -> list[int]:
        """Settings in which something counts."""
        return torch.nonzero(self.shots.counted.flatten(1).any(1)).flatten().tolist()


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


class DetailLikelihood(Likelihood):
    """Compare what images show by bumps as fine as each beam; share what ``Images`` and ``Profiles`` have in common.

    Args:
        detail: standard deviation of the bumps in rms sizes of each measured beam; 0 for single pixels.
        robust: see ``Likelihood``.

    Raises:
        ValidationError: for a detail that is negative or coarser than 2 rms sizes.
    """

    is_granular = True

    def __init__(self, detail: float = 1.0, robust: float | None = None) -> None:
        super().__init__(robust)
        if not 0.0 <= detail <= 2.0:
            raise ValidationError(f"detail is {detail!r}; expected between 0, for single pixels, and 2 rms sizes")
        self.detail = detail

    def target(self, data: Any) -> Detail:
        """Take mean images, their standard errors and the mask, and bumps that are as fine as each beam."""
        return Detail.of(data, self.detail)

    def granular(self, target: Detail, particles: float) -> Detail:
        """Return a target whose errors allow for a prediction from this many macroparticles."""
        return target.granular(particles)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.detail}, robust={self.robust})"
