"""Does a model agree with the data? The evidence of two Gaussian processes, each point left out in turn."""

from __future__ import annotations

import math

import torch
from botorch.models import SingleTaskGP
from gpytorch.distributions import MultivariateNormal
from torch import Tensor

from lume_diff.calibration.prior_mean.gp_mean import PhysicalMean

#: How uncertain the level of a constant mean is, in standard deviations of the data.
_LEVEL = 1.0


def leave_one_out(gp: SingleTaskGP) -> float:
    """Return the log density of the data, each point predicted from all others [nats].

    Hyperparameters stay as trained on all points. Parameters of the mean do not: they are marginalised over their
    priors with the mean linearised, so that a mean that can learn more is not trusted more for it. The predicted spread
    has one factor for all points, which is taken where the density is highest: a GP whose mean is good has residuals
    much smaller than the kernel expects.

    Args:
        gp: trained, with one output.

    Source:
        C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, MIT Press (2006), equations
        5.10 to 5.12.
    """
    training = gp.training
    gp.eval()
    try:
        with torch.no_grad():
            x, y = gp.train_inputs[0], gp.train_targets
            covariance = gp.likelihood(MultivariateNormal(torch.zeros_like(y), gp.covar_module(x)), x).covariance_matrix
            mean, directions = _linear_mean(gp, x)
            return log_density(y - mean, covariance + directions @ directions.T)
    finally:
        gp.train(training)


def _linear_mean(gp: SingleTaskGP, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean where its parameters are as the prior expects, and what one standard deviation of each adds."""
    mean = gp.mean_module(x)
    if isinstance(gp.mean_module, PhysicalMean):
        directions = gp.mean_module.spread(x)
        if directions.shape[-1]:
            mean = mean - directions @ gp.mean_module.model.calibration.coordinates.to(x)
        return mean, directions
    return torch.zeros_like(mean), torch.full_like(mean, _LEVEL).unsqueeze(-1)


def log_density(residual: Tensor, covariance: Tensor) -> float:
    """Return the leave-one-out log density [nats] of residuals ``(n,)`` with a covariance ``(n, n)``."""
    n = len(residual)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    inverse_variance = precision.diagonal()
    z = (precision @ residual) / inverse_variance.sqrt()
    factor = z.square().mean().clamp_min(1e-12)
    return float(0.5 * (inverse_variance.log().sum() - n * (factor.log() + 1.0 + math.log(2.0 * math.pi))))


def correlation(gp: SingleTaskGP) -> float:
    """Return the correlation of mean and data: for show, it says little about where the optimum is."""
    with torch.no_grad():
        gp.eval()
        mean, y = gp.mean_module(gp.train_inputs[0]), gp.train_targets
        if len(y) < 3 or float(mean.std()) == 0.0 or float(y.std()) == 0.0:
            return math.nan
        return float(torch.corrcoef(torch.stack([mean, y]))[0, 1])
