"""Values: numbers that instruments read, each with its standard error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood


class Readings(NamedTuple):
    """Means over shots by output, their standard errors, and which of them there are, ``(settings,)`` each."""

    mean: dict[str, Tensor]
    error: dict[str, Tensor]
    counted: dict[str, Tensor]


class Values(Likelihood):
    """Compare numbers, the mean of the shots of each setting with its standard error.

    Args:
        robust: see ``Likelihood``.

    Gradient:
        Exact.
    """

    images = False

    def target(self, data: Any) -> Readings:
        """Take means and standard errors."""
        mean, error, counted = {}, {}, {}
        for name, readings in data.outputs.items():
            weight = np.where(data.valid[name], data.weights / np.square(data.sigma[name]), 0.0)
            total = weight.sum(1)
            seen = total > 0.0
            total = np.where(seen, total, 1.0)
            mean[name] = torch.tensor((weight * readings).sum(1) / total)
            error[name] = torch.tensor(total**-0.5)
            counted[name] = torch.tensor(seen)
        return Readings(mean, error, counted)

    def deviations(self, predicted: Mapping[str, Tensor], target: Readings) -> Tensor:
        """Return the deviation of every reading, ``(n,)``."""
        return torch.cat(
            [((predicted[name] - target.mean[name]) / target.error[name])[target.counted[name]] for name in target.mean]
        )
