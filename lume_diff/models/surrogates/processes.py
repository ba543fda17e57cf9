"""Fitted Gaussian processes, with the linear algebra of their data done once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lume_diff.errors import ValidationError
from lume_diff.models.surrogates.kernels import covariance
from lume_diff.models.surrogates.spread import root
from lume_diff.models.transforms import buffers_kept

_JITTERS = (0.0, 1e-10, 1e-8, 1e-6)  # shares of the variance


class Process(nn.Module):
    """Give mean and standard deviation of one fitted process, of one output or of several that share their inputs.

    Args:
        fitted: BoTorch's ``SingleTaskGP``, or an ``ExactGP`` of GPyTorch with a Gaussian likelihood.
        dtype: of the numbers.

    Raises:
        ValidationError: for a model, a kernel or a transform of outputs that has no posterior in closed form here.

    Source:
        C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning" (2006), algorithm 2.1.
    """

    _x: Tensor
    _weights: Tensor
    _factor: Tensor
    _shift: Tensor
    _stretch: Tensor

    def __init__(self, fitted: Any, dtype: torch.dtype) -> None:
        super().__init__()
        fitted = copy.deepcopy(fitted).to(dtype).requires_grad_(False).eval()
        x, y = fitted.train_inputs[0], fitted.train_targets
        prior = fitted.forward(x)
        noise = fitted.likelihood(prior, x).variance - prior.variance
        self.mean, self.kernel = fitted.mean_module, fitted.covar_module
        self.transform = getattr(fitted, "input_transform", None)
        factor = _factor(covariance(self.kernel, x, x) + torch.diag_embed(noise))
        residual = (y - prior.mean).unsqueeze(-1)
        shift, stretch = _outcome(fitted, y.shape[:-1], dtype)
        buffers = {"_x": x, "_factor": factor, "_shift": shift, "_stretch": stretch}
        buffers["_weights"] = torch.cholesky_solve(residual, factor).squeeze(-1)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.detach().clone())

    @property
    def columns(self) -> int:
        """How many inputs there are."""
        return self._x.shape[-1]

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return self._shift.numel()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation at points.

        Args:
            x: shape `(n, d)`.

        Returns:
            Two tensors of shape `(outputs, n)`.

        Gradient: exact.
        """
        if self.transform is not None:
            with buffers_kept(self.transform):
                x = self.transform(x)
        points = x.expand(*self._x.shape[:-2], *x.shape[-2:])
        cross = covariance(self.kernel, points, self._x)
        mean = self.mean(points) + (cross @ self._weights.unsqueeze(-1)).squeeze(-1)
        explained = torch.linalg.solve_triangular(self._factor, cross.transpose(-1, -2), upper=False)
        spread = root(covariance(self.kernel, points, points, paired=True) - explained.square().sum(-2))
        return self._shift + self._stretch * _rows(mean), self._stretch * _rows(spread)


def processes(fitted: Any, dtype: torch.dtype) -> Iterator[Process]:
    """Yield the processes that a model of BoTorch or GPyTorch is made of, in the order of its outputs."""
    from gpytorch.models import ExactGP

    if hasattr(fitted, "models") and not isinstance(fitted, ExactGP):
        for part in fitted.models:
            yield from processes(part, dtype)
        return
    if (
        not isinstance(fitted, ExactGP)
        or getattr(fitted, "_is_fully_bayesian", False)
        or hasattr(fitted, "_task_feature")
    ):
        raise ValidationError(
            f"the model is a {type(fitted).__name__}; expected BoTorch's SingleTaskGP, a ModelListGP of these, or an "
            "ExactGP of GPyTorch"
        )
    yield Process(fitted, dtype)


def _factor(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor of a covariance, with as much on its diagonal as round-off makes it need."""
    unit = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    level = matrix.diagonal(dim1=-2, dim2=-1).mean()
    for share in _JITTERS:
        factor, failures = torch.linalg.cholesky_ex(matrix + share * level * unit)
        if not bool(failures.any()):
            return factor
    raise ValidationError(
        "the covariance of the process's data is not positive definite: fit it with more noise, or without points that "
        "are there twice"
    )


def _rows(values: Tensor) -> Tensor:
    """Return one row for each output, also where there is one output only."""
    return values if values.dim() > 1 else values.unsqueeze(0)


def _outcome(fitted: Any, batch: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what takes the process to the outputs, ``shift + stretch * y``, each of shape `(outputs, 1)`.

    BoTorch's transforms are asked at three points, so that any linear one will do.
    """
    count = batch.numel()
    points = torch.tensor([0.0, 1.0, 2.0], dtype=dtype).unsqueeze(-1).expand(3, count)
    transform = getattr(fitted, "outcome_transform", None)
    images = points if transform is None else transform.untransform(points)[0]
    shift, stretch = images[0], images[1] - images[0]
    if not torch.allclose(images[2] - images[1], stretch, rtol=1e-9) or not bool((stretch > 0.0).all()):
        raise ValidationError(
            f"the model's outcome transform {type(transform).__name__} is not linear, so that its posterior is no "
            "normal distribution: fit the model with Standardize, or without one"
        )
    return shift.unsqueeze(-1), stretch.unsqueeze(-1)
