"""Bunches drawn from moments, differentiable in the moments."""

from __future__ import annotations

from functools import lru_cache
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.particles.coordinates import from_coordinates
from lume_diff.particles.group import TorchParticleGroup
from lume_diff.particles.moments import TorchMoments

_LEAST = 7
_RELATIVE_PIVOT = 1e-14


def sample_bunch(moments: TorchMoments, n_particles: int, seed: int = 0) -> TorchParticleGroup:
    """Return a bunch that has exactly the given means and covariances.

    A fixed sample of independent normal numbers is made to have mean 0 and covariance 1 to round-off, and then
    transformed linearly to the moments. The sample depends on the number and the seed only, so the bunch is a
    smooth function of the moments (reparametrisation).

    Args:
        moments: mean, covariance, charge and reference, (*batch,); all bunches of a batch use one sample.
        n_particles: at least 7, so that six coordinates can be independent.
        seed: of the sample.

    Returns:
        The bunch, (*batch, n), on the plane z = s, all alive, equally weighted. A coordinate without spread is
        constant; a charge of 0 C gives weights of 0.

    Raises:
        ValidationError: fewer particles than 7.

    Gradient: exact, to mean, covariance, charge and reference; zero across a direction that has no spread.

    Source: D. P. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014, section 2.4.

    Example:
        >>> from lume_diff.particles import TorchMoments, sample_bunch
        >>> moments = TorchMoments.from_twiss(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6, energy=1e8)
        >>> sample_bunch(moments, 1000).n_particle
        1000
    """
    if not isinstance(n_particles, Integral) or n_particles < _LEAST:
        raise ValidationError(f"n_particles={n_particles!r} of sample_bunch: expected an integer of at least {_LEAST}")
    base = torch.from_numpy(_whitened_normal(int(n_particles), seed)).to(dtype=moments.dtype, device=moments.device)
    coordinates = base @ factor_covariance(moments.cov).mT + moments.mean.unsqueeze(-2)
    weight = (moments.charge / n_particles).unsqueeze(-1)
    return from_coordinates(
        coordinates,
        weight=weight,
        alive=torch.ones_like(weight),
        reference_energy=moments.reference_energy,
        reference_time=moments.reference_time,
        s=moments.s,
        static=moments._static,
    )


@lru_cache(maxsize=4)
def _whitened_normal(n: int, seed: int) -> np.ndarray:
    """Return n normal numbers in six columns with mean 0 and covariance 1 (divisor n), float64, (n, 6).

    numpy's, and kept as numpy's: a tensor would belong to the torch.func transform or inference mode it was made in.
    """
    sample = np.random.default_rng(seed).standard_normal((n, 6))
    for _ in range(2):  # The second pass removes the round-off of the first.
        sample = sample - sample.mean(axis=0)
        root = np.linalg.cholesky(sample.T @ sample / n)
        sample = np.linalg.solve(root, sample.T).T
    return np.ascontiguousarray(sample)


def factor_covariance(cov: Tensor) -> Tensor:
    """Return the lower triangular L with L L^T = cov, where directions without spread give zero columns.

    A library's Cholesky stops at a singular matrix or needs jitter, which would change the moments; a beam
    without energy spread, or with perfectly correlated coordinates, is no error here.

    Args:
        cov: (*batch, k, k).

    Returns:
        (*batch, k, k).

    Gradient: exact; zero through a column that is zero.
    """
    size = cov.shape[-1]
    zero = torch.zeros_like(cov[..., 0, 0])
    rows: list[list[Tensor]] = [[zero] * size for _ in range(size)]
    for j in range(size):
        pivot = cov[..., j, j]
        for k in range(j):
            pivot = pivot - rows[j][k] * rows[j][k]
        spread = pivot > _RELATIVE_PIVOT * cov[..., j, j]
        root = torch.sqrt(torch.where(spread, pivot, 1.0))
        rows[j][j] = torch.where(spread, root, 0.0)
        for i in range(j + 1, size):
            entry = cov[..., i, j]
            for k in range(j):
                entry = entry - rows[i][k] * rows[j][k]
            rows[i][j] = torch.where(spread, entry / root, 0.0)
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
