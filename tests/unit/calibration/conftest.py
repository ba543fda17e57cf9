"""Scans whose noise, background and beam are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lume_diff.calibration import ScreenDataset

PIXEL = 1e-4  # [m]


def gaussian_image(
    shape: tuple[int, int] = (60, 80),
    mean: tuple[float, float] = (4e-4, -3e-4),
    sigma: tuple[float, float] = (7e-4, 4e-4),
    peak: float = 800.0,
    pixel: float = PIXEL,
) -> np.ndarray:
    """Return the image of a Gaussian beam; means and sizes in x and y [m]."""
    ny, nx = shape
    x = (np.arange(nx) - 0.5 * (nx - 1)) * pixel
    y = (np.arange(ny) - 0.5 * (ny - 1)) * pixel
    across, up = (np.exp(-0.5 * ((u - m) / s) ** 2) for u, m, s in zip((x, y), mean, sigma, strict=True))
    return peak * np.outer(up, across)


@pytest.fixture
def make_scan(seed: int) -> Callable[..., ScreenDataset]:
    """Build a scan of a quadrupole: sizes that grow, a pedestal, background noise and photons."""

    def make(
        n: int = 5,
        shots: int = 2,
        noise: float = 3.0,
        gain: float = 0.5,
        pedestal: float = 20.0,
        missing: tuple[int, ...] = (),
        **options: Any,
    ) -> ScreenDataset:
        generator = np.random.default_rng(seed)
        light = np.stack(
            [np.stack([gaussian_image(sigma=(4e-4 + 1e-4 * i, 4e-4)) * (i not in missing)] * shots) for i in range(n)]
        )
        images = light + np.sqrt(noise**2 + gain * light) * generator.normal(size=light.shape) + pedestal
        return ScreenDataset({"Q1.k1": np.linspace(-2.0, 2.0, n)}, images, "SCR1.image", PIXEL, **options)

    return make
