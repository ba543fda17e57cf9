"""Granularity: the noise of an image that macroparticles predict."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.measures import axes
from lume_diff.calibration.likelihoods.moments import beam_moments
from lume_diff.calibration.likelihoods.shots import Shots


def with_granularity(shots: Shots, particles: float) -> Shots:
    """Return images whose errors allow for a prediction from macroparticles.

    A pixel that n of them predict scatters by the root of n; its light tells how many they are, and where that is lost
    in the noise of the camera a normal distribution of the beam's moments does: a lone particle there is no surprise.
    All settings see the same particles, whose deviations do not average out over a scan: errors are made larger by the
    root of the number of settings, which is right for an emittance and more than enough for what differs between them.

    Args:
        shots: without.
        particles: that predict each image.
    """
    from scipy import ndimage

    light = ndimage.gaussian_filter((shots.mean * shots.valid).numpy(), (0.0, 1.0, 1.0))
    floor = np.median(shots.sigma.numpy(), axis=(-2, -1), keepdims=True)
    lit = torch.tensor(np.where(light > floor, light, 0.0))
    total = lit.sum((-2, -1), keepdim=True)
    expected = torch.maximum(lit, total * _normal(shots))
    alike = int(shots.present.any(1).sum())
    return shots._replace(sigma=torch.sqrt(shots.sigma.square() + alike * expected * total / particles))


def _normal(shots: Shots) -> Tensor:
    """Return the share of a normal distribution in each pixel, with the moments of each image."""
    mean_x, mean_y, xx, yy, xy = (m[:, None, None] for m in beam_moments(shots).unbind(-1))
    x, y = axes(shots.mean, shots.pixel_size)
    width, height = shots.pixel_size
    xx, yy = xx.clamp_min(width**2 / 12.0), yy.clamp_min(height**2 / 12.0)
    slope = (xy / torch.sqrt(xx * yy)).clamp(-0.99, 0.99)
    u, v = (x - mean_x) / xx.sqrt(), (y.unsqueeze(-1) - mean_y) / yy.sqrt()
    shape = torch.exp(-0.5 * (u.square() - 2.0 * slope * u * v + v.square()) / (1.0 - slope.square()))
    return shape / shape.sum((-2, -1), keepdim=True).clamp_min(1e-12)
