"""The Gaussian process with a model as its mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from botorch.models import SingleTaskGP
from gpytorch.distributions import Distribution, MultivariateNormal
from torch import Tensor


class ModelGP(SingleTaskGP):
    """Ask the mean at new points only; the same numbers as botorch's own.

    That one asks at the training points again with every candidate, which for a model is most of the work.
    """

    def _get_test_prior_mean_and_covariances(
        self, train_inputs: Iterable[Tensor], test_inputs: Iterable[Tensor], **kwargs: Any
    ) -> tuple[Tensor, Tensor, Tensor, torch.Size, torch.Size, type[Distribution]]:
        (train,), (test,) = train_inputs, test_inputs
        batch = torch.broadcast_shapes(train.shape[:-2], test.shape[:-2])
        train, test = (x.expand(*batch, *x.shape[-2:]) for x in (train, test))
        mean, own = self.mean_module(test), self.covar_module(test).to_dense()
        across = self.covar_module(test, train).to_dense()
        return mean, own, across, batch, test.shape[-2:-1], MultivariateNormal
