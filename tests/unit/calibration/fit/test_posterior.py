"""The posterior of a linear problem, which is known in closed form."""

from __future__ import annotations

import pytest
import torch

from lume_diff.calibration.fit.objective import _compressed
from lume_diff.calibration.fit.parameters import Scale
from lume_diff.calibration.fit.posterior import Laplace, standard_errors
from lume_diff.calibration.fit.priors import LogNormal, Normal

D = torch.float64


@pytest.fixture
def jacobian() -> torch.Tensor:
    return torch.randn(40, 3, dtype=D, generator=torch.Generator().manual_seed(1))


def test_compressed_jacobian_says_all_that_a_step_needs(jacobian: torch.Tensor) -> None:
    residuals = torch.randn(40, dtype=D, generator=torch.Generator().manual_seed(2))
    small = _compressed(residuals, jacobian)
    assert small.shape == (4, 3)
    torch.testing.assert_close(small.mT @ small, jacobian.mT @ jacobian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small[0] * residuals.norm(), jacobian.mT @ residuals, rtol=1e-12, atol=1e-12)


def test_compressed_jacobian_at_a_perfect_fit(jacobian: torch.Tensor) -> None:
    small = _compressed(torch.zeros(40, dtype=D), jacobian)
    torch.testing.assert_close(small.mT @ small, jacobian.mT @ jacobian, rtol=1e-12, atol=1e-12)


def test_covariance_adds_the_information_of_prior_and_data(jacobian: torch.Tensor) -> None:
    laplace = Laplace.around(torch.cat((jacobian, torch.eye(3, dtype=D))))
    expected = torch.linalg.inv(jacobian.mT @ jacobian + torch.eye(3, dtype=D))
    torch.testing.assert_close(laplace.covariance, expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(laplace.correlation.diagonal(), torch.ones(3, dtype=D))


def test_sandwich_is_that_of_independent_residuals_if_their_variances_are_one(jacobian: torch.Tensor) -> None:
    slope = torch.cat((jacobian, torch.eye(3, dtype=D)))
    precision = slope.mT @ slope
    plain, sandwich = Laplace.around(slope), Laplace.sandwich(precision, precision)
    torch.testing.assert_close(sandwich.covariance, plain.covariance, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(sandwich.information, plain.information, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Laplace.sandwich(precision, 4.0 * precision).errors, 2.0 * plain.errors)


def test_null_direction_is_named() -> None:
    parameters = [Scale(name, Normal(1.0, 0.02)) for name in ("Q1.k1", "Q2.k1", "Q3.k1")]
    # Only the sum of the first two shows.
    jacobian = torch.tensor([[10.0, 10.0, 0.0], [0.0, 0.0, 5.0]], dtype=D)
    laplace = Laplace.around(torch.cat((jacobian, torch.eye(3, dtype=D))))
    (unresolved,) = laplace.unresolved(parameters)
    assert unresolved.information == pytest.approx(0.0, abs=1e-9)
    weights = unresolved.direction
    assert weights["scale of Q1.k1"] == pytest.approx(-weights["scale of Q2.k1"])
    assert weights["scale of Q3.k1"] == pytest.approx(0.0, abs=1e-9)
    assert "scale of Q1.k1" in str(unresolved)
    assert "scale of Q3.k1" not in str(unresolved)


def test_errors_are_carried_into_units() -> None:
    parameters = [Scale("a", Normal(1.0, 0.02)), Scale("b", LogNormal(1e-6, 2.0))]
    u = torch.tensor([0.5, 0.0], dtype=D)
    found = standard_errors(parameters, u, torch.tensor([0.1, 0.01], dtype=D))
    assert float(found[0]) == pytest.approx(0.002)
    assert float(found[1]) == pytest.approx(1e-6 * 0.01 * 0.6931471805599453, rel=1e-4)
