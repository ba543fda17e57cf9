from __future__ import annotations

import mpmath
import pytest
import torch

from lume_diff.errors import ValidationError
from lume_diff.models import optics

SIZES = (1e-12, 1e-8, 1e-4, 1e-2, 0.24, 0.26, 0.5, 1.0, 1.0001, 7.9, 8.1, 10.0, 31.9, 32.1, 100.0)
ARGUMENTS = [0.0, *SIZES, *(-u for u in SIZES)]


def exact_stumpff(k: int, u: float, derivative: int) -> mpmath.mpf:
    with mpmath.workdps(60):
        x = mpmath.mpf(u)
        return mpmath.fsum(
            (-1) ** n * mpmath.ff(n, derivative) * x ** (n - derivative) / mpmath.factorial(2 * n + k)
            for n in range(derivative, 120)
        )


def derivatives(function, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    value = function(x)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return [value.detach(), first.detach(), second]


@pytest.mark.gradient
@pytest.mark.parametrize("orders", [(0, 1), (0, 1, 2, 3), tuple(range(8))], ids=lambda o: f"to{o[-1]}")
@pytest.mark.parametrize("u", ARGUMENTS, ids=lambda u: f"u={u:g}")
def test_stumpff_and_its_derivatives_are_exact(orders, u):
    x = torch.tensor([u], dtype=torch.float64)
    for position, k in enumerate(orders):
        ours = derivatives(lambda x, position=position: optics.stumpff(x, orders)[position], x)
        for number, value in enumerate(ours):
            assert value.item() == pytest.approx(float(exact_stumpff(k, u, number)), rel=1e-12), (k, number)


@pytest.mark.gradient
@pytest.mark.parametrize("x", [0.0, 1e-12, -1e-12, 1e-8, -1e-4, 1e-2, 0.39, -0.39, 0.41, -0.41, -0.95, 3.0, 1e3])
def test_log1p_over_x_and_its_derivatives_are_exact(x):
    ours = derivatives(optics.log1p_over_x, torch.tensor([x], dtype=torch.float64))
    with mpmath.workdps(60):
        for number, value in enumerate(ours):
            if abs(x) < 0.5:
                terms = (
                    (-1) ** n * mpmath.ff(n, number) * mpmath.mpf(x) ** (n - number) / (n + 1)
                    for n in range(number, 300)
                )
                expected = mpmath.fsum(terms)
            else:
                expected = mpmath.diff(lambda y: mpmath.log1p(y) / y, mpmath.mpf(x), number)
            assert value.item() == pytest.approx(float(expected), rel=1e-12), number


@pytest.mark.gradient
@pytest.mark.parametrize("x", [0.0, 1e-9, -1e-3, 0.5, -0.9])
def test_sqrt1p_minus_1_and_its_derivatives_are_exact(x):
    ours = derivatives(optics.sqrt1p_minus_1, torch.tensor([x], dtype=torch.float64))
    with mpmath.workdps(60):
        expected = [mpmath.diff(lambda y: mpmath.sqrt(1 + y) - 1, mpmath.mpf(x), n) for n in range(3)]
    for value, reference in zip(ours, expected, strict=True):
        assert value.item() == pytest.approx(float(reference), rel=1e-12)


def test_sinc_is_one_at_zero_and_follows_sine():
    x = torch.linspace(-9.0, 9.0, 19, dtype=torch.float64)
    torch.testing.assert_close(optics.sinc(x), torch.sinc(x / torch.pi), rtol=0.0, atol=1e-15)


def test_stumpff_stays_finite_at_large_arguments():
    u = torch.tensor([-1e5, 1e5, 1e12], dtype=torch.float64, requires_grad=True)
    values = torch.stack(optics.stumpff(u, (0, 1, 2, 3)))
    assert values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), u)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("orders", [(8,), (-1, 0)], ids=str)
def test_stumpff_refuses_other_orders(orders):
    with pytest.raises(ValidationError, match="expected integers from 0 to 7"):
        optics.stumpff(torch.zeros(1), orders)


def test_float32_is_kept_and_accurate():
    u = torch.tensor([-10.0, -1.0, 0.0, 0.2, 3.0, 10.0])
    values = torch.stack(optics.stumpff(u, (0, 1, 2, 3)))
    exact = torch.stack(optics.stumpff(u.double(), (0, 1, 2, 3)))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-6)


def test_vmap_equals_batch():
    u = torch.linspace(-40.0, 40.0, 33, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: torch.stack(optics.stumpff(x, (0, 3, 7))))(u)
    torch.testing.assert_close(mapped.T, torch.stack(optics.stumpff(u, (0, 3, 7))))
