"""Likelihoods on images of which the answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.calibration.data.screens import ScreenDataset
from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.images import Images
from lume_diff.calibration.likelihoods.measures import fitted_amplitude, moments, normalised
from lume_diff.calibration.likelihoods.moments import Moments
from lume_diff.calibration.likelihoods.profiles import Profiles
from lume_diff.calibration.likelihoods.transport import Transport
from lume_diff.errors import CalibrationError, ValidationError
from lume_diff.registry import plugin, plugins

D = torch.float64
PIXEL = 1e-4
SHAPE = (48, 64)
LIKELIHOODS = [
    Images(),
    Images(detail=0.0),
    Images(robust=3.0),
    Profiles(),
    Profiles(detail=0.0),
    Moments(),
    Transport(),
]


def spot(mean_x: object = 0.0, mean_y: object = 0.0, sigma_x: object = 5e-4, sigma_y: object = 3e-4) -> torch.Tensor:
    """Return a Gaussian image ``(ny, nx)`` of 1e4 units of light; the arguments may be tensors with a graph."""
    ny, nx = SHAPE
    x = (torch.arange(nx, dtype=D) - 0.5 * (nx - 1)) * PIXEL
    y = ((torch.arange(ny, dtype=D) - 0.5 * (ny - 1)) * PIXEL).unsqueeze(-1)
    light = torch.exp(-0.5 * (((x - mean_x) / sigma_x) ** 2 + ((y - mean_y) / sigma_y) ** 2))
    return 1e4 * light / light.sum()


def noisy(image: torch.Tensor, shots: int, sigma: float, seed: int) -> np.ndarray:
    """Return shots ``(1, shots, ny, nx)`` of an image with white noise."""
    noise = np.random.default_rng(seed).normal(0.0, sigma, (1, shots, *image.shape))
    return image.numpy() + noise


def data_of(images: np.ndarray, sigma: float) -> ScreenDataset:
    return ScreenDataset({"Q1.k1": np.arange(len(images), dtype=float)}, images, "SCR1.image", PIXEL, noise=sigma)


def test_moments_of_a_spot() -> None:
    found = moments(spot(1e-4, -2e-4), (PIXEL, PIXEL))
    expected = torch.tensor([1e-4, -2e-4, 25e-8, 9e-8, 0.0], dtype=D)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-13)


def test_no_light_is_no_division_by_zero() -> None:
    dark = torch.zeros(3, *SHAPE, dtype=D, requires_grad=True)
    for found in (
        moments(dark, (PIXEL, PIXEL)),
        normalised(dark),
        fitted_amplitude(dark, dark + 1, dark + 1, (-2, -1)),
    ):
        assert bool(torch.isfinite(found).all())
        (slope,) = torch.autograd.grad(found.sum(), dark)
        assert bool(torch.isfinite(slope).all())


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_perfect_prediction_deviates_by_nothing(likelihood: Likelihood) -> None:
    image = spot()
    target = likelihood.target(data_of(image.numpy()[None, None], 1e-3))
    predicted = {"SCR1.image": 3e-12 * image.unsqueeze(0)}  # the unit of intensity does not matter
    assert float(likelihood.residuals(predicted, target).abs().max()) < 1e-2


@pytest.mark.parametrize("likelihood", [Images(), Images(detail=0.0), Profiles(), Moments()], ids=repr)
def test_deviations_of_noise_are_standard_normal(likelihood: Likelihood) -> None:
    image = spot()
    squares, count = 0.0, 0
    for seed in range(40 if isinstance(likelihood, Moments) else 4):
        target = likelihood.target(data_of(noisy(image, 4, 2.0, seed), 2.0))
        found = likelihood.residuals({"SCR1.image": image.unsqueeze(0)}, target)
        squares, count = squares + float(found.square().sum()), count + len(found)
    assert squares / count == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / count) + 0.1)


@pytest.mark.parametrize("likelihood", [Images(), Profiles()], ids=repr)
def test_noise_of_a_prediction_from_particles_is_allowed_for(likelihood: Likelihood) -> None:
    """An image of 2000 particles is further from the truth than the noise of the camera, and the errors say so."""
    image = spot()
    target = likelihood.target(data_of(noisy(image, 1, 0.2, 0), 0.2))
    generator = np.random.default_rng(1)
    squares: dict[str, list[float]] = {"unaware": [], "aware": []}
    for _ in range(20):
        counts = generator.multinomial(2000, (image / image.sum()).flatten().numpy()).reshape(SHAPE)
        predicted = {"SCR1.image": torch.tensor(counts, dtype=D).unsqueeze(0)}
        for name, one in (("unaware", target), ("aware", likelihood.granular(target, 2000))):
            squares[name].append(float(likelihood.residuals(predicted, one).square().mean()))
    assert np.mean(squares["unaware"]) > 10.0
    # Errors are smoothed over half a bump, which makes them too large rather than too small at the beam's edge.
    assert 0.45 < np.mean(squares["aware"]) < 1.35
    share = likelihood.measured_share(likelihood.granular(target, 2000))
    assert len(share) == len(likelihood.residuals(predicted, target))
    assert 0.0 < float(share.min()) < 0.1
    assert float(share.max()) < 1.3


@pytest.mark.parametrize("likelihood", [Images(), Images(detail=0.0), Profiles()], ids=repr)
def test_noise_of_a_slope_is_that_of_many_data(likelihood: Likelihood) -> None:
    """Bumps share pixels of different noise, so that their deviations are correlated."""
    image = spot()
    target: Any = likelihood.granular(likelihood.target(data_of(noisy(image, 1, 2.0, 0), 2.0)), 1000)
    predicted = {"SCR1.image": image.unsqueeze(0)}
    wider = {"SCR1.image": spot(sigma_x=5.02e-4).unsqueeze(0)}
    slope = likelihood.residuals(wider, target) - likelihood.residuals(predicted, target)
    products = []
    for seed in range(1, 801):
        seen = torch.tensor(noisy(image, 1, 2.0, seed)[:, 0])
        other = target._replace(shots=target.shots._replace(mean=seen))
        products.append(float(slope @ likelihood.residuals(predicted, other)))
    expected = float(likelihood.measured_noise(slope.unsqueeze(-1), target))
    assert np.var(products) == pytest.approx(expected, rel=0.35)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_gradient_is_that_of_a_difference(likelihood: Likelihood) -> None:
    target = likelihood.target(data_of(noisy(spot(), 2, 2.0, 0), 2.0))

    def cost(place: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
        image = spot(place, 0.5 * place, size).unsqueeze(0)
        return 0.5 * likelihood.residuals({"SCR1.image": image}, target).square().sum()

    place = torch.tensor(0.8e-4, dtype=D, requires_grad=True)
    size = torch.tensor(4.1e-4, dtype=D, requires_grad=True)
    found = torch.autograd.grad(cost(place, size), (place, size))
    for index, step in ((0, 1e-9), (1, 1e-9)):
        sides = []
        for sign in (1.0, -1.0):
            at = [0.8e-4, 4.1e-4]
            at[index] += sign * step
            sides.append(float(cost(*(torch.tensor(value, dtype=D) for value in at))))
        assert float(found[index]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=2e-4)


def test_robust_counts_outliers_linearly() -> None:
    image = spot()
    broken = image.numpy().copy()
    broken[5, 5] += 1000.0
    cost = {}
    for likelihood in (Images(detail=0.0), Images(detail=0.0, robust=3.0)):
        target = likelihood.target(data_of(broken[None, None], 1.0))
        residuals = likelihood.residuals({"SCR1.image": image.unsqueeze(0)}, target)
        cost[likelihood.robust] = 0.5 * float(residuals.square().sum())
    assert cost[None] == pytest.approx(0.5e6, rel=0.05)
    assert cost[3.0] == pytest.approx(3.0 * 1000.0, rel=0.05)


def test_transport_pulls_on_spots_that_do_not_overlap() -> None:
    likelihood = Transport(sigma=PIXEL)
    target = likelihood.target(data_of(spot(-2e-3, 0.0, 2e-4, 2e-4).numpy()[None, None], 1e-3))
    place = torch.tensor(2e-3, dtype=D, requires_grad=True)
    image = spot(place, 0.0, 2e-4, 2e-4).unsqueeze(0)
    residuals = likelihood.residuals({"SCR1.image": image}, target)
    cost = 0.5 * residuals.square().sum()
    (slope,) = torch.autograd.grad(cost, place)
    cost = cost.detach()
    # Half the mean of cos^2 over directions, five numbers, squared distance in pixels.
    assert float(cost) == pytest.approx(0.5 * 5 * 0.5 * 40.0**2, rel=1e-2)
    assert float(slope) == pytest.approx(2.0 * float(cost) / 4e-3, rel=5e-2)


def test_scatter_between_shots_counts_for_moments() -> None:
    jitter = np.random.default_rng(1).normal(0.0, 2e-4, 12)
    images = np.stack([spot(float(offset)).numpy() for offset in jitter])[None]
    target = Moments(of=("mean_x",)).target(data_of(images, 1.0))
    assert float(target.errors[0, 0]) == pytest.approx(2e-4 / math.sqrt(12), rel=0.5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=repr)
def test_images_one_pixel_wide_are_compared(likelihood: Likelihood) -> None:
    line = data_of(noisy(spot(), 2, 2.0, 0), 2.0).crop((32, 33, 0, 48))
    found = likelihood.residuals({"SCR1.image": spot()[None, :, 32:33]}, likelihood.target(line))
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("likelihood", [Images(), Images(detail=0.0), Profiles(), Moments()], ids=repr)
@pytest.mark.parametrize("shots", [1, 6])
def test_a_quarter_of_the_weight_doubles_the_errors(likelihood: Likelihood, shots: int) -> None:
    jitter = np.random.default_rng(1).normal(0.0, 1e-4, shots)
    light = np.stack([spot(float(offset)).numpy() for offset in jitter])
    images = light[None] + np.random.default_rng(0).normal(0.0, 2.0, (1, shots, *SHAPE))
    data = ScreenDataset({"Q1.k1": [0.0]}, images, "SCR1.image", PIXEL, noise=2.0)
    quarter = ScreenDataset({"Q1.k1": [0.0]}, images, "SCR1.image", PIXEL, noise=2.0, weights=0.25)
    predicted = {"SCR1.image": spot(2e-4).unsqueeze(0)}
    whole, less = (likelihood.residuals(predicted, likelihood.target(each)) for each in (data, quarter))
    torch.testing.assert_close(less, 0.5 * whole, rtol=1e-9, atol=1e-9)


def test_settings_without_a_beam_do_not_count() -> None:
    images = np.stack([noisy(spot(), 1, 1.0, 0)[0], np.random.default_rng(1).normal(0.0, 1.0, (1, *SHAPE))])
    data = data_of(images, 1.0)
    assert data.has_beam.tolist() == [[True], [False]]
    for likelihood in LIKELIHOODS:
        predicted = {"SCR1.image": torch.stack([spot(), torch.full(SHAPE, 7.0, dtype=D)])}
        alone = likelihood.target(data_of(images[:1], 1.0))
        both = likelihood.residuals(predicted, likelihood.target(data))
        one = likelihood.residuals({"SCR1.image": predicted["SCR1.image"][:1]}, alone)
        torch.testing.assert_close(both, one)


def test_no_beam_at_all_is_an_error() -> None:
    dark = np.random.default_rng(1).normal(0.0, 1.0, (2, 1, *SHAPE))
    with pytest.raises(CalibrationError, match=r"SCR1\.image: none of the 2 images shows the beam"):
        Images().target(data_of(dark, 1.0))


def test_every_registered_likelihood_is_tested() -> None:
    assert {plugin("likelihoods", name) for name in plugins("likelihoods")} >= {type(one) for one in LIKELIHOODS}


def test_unknown_likelihood_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"'image' is none of the likelihoods.*'images'"):
        plugin("likelihoods", "image")


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Images(robust=-1.0), "robust is -1.0"),
        (lambda: Images(detail=-1.0), "detail is -1.0"),
        (lambda: Profiles(detail=3.0), "detail is 3.0"),
        (lambda: Moments(of=("sigma_x",)), "expected some of"),
        (lambda: Transport(quantiles=0), "quantiles is 0"),
    ],
)
def test_bad_options_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build()  # type: ignore[operator]
