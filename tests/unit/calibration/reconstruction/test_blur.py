"""The blur of a screen in a reconstruction: what the grain of images tells, and what is said without grain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lume_diff.calibration.reconstruction.grain import grain_of
from lume_diff.calibration.reconstruction.resolution import Aim, point_spread
from lume_diff.models.line.screens import cloud_in_cell, histogram

D = torch.float64
PIXEL = (1e-3, 1e-3)


def spots(width: float, count: int = 4000, pixels: int = 64, seed: int = 3, blur_y: float = 1.0) -> Tensor:
    """Return images of a bent bunch at five settings, every particle a Gaussian spot of this width in pixels."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 4, dtype=D, generator=random)
    place = torch.arange(pixels, dtype=D) - 0.5 * (pixels - 1)
    found = []
    for tilt in (-1.5, -0.7, 0.1, 0.8, 1.4):
        x = 5.0 * (tilt * z[:, 0] + 0.3 * z[:, 1] + 0.3 * (z[:, 0].square() - 1.0))
        y = 4.0 * (-tilt * z[:, 2] + z[:, 3])
        across = torch.exp(-0.5 * ((place.unsqueeze(-1) - x) / width).square())
        along = torch.exp(-0.5 * ((place.unsqueeze(-1) - y) / (width * blur_y)).square())
        found.append(along @ across.mT)
    return torch.stack(found)


@pytest.mark.parametrize("width", [0.7, 1.0, 1.5])
def test_grain_tells_the_resolution(width: float) -> None:
    grain = grain_of(spots(width), PIXEL)
    assert grain is not None
    assert abs(grain.variance - (1e-3 * width) ** 2) < 3.0 * grain.error
    assert grain.error < 0.15 * grain.variance
    assert grain.particles == pytest.approx(4000, rel=0.75)


def test_resolution_is_the_same_length_in_both_planes_of_oblong_pixels() -> None:
    # Half as wide in rows that are twice as high.
    grain = grain_of(spots(1.4, blur_y=0.5), (1e-3, 2e-3))
    assert grain is not None
    assert abs(grain.variance - 1.4e-3**2) < 3.0 * grain.error


def test_grain_is_seen_through_camera_noise() -> None:
    image = spots(1.0)
    noise = torch.randn(image.shape, dtype=D, generator=torch.Generator().manual_seed(1))
    grain = grain_of(image + 3e-3 * image.amax((-2, -1), keepdim=True) * noise, PIXEL)
    assert grain is not None
    assert abs(grain.variance - 1e-6) < 3.0 * grain.error


@pytest.mark.parametrize("noise", [0.0, 1e-2], ids=["without noise", "camera noise"])
def test_smooth_images_have_no_grain(noise: float) -> None:
    place = torch.arange(64, dtype=D) - 31.5
    sizes = ((3.0, 9.0), (4.0, 8.0), (6.0, 5.0), (8.0, 3.0), (9.0, 2.0))
    image = torch.stack(
        [torch.exp(-0.5 * ((place.unsqueeze(-1) / sy).square() + (place / sx).square())) for sx, sy in sizes]
    )
    drawn = torch.randn(image.shape, dtype=D, generator=torch.Generator().manual_seed(1))
    assert grain_of(image + noise * drawn, PIXEL) is None


def test_two_images_are_too_few() -> None:
    assert grain_of(spots(1.0)[:2], PIXEL) is None


@pytest.mark.parametrize(("draw", "variance"), [(cloud_in_cell, 1 / 6), (histogram, 1 / 12)], ids=["cic", "histogram"])
def test_a_point_is_spread_by_the_pixels(draw: object, variance: float) -> None:
    half = (torch.tensor(20e-3, dtype=D), torch.tensor(20e-3, dtype=D))

    def images(start: Tensor) -> Tensor:
        centre = torch.tensor([0.0, 2.7e-3, -4.1e-3, 1.6e-3], dtype=D).unsqueeze(-1)
        x = (start[0] + centre * 1.3 + torch.zeros(4, 2, dtype=D)) + 3.0 * start[1]
        y = (start[2] - centre * 0.7 + torch.zeros(4, 2, dtype=D)) + 2.0 * start[3]
        return draw(x, y, torch.ones(4, 2, dtype=D), (40, 40), half)  # type: ignore[operator, no-any-return]

    found = point_spread(images, torch.full((4,), 5e-3, dtype=D), PIXEL)
    assert found == pytest.approx(variance * 1e-6, rel=0.15)


def test_an_aim_pulls_the_variance() -> None:
    aim = Aim(4e-6, 1e-6)
    assert float(aim.misfit(torch.tensor(math.sqrt(5e-6), dtype=D))) == pytest.approx(1.0)
    assert aim.width() == pytest.approx(2e-3)
    assert Aim(-1e-6, 1e-6).width() > 0.0
    drawn = torch.tensor([aim.drawn(seed).variance for seed in range(200)], dtype=D)
    assert float(drawn.mean()) == pytest.approx(4e-6, abs=3e-7)
    assert float(drawn.std()) == pytest.approx(1e-6, rel=0.2)
