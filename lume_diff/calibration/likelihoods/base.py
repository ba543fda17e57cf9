"""Likelihood: how far a prediction is from what was measured, in standard deviations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import ValidationError


class Likelihood(ABC):
    """Turn predictions and data into residuals whose half sum of squares is minus the log likelihood.

    A subclass is one file; it becomes known by name through an entry point of the group ``lume_diff.likelihoods``.

    Args:
        robust: residuals beyond this many standard deviations count linearly rather than squared (pseudo-Huber);
            None for a Gaussian.
    """

    #: Whether the data are images (``ScreenDataset``) or numbers (``Dataset``).
    images = True
    #: Whether the particles of a bunch show in the deviations, so that a fit has to look at other bunches too.
    is_granular = False

    def __init__(self, robust: float | None = None) -> None:
        if robust is not None and not robust > 0.0:
            raise ValidationError(f"robust is {robust!r}; expected a positive number of standard deviations, or None")
        self.robust = robust

    @abstractmethod
    def target(self, data: Any) -> Any:
        """Take from a data set, once, what the residuals need of it."""

    def granular(self, target: Any, particles: float) -> Any:
        """Return a target that allows for the noise of a prediction.

        Args:
            target: what ``target`` returned.
            particles: how many macroparticles of equal weight make the prediction.
        """
        return target

    def measured_share(self, target: Any) -> Tensor:
        """Return the variance that the noise of the data gives to every deviation, ``(n,)`` or ``()``.

        It is 1 but for targets that allow for the noise of a prediction.
        """
        return torch.ones((), dtype=torch.float64)

    def measured_noise(self, slope: Tensor, target: Any) -> Tensor:
        """Return the covariance that the noise of the data gives to ``slope^T deviations``, ``(p, p)``.

        Args:
            slope: for instance the derivatives of all deviations, ``(n, p)``.
            target: what ``target`` or ``granular`` returned.
        """
        return slope.mT @ slope

    @abstractmethod
    def deviations(self, predicted: Mapping[str, Tensor], target: Any) -> Tensor:
        """Return ``(predicted - measured) / sigma`` of everything that was measured, ``(n,)``.

        Args:
            predicted: values by output name, ``(settings, *shape)``.
            target: what ``target`` returned.
        """

    def residuals(self, predicted: Mapping[str, Tensor], target: Any) -> Tensor:
        """Return residuals ``(n,)`` whose half sum of squares is minus the log likelihood, but for a constant.

        Args:
            predicted, target: as for ``deviations``.

        Gradient:
            Exact.

        Source:
            P. Charbonnier et al., IEEE Trans. Image Process. 6, 298 (1997), doi:10.1109/83.551699 (pseudo-Huber).
        """
        deviations = self.deviations(predicted, target)
        if self.robust is None:
            return deviations
        return deviations * torch.sqrt(2.0 / (1.0 + torch.sqrt(1.0 + (deviations / self.robust).square())))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(robust={self.robust})"
