"""Images: pixel by pixel against a prediction of free intensity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.measures import fitted_amplitude
from lume_diff.calibration.likelihoods.shots import Shots, screen_shots


class Images(Likelihood):
    """Compare images pixel by pixel, the mean of the shots of each setting with its standard error.

    The intensity of each image is free. Pixels that are masked and settings without a beam do not count.

    Args:
        robust: see ``Likelihood``.

    Gradient:
        Exact.
    """

    def target(self, data: Any) -> Shots:
        """Take mean images, their standard errors and the mask."""
        return screen_shots(data)

    def deviations(self, predicted: Mapping[str, Tensor], target: Shots) -> Tensor:
        """Return the deviation of every pixel that counts, ``(n,)``."""
        image = predicted[target.output]
        weight = target.valid / target.sigma.square()
        factor = fitted_amplitude(image, target.mean, weight, (-2, -1))
        off = (factor * image - target.mean) / target.sigma
        return off[target.counted]
