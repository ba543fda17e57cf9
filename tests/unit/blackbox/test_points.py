"""What of a black box varies: not a constant that a transform has wrapped, but whatever an outer level moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.blackbox import BlackBoxModel, FiniteDifference
from lume_diff.blackbox.points import wants_gradient
from lume_diff.variables import TorchScalarVariable

F64 = torch.float64


def t(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture
def model() -> BlackBoxModel:
    """Return a b^2 with given steps."""
    return BlackBoxModel.from_function(
        lambda a, b: {"y": a * b**2},
        [TorchScalarVariable(name=name, default_value=1.0) for name in "ab"],
        [TorchScalarVariable(name="y")],
        gradient=FiniteDifference(step=1e-3),
    )


@pytest.fixture
def product(model: BlackBoxModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the model as a function; its first input is wrapped by whatever transform runs."""
    return lambda a, b: model({"a": a * 1.0, "b": b}, outputs=["y"])["y"]


def jvp(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    return torch.func.jvp(function, (at,), (torch.ones_like(at),))[1]


@pytest.mark.parametrize("transform", [lambda f, at: torch.func.grad(f)(at), jvp], ids=["grad", "jvp"])
def test_a_constant_costs_no_runs(
    model: BlackBoxModel, product: Callable[[Tensor, Tensor], Tensor], transform: Callable[..., Tensor]
) -> None:
    constant = t(2.0)
    assert transform(lambda b: product(constant, b), t(3.0)).item() == pytest.approx(12.0)
    assert model.runs == 1 + 2


@pytest.mark.parametrize("transform", [lambda f, at: torch.func.grad(f)(at), jvp], ids=["grad", "jvp"])
def test_what_an_outer_backward_moves_is_no_constant(
    product: Callable[[Tensor, Tensor], Tensor], transform: Callable[..., Tensor]
) -> None:
    a = t(2.0).requires_grad_()
    slope = transform(lambda b: product(a, b), t(3.0))
    assert slope.item() == pytest.approx(12.0)
    assert torch.autograd.grad(slope, a)[0].item() == pytest.approx(6.0, rel=1e-4)


def test_what_an_outer_forward_level_moves_is_no_constant(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    with forward_ad.dual_level():
        a = forward_ad.make_dual(t(2.0), t(1.0))
        slope = forward_ad.unpack_dual(torch.func.grad(lambda b: product(a, b))(t(3.0)))
        assert slope.primal.item() == pytest.approx(12.0)
        assert slope.tangent is not None
        assert slope.tangent.item() == pytest.approx(6.0, rel=1e-4)


@pytest.mark.parametrize("outer", ["grad", "jvp"])
def test_nested_transforms_see_each_other(product: Callable[[Tensor, Tensor], Tensor], outer: str) -> None:
    def over_a(b: Tensor) -> Tensor:
        if outer == "grad":
            return jvp(lambda a: product(a, b * 1.0), t(2.0))
        return torch.func.grad(lambda a: product(a, b * 1.0))(t(2.0))

    found = torch.func.grad(over_a)(t(3.0)) if outer == "grad" else jvp(over_a, t(3.0))
    assert found.item() == pytest.approx(6.0, rel=1e-4)


def test_a_hidden_batch_counts() -> None:
    def look(b: Tensor) -> Tensor:
        seen.append(wants_gradient(b))
        return b

    seen: list[bool] = []
    torch.func.vmap(look)(torch.ones(2, dtype=F64))
    look(t(1.0))
    assert seen == [True, False]
