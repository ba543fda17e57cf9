"""Between a mean in physical units and a GP on normalised inputs and standardised targets."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from xopt.generators.bayesian.models.prior_mean import CustomMean

from lume_diff.calibration.prior_mean.model_mean import ModelMean
from lume_diff.errors import PhysicsWarning


class PhysicalMean(CustomMean):
    """Call a mean in physical units from a GP in its own.

    Training asks for it at the same points again and again: what it said there is kept while nothing trains it.

    Args:
        mean: in physical units.
        input_transform: the GP's, or None where inputs are physical already.
        outcome_transform: the GP's ``Standardize``.
        fixed_model: whether training leaves the mean alone.
    """

    def __init__(self, mean: Any, input_transform: Any, outcome_transform: Any, fixed_model: bool = True) -> None:
        super().__init__(mean, input_transform, outcome_transform, fixed_model=fixed_model)
        self._kept: tuple[Tensor, Tensor] | None = None

    @property
    def is_learning(self) -> bool:
        """Whether training may move the mean."""
        return any(parameter.requires_grad for parameter in self.model.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean, standardised, ``(*batch, n)``, at normalised inputs ``(*batch, n, d)``."""
        if self.is_learning or x.dim() > 2 or x.requires_grad:
            return self.standardised(self.model(self.physical(x)))
        if self._kept is None or not torch.equal(x, self._kept[0]):
            self._kept = x.detach().clone(), self.standardised(self.model(self.physical(x))).detach()
        return self._kept[1]

    def forget(self) -> None:
        """Ask anew at the training points: the mean has changed."""
        self._kept = None

    def physical(self, x: Tensor) -> Tensor:
        """Return inputs in the variables' units."""
        return x if self.input_transformer is None else self.input_transformer.untransform(x)

    def standardised(self, objective: Tensor) -> Tensor:
        """Return an objective as the GP's targets are."""
        transform = self.outcome_transformer
        if transform is None:
            return objective
        return (objective - transform.means.squeeze(-1)) / transform.stdvs.squeeze(-1)

    def spread(self, x: Tensor) -> Tensor:
        """Return how far one standard deviation of each learned parameter moves the mean, ``(n, p)``, at ``(n, d)``.

        Gradient: none; central differences over a tenth of a standard deviation.
        """
        mean = self.model
        if not (isinstance(mean, ModelMean) and mean.calibration.is_learning):
            return x.new_zeros(x.shape[-2], 0)
        with torch.no_grad():
            step = 0.1
            at = mean.calibration.coordinates.detach().to(x)
            moves = step * torch.eye(len(at), dtype=x.dtype, device=x.device)
            found = mean.at(self.physical(x), torch.cat([at + moves, at - moves]))
            above, below = self.standardised(found).chunk(2)
        return ((above - below) / (2.0 * step)).T


def emulation_of(gp: Any, objective: str) -> str:
    """Return in words how good a GP's mean is as an emulator of its model; warn if its error matters.

    It does where it is larger than the noise of the objective and more than half of what the mean tells of the data.
    """
    mean = gp.mean_module.model
    emulation = mean.emulation if isinstance(mean, ModelMean) else None
    if emulation is None:
        return ""
    gp.eval()
    with torch.no_grad():
        unit = float(gp.outcome_transform.stdvs)
        noise = float(gp.likelihood.noise.mean().sqrt()) * unit
        y = gp.train_targets
        left = y - gp.mean_module(gp.train_inputs[0])
        told = float((y.var() - left.var()).clamp_min(0.0).sqrt()) * unit
    if emulation.error > max(noise, 0.5 * told) and len(y) > 2:
        more = "raise max_runs" if emulation.is_spent else "it will be refined"
        warnings.warn(
            f"the emulator of {objective!r} is wrong by {emulation.error:.2g}; the objective's noise is {noise:.2g}, "
            f"and the model explains {told:.2g} of the data: {more}, or narrow the ranges",
            PhysicsWarning,
            stacklevel=2,
        )
    return str(emulation)
