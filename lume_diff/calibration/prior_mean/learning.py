"""What a mean learns from the data: the best of many starts, under the covariance of the Gaussian process."""

from __future__ import annotations

import torch
from botorch.models import SingleTaskGP
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from lume_diff.calibration.prior_mean.gp_mean import PhysicalMean

#: Starts that are tried, those that are followed, and steps of each.
_TRIED, _FOLLOWED, _STEPS = 64, 6, 20

#: Difference for slopes, in standard deviations of the priors: round-off and curvature both stay below 1e-3 of a slope.
_DIFFERENCE = 1e-3


def learn(gp: SingleTaskGP, variance: float | None = None) -> None:
    """Move the parameters of a GP's mean to where data and priors are most likely, its covariance left as it is.

    The objective is a sum of squares, and multimodal where settings are few: steps of Levenberg and Marquardt from
    the middle of the priors, from where the parameters are, and from the best of draws from the priors. All go together
    in one batch.

    Args:
        gp: with a ``PhysicalMean`` of a ``ModelMean`` that has parameters.
        variance: what the mean of the covariance's diagonal is made [of standardised data]; left as it is if None.

    Source:
        J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., Springer (2006), section 10.3.
    """
    mean = gp.mean_module
    with torch.no_grad():
        task = _Task(gp, variance)
        coordinates = mean.model.calibration.coordinates
        given = coordinates.detach().to(task.x)
        draws = torch.quasirandom.SobolEngine(len(given), scramble=True, seed=0).draw(_TRIED, dtype=given.dtype)
        draws = torch.erfinv(1.998 * draws.to(given) - 0.999) * 2.0**0.5
        tried = task.cost(task.residuals(draws), draws)
        best = draws[tried.argsort()[: _FOLLOWED - 2]]
        found, cost = task.followed(torch.cat((torch.zeros_like(given)[None], given[None], best)))
        coordinates.copy_(found[cost.argmin()])
    mean.forget()


class _Task:
    """Residuals of the data, whitened by the GP's covariance, as a function of the mean's parameters."""

    def __init__(self, gp: SingleTaskGP, variance: float | None) -> None:
        training = gp.training
        gp.eval()
        self.x, self._y = gp.train_inputs[0], gp.train_targets
        prior = MultivariateNormal(torch.zeros_like(self._y), gp.covar_module(self.x))
        covariance = gp.likelihood(prior, self.x).covariance_matrix
        if variance is not None:
            covariance = covariance * (variance / covariance.diagonal().mean())
        self._root = torch.linalg.cholesky(covariance)
        self._mean: PhysicalMean = gp.mean_module
        self._physical = self._mean.physical(self.x)
        gp.train(training)

    def residuals(self, coordinates: Tensor) -> Tensor:
        """Return residuals ``(s, n)`` at parameters ``(s, p)``."""
        mean = self._mean.standardised(self._mean.model.at(self._physical, coordinates))
        off = torch.linalg.solve_triangular(self._root, (self._y - mean).mT, upper=False).mT
        return off.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)

    @staticmethod
    def cost(residuals: Tensor, coordinates: Tensor) -> Tensor:
        """Return the negative log posterior ``(s,)``, up to a constant."""
        return 0.5 * (residuals.square().sum(-1) + coordinates.square().sum(-1))

    def followed(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return where starts ``(s, p)`` lead, and the costs there ``(s,)``."""
        count, p = at.shape
        eye = torch.eye(p, dtype=at.dtype, device=at.device)
        damping = torch.full((count, 1, 1), 1e-2, dtype=at.dtype, device=at.device)
        residuals = self.residuals(at)
        cost = self.cost(residuals, at)
        for _ in range(_STEPS):
            moved = self.residuals((at.unsqueeze(1) + _DIFFERENCE * eye).flatten(0, 1)).unflatten(0, (count, p))
            slopes = (moved - residuals.unsqueeze(1)) / _DIFFERENCE
            curvature = slopes @ slopes.mT + eye
            downhill = (slopes @ residuals.unsqueeze(-1)).squeeze(-1) + at
            damped = curvature + damping * torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))
            trial = at - torch.linalg.solve(damped, downhill)
            trial_residuals = self.residuals(trial)
            trial_cost = self.cost(trial_residuals, trial)
            is_better = trial_cost < cost
            gained = (cost - trial_cost)[is_better]
            at = torch.where(is_better.unsqueeze(-1), trial, at)
            residuals = torch.where(is_better.unsqueeze(-1), trial_residuals, residuals)
            cost = torch.where(is_better, trial_cost, cost)
            damping = torch.where(is_better[:, None, None], damping * 0.1, damping * 10.0).clamp(1e-9, 1e9)
            if is_better.all() and float(gained.max()) < 1e-4:
                break
        return at, cost
