"""Noisy images in a reconstruction: sizes and shapes are the beam's, and what is uncertain is said."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from lume_diff.calibration.reconstruction.light import Light, beam_light, warn_of_noise
from lume_diff.calibration.reconstruction.losses import sizes
from lume_diff.errors import PhysicsWarning

D = torch.float64
PIXEL = (1e-3, 1e-3)
WIDTHS = ((5.0, 12.0), (3.0, 9.0), (2.0, 6.0), (4.0, 3.0), (9.0, 2.0))
PLACE = torch.arange(100, dtype=D) - 49.5


def beams(noise: float, seed: int = 1) -> Tensor:
    """Return Gaussian beams off the middle, with noise in parts of their peaks."""
    clean = torch.stack(
        [
            torch.exp(-0.5 * (((PLACE.unsqueeze(-1) + 4.0) / sy).square() + ((PLACE - 6.0) / sx).square()))
            for sx, sy in WIDTHS
        ]
    )
    random = torch.Generator().manual_seed(seed)
    return clean + noise * torch.randn(clean.shape, dtype=D, generator=random)


def seen(image: Tensor) -> Light:
    return beam_light(image, torch.ones_like(image), PIXEL)


@pytest.mark.parametrize("level", [0.0, 0.02], ids=["no pedestal", "pedestal"])
@pytest.mark.parametrize("noise", [0.003, 0.01])
def test_sizes_are_those_of_the_beam(noise: float, level: float) -> None:
    light = seen(beams(noise) + level)
    centroid, size = sizes(light.image, PIXEL)
    true = 1e-3 * torch.tensor(WIDTHS, dtype=D)
    pulls = (size / true - 1.0) / light.size_error
    assert float(pulls.square().mean().sqrt()) < 2.0
    assert float(light.size_error.max()) < 15.0 * noise
    torch.testing.assert_close(centroid, torch.tensor([[6e-3, -4e-3]], dtype=D).expand(5, 2), atol=5e-4, rtol=0.0)
    assert bool((light.pedestal > 0.01).all())


def test_errors_of_sizes_are_those_over_many_images() -> None:
    found = [seen(beams(0.005, seed)) for seed in range(2, 42)]
    pulls = torch.stack(
        [(sizes(f.image, PIXEL)[1] / (1e-3 * torch.tensor(WIDTHS)) - 1.0) / f.size_error for f in found]
    )
    assert 0.7 < float(pulls.square().mean().sqrt()) < 1.6


@pytest.mark.parametrize("threshold", [None, 0.02], ids=["without noise", "noise cut off by a threshold"])
def test_clean_images_stay_as_they_are(threshold: float | None) -> None:
    image = beams(0.0 if threshold is None else 0.003)
    if threshold is not None:
        image = torch.where(image > threshold, image, 0.0)
    light = seen(image)
    assert light.image.equal(image)
    assert bool((light.valid == 1.0).all())
    assert float(light.size_error.max()) == 0.0


def test_uncertain_sizes_are_said() -> None:
    with pytest.warns(PhysicsWarning, match=r"SCR1\.image: \d+ % of the intensity.*subtract_background"):
        warn_of_noise(seen(beams(0.04)), "SCR1.image")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_noise(seen(beams(0.003)), "SCR1.image")
