"""Priors: the map from a standard normal coordinate to a value, and back."""

from __future__ import annotations

import math

import pytest
import torch

from lume_diff.calibration.fit.priors import Bounded, LogNormal, Normal, Prior, Uniform
from lume_diff.errors import ValidationError

D = torch.float64
PRIORS = [Normal(2.0, 0.5), LogNormal(1e-6, 2.0), Uniform(-1.0, 3.0), Bounded(0.2, 1.0, -0.5, 3.0), Bounded(1.0, 0.3)]


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_coordinate_is_the_inverse(prior: Prior) -> None:
    for u in (-2.0, -0.3, 0.0, 1.7):
        value = float(prior.at(torch.tensor(u, dtype=D)))
        assert prior.coordinate(value) == pytest.approx(u, abs=1e-9)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_values_rise_and_stay_inside_the_support(prior: Prior) -> None:
    values = prior.at(torch.linspace(-40.0, 40.0, 401, dtype=D))
    low, high = prior.support
    assert bool((values.diff() >= 0.0).all())
    assert bool((values[165:235].diff() > 0.0).all())
    assert bool((values >= low).all())
    assert bool((values <= high).all())


@pytest.mark.parametrize("prior", PRIORS, ids=str)
def test_gradient_is_that_of_a_difference(prior: Prior) -> None:
    u = torch.tensor([-1.5, 0.0, 0.8], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(prior.at, (u,), eps=1e-6, atol=1e-12, rtol=1e-6)


def test_quantiles_are_those_of_the_distribution() -> None:
    one_sigma = torch.special.ndtr(torch.tensor(1.0, dtype=D))
    assert float(Uniform(0.0, 1.0).at(torch.tensor(1.0, dtype=D))) == pytest.approx(float(one_sigma))
    u = torch.randn(200_000, dtype=D, generator=torch.Generator().manual_seed(3))
    values = Bounded(0.0, 1.0, low=0.0).at(u)  # half a normal distribution
    assert float(values.mean()) == pytest.approx(math.sqrt(2.0 / math.pi), rel=5e-3)


def test_truncated_normal_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    prior = Bounded(0.1, 0.3, 0.0, 1.0)
    exact = stats.truncnorm((0.0 - 0.1) / 0.3, (1.0 - 0.1) / 0.3, loc=0.1, scale=0.3)
    for u in (-4.0, -1.0, 0.5, 3.0):
        share = float(torch.special.ndtr(torch.tensor(u, dtype=D)))
        assert float(prior.at(torch.tensor(u, dtype=D))) == pytest.approx(float(exact.ppf(share)), rel=1e-11)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Normal(0.0, 0.0), "std of Normal"),
        (lambda: Normal(math.nan, 1.0), "mean of Normal"),
        (lambda: Normal("1.0", 1.0), "mean of Normal is '1.0'; expected a finite number"),  # type: ignore[arg-type]
        (lambda: Normal(1.0, None), "std of Normal is None; expected a positive number"),  # type: ignore[arg-type]
        (lambda: Bounded(math.inf, 1.0), "mean of Bounded is inf"),
        (lambda: LogNormal(-1.0, 2.0), "median of LogNormal"),
        (lambda: LogNormal(1.0, 1.0), "more than 1"),
        (lambda: Uniform(1.0, 1.0), "the lower first"),
        (lambda: Bounded(5.0, 1.0, 0.0, 2.0), "between its bounds"),
    ],
)
def test_impossible_priors_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build()  # type: ignore[operator]


def test_check_names_what_is_outside() -> None:
    with pytest.raises(ValidationError, match=r"norm_emit_x is -1\.0"):
        LogNormal(1e-6, 2.0).check("norm_emit_x", -1.0)
