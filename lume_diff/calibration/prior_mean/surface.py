"""A smooth function known at some points: the local emulator's answer, its error, and where a run tells most."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from botorch import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch import ExactMarginalLogLikelihood
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, PolynomialKernel, RBFKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from lume_diff.calibration.prior_mean.warps import WARPS, Itself, Warp, slope

#: Of the spread of the values: what rounding and a code's own noise leave at least.
_LEAST_NOISE = 1e-7


class Surface:
    """Interpolate values at points of the unit cube by a Gaussian process: a quadratic, and smooth deviations from it.

    Args:
        points: ``(n, d)``, about in [0, 1].
        values: ``(n,)``.
        warp: what is interpolated in the place of the values.

    Gradient:
        Exact: that of the interpolation.

    Source:
        C. E. Rasmussen and C. K. I. Williams, Gaussian Processes for Machine Learning, MIT Press (2006), equations
        2.23 to 2.26 and 5.10 to 5.12.

    Example:
        >>> x = torch.linspace(0.0, 1.0, 8, dtype=torch.float64)[:, None]
        >>> surface = Surface(x, x.squeeze(-1).square())
        >>> round(float(surface(torch.tensor([[0.53]], dtype=torch.float64))), 3)
        0.281
    """

    def __init__(self, points: Tensor, values: Tensor, warp: Warp = Itself()) -> None:  # noqa: B008 - immutable
        self.warp = warp
        self._points, self._values = points, values
        self._known = warp.forward(values)
        self._middle = self._known.mean()
        spread = self._known.std()
        self._unit = torch.where(spread > 0.0, spread, torch.ones_like(spread))
        scaled = (self._known - self._middle) / self._unit
        self._kernel, noise = _trained(points, scaled)
        with torch.no_grad():
            covariance = self._kernel(points).to_dense() + noise * torch.eye(len(points), dtype=points.dtype)
            self._precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
            self._weights = self._precision @ scaled

    @classmethod
    def smoothest(cls, points: Tensor, values: Tensor) -> Surface:
        """Return the surface of the warp that predicts left-out values best."""
        surfaces = [cls(points, values, warp) for warp in WARPS if warp.fits(values)]
        return min(surfaces, key=lambda surface: surface.leave_one_out_error())

    def __call__(self, points: Tensor) -> Tensor:
        """Return the interpolation, ``(*batch,)``, at ``(*batch, d)``."""
        flat = points.reshape(-1, points.shape[-1])
        return self.warp.back(self._warped(flat), self._known).reshape(points.shape[:-1])

    def _warped(self, points: Tensor) -> Tensor:
        return self._middle + self._unit * (self._kernel(points, self._points).to_dense() @ self._weights)

    def standard_deviation(self, points: Tensor) -> Tensor:
        """Return how uncertain the interpolation is, ``(m,)``, at ``(m, d)``, in the values' unit."""
        with torch.no_grad():
            return self._covariance(points).diagonal().clamp_min(0.0).sqrt()

    def _covariance(self, points: Tensor) -> Tensor:
        across = self._kernel(points, self._points).to_dense()
        covariance = self._kernel(points).to_dense() - across @ self._precision @ across.T
        moves = self._unit * slope(self.warp, self._warped(points), self._known)
        return moves[:, None] * covariance * moves

    def most_uncertain(self, points: Tensor, count: int) -> Tensor:
        """Return the indices of the points at which to run next, each as if the ones before had been run.

        Args:
            points: to choose from, ``(m, d)``.
            count: how many at most; points that are known already are left out.
        """
        with torch.no_grad():
            left = self._covariance(points)
            least = 1e-6 * self._values.var()
            chosen: list[int] = []
            while len(chosen) < min(count, len(points)):
                variance, best = left.diagonal().max(dim=0)
                if bool(variance <= least):
                    break
                chosen.append(int(best))
                column = left[:, best]
                left = left - torch.outer(column, column) / variance
        return torch.tensor(chosen, dtype=torch.long)

    def __deepcopy__(self, memo: dict[int, Any]) -> Surface:
        """Return itself: nothing changes it."""
        return self

    def leave_one_out_error(self) -> float:
        """Return the root mean square of the errors if each value is predicted from all others."""
        predicted = self._known - self._unit * self._weights / self._precision.diagonal()
        return float((self.warp.back(predicted, self._known) - self._values).square().mean().sqrt())


def _trained(points: Tensor, scaled: Tensor) -> tuple[Kernel, Tensor]:
    """Return kernel and noise that make values of spread one most likely."""
    d = points.shape[-1]
    bumps = RBFKernel(ard_num_dims=d, lengthscale_prior=LogNormalPrior(0.3, 1.0))
    deviations = ScaleKernel(bumps, outputscale_prior=LogNormalPrior(-1.0, 2.0))
    kernel = ScaleKernel(PolynomialKernel(power=2), outputscale_prior=LogNormalPrior(0.0, 2.0)) + deviations
    likelihood = GaussianLikelihood(
        noise_prior=LogNormalPrior(-12.0, 2.0), noise_constraint=GreaterThan(_LEAST_NOISE, initial_value=1e-5)
    )
    gp = SingleTaskGP(
        points,
        scaled[:, None],
        likelihood=likelihood,
        covar_module=kernel,
        outcome_transform=None,
        input_transform=None,
    )
    gp.mean_module.initialize(constant=0.0).requires_grad_(False)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(0)  # failed fits are tried again from random values
        warnings.simplefilter("ignore")
        fit_gpytorch_mll(ExactMarginalLogLikelihood(gp.likelihood, gp))
    gp.eval()
    gp.requires_grad_(False)
    return gp.covar_module, gp.likelihood.noise.detach()
