"""Granularity: the noise of an image that macroparticles predict."""

from __future__ import annotations

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.moments import around_the_beam
from lume_diff.calibration.likelihoods.shots import Shots


def smoothed(images: Tensor, widths: Tensor) -> Tensor:
    """Return images smoothed by Gaussians.

    Args:
        images: ``(settings, ny, nx)``.
        widths: standard deviations in x and y of each setting [pixels], ``(settings, 2)``.
    """
    from scipy import ndimage

    pairs = zip(images.numpy(), widths.flip(-1).tolist(), strict=True)
    return torch.stack([torch.tensor(ndimage.gaussian_filter(image, width)) for image, width in pairs])


def granular_variance(shots: Shots, widths: Tensor, particles: float) -> Tensor:
    """Return the variance of pixels that macroparticles predict, ``(settings, ny, nx)`` [intensity²].

    A pixel that n of them predict scatters by the root of n; its light tells how many they are. The light is smoothed,
    because errors that follow the noise of their own pixel would favour pixels that are too dark: beams too small.
    Far from the beam there is nothing but noise.

    Args:
        shots: what was measured.
        widths: of the smoothing, see ``smoothed``.
        particles: that predict each image.
    """
    light = shots.mean * shots.valid
    light = smoothed(light * around_the_beam(light, shots.sigma), widths).clamp_min(0.0)
    return light * light.sum((-2, -1), keepdim=True) / particles
