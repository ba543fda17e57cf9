"""Sampling: values from the posterior itself, where its shape is no ellipsoid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lume_diff.calibration.fit.objective import Objective
from lume_diff.errors import MissingExtraError

if TYPE_CHECKING:
    from lume_diff.calibration.fit.posterior import Laplace


def sample(objective: Objective, u: Tensor, laplace: Laplace, count: int, warmup: int, seed: int) -> Tensor:
    """Draw from the posterior by the No-U-Turn sampler, started at the best fit and scaled by its covariance.

    Args:
        objective: of the fit.
        u: coordinates of the best fit, ``(p,)``.
        laplace: the posterior around it.
        count, warmup, seed: see ``CalibrationResult.sample``.

    Returns:
        Values of the parameters in their units, ``(count, p)``.

    Raises:
        MissingExtraError: without pyro.

    Source:
        M. D. Hoffman and A. Gelman, J. Mach. Learn. Res. 15, 1593 (2014), arXiv:1111.4246.
    """
    try:
        from pyro.infer import MCMC, NUTS
    except ImportError as error:
        raise MissingExtraError(
            "sampling the posterior needs pyro: pip install 'lume-diff[nuts]' (pyro-ppl)"
        ) from error

    root = torch.linalg.cholesky(laplace.covariance)

    def energy(position: dict[str, Tensor]) -> Tensor:
        return 0.5 * objective.residuals(u + root @ position["w"]).square().sum()

    kernel = NUTS(potential_fn=energy, full_mass=False, jit_compile=False)
    chain = MCMC(
        kernel, num_samples=count, warmup_steps=warmup, initial_params={"w": torch.zeros_like(u)}, disable_progbar=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chain.run()
    return objective.values(u + chain.get_samples()["w"] @ root.mT)
