"""The node of a black box composes with everything torch has to differentiate with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from lume_diff.blackbox.node import black_box
from lume_diff.errors import GradientError

pytestmark = pytest.mark.gradient


def smooth(x: Tensor) -> Tensor:
    """Return two functions of three numbers."""
    return torch.stack([x[..., 0].sin() * x[..., 1] ** 2 + x[..., 2], x.prod(-1).exp()], -1)


class ExactBox:
    """A black box whose derivatives are exact, so that only the node is on trial; it counts what it is asked."""

    n_in, n_out = 3, 2

    def __init__(self) -> None:
        self.asked: list[int] = []

    def derivative(self, points: Tensor, order: int) -> Tensor:
        self.asked.append(order)
        function: Callable[..., Any] = smooth
        for _ in range(order):
            function = jacrev(function)
        with torch.enable_grad():
            return torch.stack([function(point) for point in points.detach()]).detach()


def boxed(x: Tensor) -> Tensor:
    return black_box(x, ExactBox())


POINT = torch.tensor([0.3, 0.5, -0.2], dtype=torch.float64)
STACK = torch.stack([POINT, POINT + 1.0])

NESTINGS: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "jacrev": lambda f: jacrev(f)(POINT),
    "jacfwd": lambda f: jacfwd(f)(POINT),
    "hessian": lambda f: hessian(f)(POINT),
    "jacrev-jacrev": lambda f: jacrev(jacrev(f))(POINT),
    "jacfwd-jacfwd": lambda f: jacfwd(jacfwd(f))(POINT),
    "jacrev-jacfwd": lambda f: jacrev(jacfwd(f))(POINT),
    "jacfwd-jacrev": lambda f: jacfwd(jacrev(f))(POINT),
    "vmap": lambda f: vmap(f)(STACK),
    "vmap-vmap": lambda f: vmap(vmap(f))(STACK.reshape(2, 1, 3)),
    "vmap-in-dim": lambda f: vmap(f, in_dims=1)(STACK.T),
    "vmap-jacrev": lambda f: vmap(jacrev(f))(STACK),
    "vmap-hessian": lambda f: vmap(hessian(f))(STACK),
    "jacfwd-vmap": lambda f: jacfwd(lambda x: vmap(f)(torch.stack([x, 2 * x])))(POINT),
    "jacrev-vmap": lambda f: jacrev(lambda x: vmap(f)(torch.stack([x, 2 * x])))(POINT),
    "grad-grad": lambda f: grad(lambda x: grad(lambda y: f(y).sum())(x).square().sum())(POINT),
    "jvp-jvp": lambda f: jvp(lambda x: jvp(f, (x,), (x,))[1], (POINT,), (POINT,))[1],
    "jvp-grad": lambda f: jvp(grad(lambda x: f(x).sum()), (POINT,), (POINT,))[1],
}


@pytest.mark.parametrize("name", NESTINGS)
def test_nesting_equals_autograd(name: str) -> None:
    found, expected = NESTINGS[name](boxed), NESTINGS[name](smooth)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="reverse"),
        pytest.param({"check_forward_ad": True}, id="forward"),
        pytest.param({"check_batched_grad": True}, id="batched"),
        pytest.param({"check_forward_ad": True, "check_batched_forward_grad": True}, id="batched-forward"),
    ],
)
def test_gradcheck(options: dict[str, bool]) -> None:
    assert torch.autograd.gradcheck(boxed, STACK.clone().requires_grad_(), **options)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="reverse-reverse"),
        pytest.param({"check_fwd_over_rev": True}, id="forward-reverse"),
        pytest.param({"check_batched_grad": True}, id="batched"),
    ],
)
def test_gradgradcheck(options: dict[str, bool]) -> None:
    assert torch.autograd.gradgradcheck(boxed, STACK.clone().requires_grad_(), **options)


def test_double_backward_asks_for_second_derivatives_once_each() -> None:
    box = ExactBox()
    x = POINT.clone().requires_grad_()
    (first,) = torch.autograd.grad(black_box(x, box).sum(), x, create_graph=True)
    first.sum().backward()
    assert box.asked == [0, 1, 2]


def test_a_value_asks_for_no_derivative() -> None:
    box = ExactBox()
    black_box(POINT.clone().requires_grad_(), box)
    assert box.asked == [0]


def test_third_derivative_is_refused() -> None:
    with pytest.raises(GradientError, match="third derivative"):
        grad(lambda x: hessian(boxed)(x).sum())(POINT)
