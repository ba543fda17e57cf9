"""Resolution: the blur of the screen that goes with the bunch, as the grain of the images tells it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.fit.priors import Prior
from lume_diff.calibration.likelihoods.measures import moments

_STARTS = 16  # of thin bunches
_FAR = 3.0  # standard deviations of a prior
_FREE = 5  # parameters of a centroid that follows the start


class Aim(NamedTuple):
    """What the variance of a screen's blur should be, with its standard error [m^2]."""

    variance: float
    error: float

    def drawn(self, seed: int) -> Aim:
        """Return another one within the error."""
        random = torch.Generator().manual_seed(seed)
        return self._replace(variance=self.variance + self.error * float(torch.randn((), generator=random)))

    def width(self) -> float:
        """Return the standard deviation [m], at least a tenth of the root of the variance's error."""
        return math.sqrt(max(self.variance, 0.01 * self.error))

    def misfit(self, width: Tensor) -> Tensor:
        """Return how many standard errors the variance of a blur is off.

        Gradient:
            Exact.
        """
        return (width.square() - self.variance) / self.error


def width_coordinate(prior: Prior, width: float) -> float:
    """Return the coordinate of a blur's ``width`` [m], or far out on its side if the prior does not allow it."""
    low, high = prior.support
    if low < width < high:
        return prior.coordinate(width)
    return _FAR if width >= high else -_FAR


def point_spread(images: Callable[[Tensor], Tensor], scale: Tensor, pixel_size: tuple[float, float]) -> float:
    """Return the variance of the image of a point in each plane, pixels and all [m^2].

    Thin bunches start at different places. The variance of their images, and that of the jumps of their centroids
    from pixel to pixel, add up.

    Args:
        images: ``(settings, ny, nx)`` of a thin bunch that starts at ``(4,)`` [m], [rad].
        scale: of the starts, ``(4,)`` [m], [rad].
        pixel_size: width and height [m].
    """
    random = torch.Generator().manual_seed(0)
    starts = scale * (torch.rand(_STARTS, 4, dtype=torch.float64, generator=random) - 0.5)
    found = torch.stack([moments(images(start), pixel_size) for start in starts]).double()
    known = torch.cat((torch.ones_like(starts[:, :1]), starts / scale), dim=-1)
    centroids = found[..., :2].flatten(1)
    jumps = centroids - known @ torch.linalg.lstsq(known, centroids).solution
    jump = jumps.square().sum(0).mean() / (_STARTS - _FREE)
    return float(found[..., 2:4].mean() + jump)
