"""The process with a model as its mean says what botorch's says, before and after everything that changes it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch

pytest.importorskip("xopt")

import botorch
import gpytorch
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel

from lume_diff.calibration.prior_mean.constructor import residual_kernel
from lume_diff.calibration.prior_mean.gp import ModelGP, covariance

D = torch.float64
KERNELS: dict[str, Callable[[], Kernel]] = {
    "of Xopt with a scale": lambda: residual_kernel(3),
    "of Xopt": lambda: SingleTaskGP(torch.rand(2, 3, dtype=D), torch.rand(2, 1, dtype=D)).covar_module,
    "one length": lambda: ScaleKernel(RBFKernel()),
    "some inputs": lambda: ScaleKernel(RBFKernel(active_dims=(0, 2))),
    "Matern": lambda: ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=3)),
    "sum": lambda: ScaleKernel(RBFKernel()) + MaternKernel(nu=1.5),
}
SHAPES = {"one": (1, 3), "three": (3, 3), "starts": (4, 1, 3), "batches": (2, 4, 3, 3)}


class Bowl(gpytorch.means.Mean):
    """A mean that is not constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - 0.3).square().sum(-1).sin()


@pytest.fixture(autouse=True)
def _as_xopt_needs(double_by_default: None) -> None:
    """Compute in double precision."""


def made(kernel: Kernel | None = None, **options: Any) -> ModelGP:
    """Return a process of ten points that has been asked before, as by an optimiser."""
    x = 10.0 * torch.rand(10, 3, dtype=D)
    y = x.cos().sum(-1, keepdim=True) + 7.0
    chosen = {
        "covar_module": residual_kernel(3) if kernel is None else kernel,
        "mean_module": Bowl(),
        "input_transform": Normalize(3, bounds=torch.tensor([[0.0] * 3, [10.0] * 3], dtype=D)),
        "outcome_transform": Standardize(1),
        **options,
    }
    gp = ModelGP(x, y, **chosen).to(D)
    gp.posterior(x)
    return gp


def both(gp: ModelGP, x: torch.Tensor, **options: Any) -> list[list[torch.Tensor]]:
    """Return mean, covariance and gradient as ``gp`` says, and as botorch does for the same process."""
    found = []
    for kind in (ModelGP, SingleTaskGP):
        gp.__class__ = kind
        at = x.clone().requires_grad_()
        posterior = gp.posterior(at, **options)
        total = posterior.mean.sum() + posterior.variance.log().sum() + posterior.mvn.covariance_matrix.sum()
        parts = [posterior.mean, posterior.variance, posterior.mvn.covariance_matrix]
        found.append([*parts, torch.autograd.grad(total, at)[0]])
    gp.__class__ = ModelGP
    return found


def assert_same(gp: ModelGP, shape: tuple[int, ...] = (4, 3, 3), **options: Any) -> None:
    mine, theirs = both(gp, 10.0 * torch.rand(shape, dtype=D), **options)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def is_plain(gp: ModelGP, x: torch.Tensor) -> bool:
    return type(gp.posterior(x).mvn.lazy_covariance_matrix).__name__ == "DenseLinearOperator"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_numbers_and_gradients_are_botorchs(kernel: Callable[[], Kernel], shape: tuple[int, ...]) -> None:
    gp = made(kernel())
    assert is_plain(gp, torch.rand(shape, dtype=D))
    assert_same(gp, shape)


OPTIONS: dict[str, dict[str, Any]] = {
    "with noise": {"observation_noise": True},
    "with noise that is given": {"observation_noise": torch.full((4, 3, 1), 0.1, dtype=D)},
    "with a weight": {"posterior_transform": ScalarizedPosteriorTransform(torch.tensor([-2.0], dtype=D), 1.0)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_can_be_asked_for_is_botorchs(options: dict[str, Any]) -> None:
    assert_same(made(), **options)


KINDS: dict[str, dict[str, Any]] = {
    "known noise": {"train_Yvar": torch.linspace(0.01, 0.1, 10, dtype=D).unsqueeze(-1)},
    "no transforms": {"input_transform": None, "outcome_transform": None},
    "inputs as they are": {"input_transform": None},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_other_processes_are_botorchs(options: dict[str, Any]) -> None:
    assert_same(made(**options))


SETTINGS: dict[str, Callable[[], Any]] = {
    "no fast variance": lambda: gpytorch.settings.fast_pred_var(False),
    "before the data": gpytorch.settings.prior_mode,
    "gradients of the data": botorch.settings.propagate_grads,
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_gpytorch_hold(setting: Callable[[], Any]) -> None:
    gp = made()
    with setting():
        assert_same(gp)


def new_data(gp: ModelGP) -> None:
    gp.set_train_data(torch.rand(6, 3, dtype=D), torch.randn(6, dtype=D), strict=False)


def new_lengths(gp: ModelGP) -> None:
    gp.train()
    gp.covar_module.base_kernel.lengthscale = 0.3
    gp.likelihood.noise = 0.02


def other_state(gp: ModelGP) -> None:
    gp.load_state_dict({name: 1.1 * value for name, value in gp.state_dict().items()})


@pytest.mark.parametrize("change", [new_data, new_lengths, other_state])
def test_changes_are_followed(change: Callable[[ModelGP], None]) -> None:
    gp = made()
    x = 10.0 * torch.rand(4, 1, 3, dtype=D)
    before = gp.posterior(x)
    change(gp)
    gp.posterior(x)
    assert is_plain(gp, x)
    fresh = deepcopy(gp)  # copies leave out what gpytorch keeps
    fresh.__class__ = SingleTaskGP
    for name in ("mean", "variance"):
        now = getattr(gp.posterior(x), name)
        torch.testing.assert_close(now, getattr(fresh.posterior(x), name), rtol=1e-9, atol=1e-10)
        assert not torch.allclose(now, getattr(before, name), rtol=1e-3)


@pytest.mark.parametrize("copied", [deepcopy, lambda gp: pickle.loads(pickle.dumps(gp))], ids=["copy", "pickle"])
def test_copies_say_the_same(copied: Callable[[ModelGP], ModelGP]) -> None:
    gp, x = made(residual_kernel(3)), 10.0 * torch.rand(4, 3, 3, dtype=D)
    with torch.no_grad():
        gp.posterior(x)
    torch.testing.assert_close(copied(gp).posterior(x).mean, gp.posterior(x).mean)


def test_a_process_with_imagined_data_is_botorchs() -> None:
    gp = made()
    x = 10.0 * torch.rand(2, 3, dtype=D)
    imagined = gp.condition_on_observations(x.expand(5, 2, 3), torch.rand(5, 2, 1, dtype=D))
    assert isinstance(imagined, ModelGP)
    assert_same(imagined, (5, 3, 3))


def test_samples_are_botorchs() -> None:
    gp, x = made(), 10.0 * torch.rand(4, 3, 3, dtype=D)
    base = torch.randn(7, 4, 3, dtype=D)
    mine = gp.posterior(x).rsample_from_base_samples(base.shape[:1], base)
    gp.__class__ = SingleTaskGP
    theirs = gp.posterior(x).rsample_from_base_samples(base.shape[:1], base)
    torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kernel", ["of Xopt with a scale", "one length"])
def test_covariances_are_differentiable_twice(kernel: str) -> None:
    made_kernel = KERNELS[kernel]().to(D)
    at, other = torch.rand(2, 1, 3, dtype=D).requires_grad_(), torch.rand(4, 3, dtype=D)
    torch.testing.assert_close(covariance(made_kernel, at, other), made_kernel(at, other.expand(2, 4, 3)).to_dense())
    assert torch.autograd.gradcheck(lambda x: covariance(made_kernel, x, other), at)
    assert torch.autograd.gradgradcheck(lambda x: covariance(made_kernel, x, other), at)


def test_a_posterior_has_the_gradient_of_differences() -> None:
    gp, x = made(), (10.0 * torch.rand(2, 2, 3, dtype=D)).requires_grad_()
    assert torch.autograd.gradcheck(lambda at: (gp.posterior(at).mean, gp.posterior(at).variance), x)
