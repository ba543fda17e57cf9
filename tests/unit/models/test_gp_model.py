"""GPModel: BoTorch's and GPyTorch's own posteriors, gradients, and models that have no closed form."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lume_diff.errors import ReadOnlyError, ShapeError, ValidationError
from lume_diff.models import GPModel
from lume_diff.models.surrogates.kernels import matern
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

gpytorch = pytest.importorskip("gpytorch", reason="GPyTorch is not installed")
models = pytest.importorskip("botorch.models", reason="BoTorch is not installed")
transforms = pytest.importorskip("botorch.models.transforms")
kernels = gpytorch.kernels

# BoTorch's advice on the scale of data, of which these tests want some that is not scaled.
pytestmark = pytest.mark.filterwarnings(r"ignore:Data \(")

F64 = torch.float64
NAMES = ("a", "b", "c")


def scalars(*names: str) -> list[TorchScalarVariable]:
    return [TorchScalarVariable(name=name, default_value=0.4, value_range=(0.0, 2.0)) for name in names]


def results(*names: str) -> list[TorchScalarVariable]:
    return [TorchScalarVariable(name=name, unit="m") for name in names]


def data(outputs: int = 1) -> tuple[Tensor, Tensor]:
    x = 2.0 * torch.rand(20, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    y = torch.stack([100.0 * x.sum(-1).sin(), 1e-4 * x.prod(-1)], -1)
    return x, y[:, :outputs]


def single(outputs: int = 1, **options: Any) -> Any:
    return models.SingleTaskGP(*data(outputs), outcome_transform=transforms.Standardize(outputs), **options)


class Plain(gpytorch.models.ExactGP):
    """What the tutorials of GPyTorch start with."""

    def __init__(self) -> None:
        x, y = data()
        super().__init__(x, y[:, 0] / 100.0, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.LinearMean(3)
        self.covar_module = kernels.ScaleKernel(kernels.RBFKernel())
        self.double()
        self.likelihood.noise = 1e-3

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fixed_noise() -> Any:
    x, y = data()
    return models.SingleTaskGP(x, y, train_Yvar=1.0 + x[:, :1])


CASES: dict[str, Callable[[], Any]] = {
    "one output": single,
    "two outputs": lambda: single(2, input_transform=transforms.Normalize(3)),
    "list": lambda: models.ModelListGP(single(input_transform=transforms.Normalize(3)), fixed_noise()),
    "no transforms": lambda: models.SingleTaskGP(*data(2)),
    "fixed noise": fixed_noise,
    "Matern 1/2": lambda: single(covar_module=kernels.MaternKernel(nu=0.5)),
    "Matern 3/2": lambda: single(covar_module=kernels.ScaleKernel(kernels.MaternKernel(nu=1.5, ard_num_dims=3))),
    "Matern 5/2": lambda: single(2, covar_module=kernels.MaternKernel(nu=2.5, batch_shape=torch.Size([2]))),
    "sum and product": lambda: single(
        covar_module=kernels.ScaleKernel(kernels.RBFKernel(active_dims=[0, 2]))
        + kernels.LinearKernel() * kernels.RQKernel(ard_num_dims=3)
    ),
    "GPyTorch's own": Plain,
}


def posterior(fitted: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation as BoTorch or GPyTorch has them, by its exact algebra."""
    with gpytorch.settings.fast_computations(False, False, False):
        fitted.eval()
        found = fitted(x) if isinstance(fitted, Plain) else fitted.posterior(x)
        return found.mean.detach().reshape(len(x), -1), found.variance.detach().sqrt().reshape(len(x), -1)


def built(fitted: Any) -> GPModel:
    count = fitted.num_outputs if hasattr(fitted, "num_outputs") else 1
    return GPModel(fitted, scalars(*NAMES), results(*"yz"[:count]))


def inputs(x: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, x.unbind(-1), strict=True))


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_mean_and_deviation_are_the_posteriors(make: Callable[[], Any]) -> None:
    fitted = make()
    model = built(fitted)
    x = 2.0 * torch.rand(9, 3, dtype=F64, generator=torch.Generator().manual_seed(3))
    mean, deviation = posterior(copy.deepcopy(fitted), x)
    found = model(inputs(x))
    for column, name in enumerate("yz"[: mean.shape[-1]]):
        torch.testing.assert_close(
            found[name], mean[:, column], rtol=1e-9, atol=1e-9 * float(mean[:, column].abs().max())
        )
        torch.testing.assert_close(found[f"{name}.std"], deviation[:, column], rtol=1e-9, atol=0.0)
        assert model.supported_variables[f"{name}.std"].unit == "m"


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_gradients_are_right_in_both_modes(make: Callable[[], Any]) -> None:
    model = built(make())
    function = model.tensor_function(NAMES, model.output_names)
    x = torch.tensor([[0.3, 1.1, 0.7], [1.9, 0.2, 1.4]], dtype=F64, requires_grad=True)
    scale = function(x).detach().abs()
    assert torch.autograd.gradcheck(lambda x: function(x) / scale, x, check_forward_ad=True, check_batched_grad=True)


def test_a_second_hessian_is_the_first() -> None:
    model = built(single(2, input_transform=transforms.Normalize(3)))
    function = model.tensor_function(NAMES, ["y"])
    x = torch.tensor([0.3, 1.1, 0.7], dtype=F64)
    first, second = (torch.func.hessian(lambda x: function(x)[0])(x) for _ in range(2))
    assert torch.equal(first, second)


def test_at_a_point_of_the_data_gradient_and_hessian_are_finite() -> None:
    fitted = single(covar_module=kernels.MaternKernel(nu=2.5))
    model = built(fitted)
    function = model.tensor_function(NAMES, ["y"])
    x = data()[0][4]
    step = 1e-3
    hessian = torch.func.hessian(lambda x: function(x)[0])(x)
    corner = torch.eye(3, dtype=F64) * step
    rough = [
        [
            float(function(x + a + b) - function(x + a - b) - function(x - a + b) + function(x - a - b)) / (4 * step**2)
            for b in corner
        ]
        for a in corner
    ]
    torch.testing.assert_close(
        hessian, torch.tensor(rough, dtype=F64), rtol=0.0, atol=1e-3 * float(hessian.abs().max())
    )
    deviation = torch.func.grad(lambda x: model.tensor_function(NAMES, ["y.std"])(x)[0])(x)
    assert bool(deviation.isfinite().all())


@pytest.mark.parametrize("nu", [0.5, 1.5, 2.5])
def test_the_series_of_materns_covariance_meets_the_formula(nu: float) -> None:
    squares = torch.logspace(-12, 1, 200, dtype=F64)
    a = (2.0 * nu * squares).sqrt()
    factor = {0.5: 1.0 + 0.0 * a, 1.5: 1.0 + a, 2.5: 1.0 + a + a**2 / 3.0}[nu]
    torch.testing.assert_close(matern(nu, squares), factor * (-a).exp(), rtol=5e-16, atol=2e-16)


def test_at_zero_distance_the_smooth_ones_have_their_slope() -> None:
    squares = torch.zeros((), dtype=F64, requires_grad=True)
    for nu, slope in ((1.5, -1.5), (2.5, -5.0 / 6.0)):
        (gradient,) = torch.autograd.grad(matern(nu, squares), squares)
        assert gradient.item() == pytest.approx(slope, rel=1e-14)


def test_far_from_the_data_the_prior_is_left() -> None:
    model = built(models.SingleTaskGP(*data()))
    far = dict.fromkeys(NAMES, torch.tensor(1e3, dtype=F64))
    with pytest.raises(ValidationError, match="'a'"):
        model(far)
    wide = GPModel(model.simulator, scalars(*NAMES), results("y"), validation=dict.fromkeys(NAMES, "none"))
    assert wide(far)["y.std"].item() == pytest.approx(float(data()[1].std()), rel=1e-9)


@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3)], ids=str)
def test_outputs_have_the_batch_of_the_inputs(batch: tuple[int, ...]) -> None:
    found = built(single(2))({"a": torch.full(batch, 0.5, dtype=F64)})
    assert {value.shape for value in found.values()} == {batch}


def test_the_model_that_was_given_stays_as_it_is() -> None:
    fitted = single().train()
    before = copy.deepcopy(fitted.state_dict())
    model = built(fitted)
    model.get()
    assert model.simulator is fitted
    assert fitted.training
    assert all(torch.equal(value, fitted.state_dict()[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in fitted.parameters())


def test_a_deviation_cannot_be_written() -> None:
    with pytest.raises(ReadOnlyError, match=r"y\.std"):
        built(single()).set({"y.std": 1.0})


def not_linear() -> Any:
    x, y = data()
    return models.SingleTaskGP(x, y + 200.0, outcome_transform=transforms.Log())


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "outcome": (not_linear, "outcome transform Log is not linear"),
    "kernel": (lambda: single(covar_module=kernels.PeriodicKernel()), "has a PeriodicKernel; expected RBFKernel"),
    "several tasks": (
        lambda: models.MultiTaskGP(
            torch.cat([data()[0], torch.arange(20.0)[:, None] % 2], -1), data()[1], task_feature=-1
        ),
        "the model is a MultiTaskGP",
    ),
    "no process": (lambda: torch.nn.Linear(3, 1), "the model is a Linear; expected"),
}


@pytest.mark.parametrize("make, match", BAD.values(), ids=BAD)
def test_a_model_without_a_closed_form_is_refused(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        built(make())


def test_variables_have_to_fit() -> None:
    fitted = single()
    with pytest.raises(ShapeError, match="the model has 3 inputs and 1 outputs, but there are 2 input and 1 output"):
        GPModel(fitted, scalars("a", "b"), results("y"))
    with pytest.raises(ShapeError, match="2 output variables"):
        GPModel(fitted, scalars(*NAMES), results("y", "z"))
    with pytest.raises(ValidationError, match="'w'"):
        GPModel(fitted, [*scalars("a", "b"), TorchNDVariable(name="w", shape=(1,))], results("y"))


def test_an_input_without_a_value_is_named() -> None:
    model = GPModel(single(), [TorchScalarVariable(name=name) for name in NAMES], results("y"))
    with pytest.raises(ValidationError, match=r"'b'.* without a value"):
        model({"a": 1.0})
    assert math.isfinite(model(dict.fromkeys(NAMES, 1.0))["y"].item())
