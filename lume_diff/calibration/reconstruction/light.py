"""Light: which part of a noisy image is the beam's, so that noise adds nothing to sizes and shapes."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.measures import axes
from lume_diff.calibration.reconstruction.losses import sizes
from lume_diff.errors import PhysicsWarning

_WIDE = 5.0  # rms sizes from the centroid to the edge of the window
_STEPS = 40
_BRIGHT = 0.5  # of the brightest place, where the window starts
_DARK = 0.05  # of the pixels outside of the window tell the background of an image
_CLEAN = 3e-3  # of the light: less of it outside of the window is the beam's own, ...
_ALIKE = 0.6  # ... as it is where more pixels than these have the same value, by a threshold: of noise half are cut off
_UNCERTAIN = 0.05  # relative error of sizes that is said


class Light(NamedTuple):
    """Images less their background, and where the beam is.

    Attributes:
        image: ``(settings, ny, nx)`` of any intensity; with negative pixels, which average out the positive noise.
        valid: 1 for pixels to compare, 0 for others, ``(settings, ny, nx)``.
        pedestal: share of the intensity above zero that is outside of the window, ``(settings,)``.
        size_error: standard errors of rms sizes in x and y by noise and background, relative, ``(settings, 2)``.
    """

    image: Tensor
    valid: Tensor
    pedestal: Tensor
    size_error: Tensor


def beam_light(image: Tensor, valid: Tensor, pixel_size: tuple[float, float]) -> Light:
    """Return the light of beams: without background, and within a window if there is noise outside of it.

    The window is a rectangle around the centroid, five rms sizes to each side, of the light inside it less the mean of
    what is outside. It starts at the brightest place and is placed anew until it stays the same. A prediction is to be
    looked at through the same window, so that light of the beam beyond it does no harm.

    Args:
        image: ``(settings, ny, nx)`` less the common background.
        valid: 1 for pixels that can be used, 0 for others, ``(settings, ny, nx)``.
        pixel_size: width and height [m].

    Source:
        ISO 11146-1:2021, 7 (sizes in a window that follows them, which is three beam widths there, as twelve rms
        sizes: wider than noise of a percent allows for).
    """
    x, y = axes(image, pixel_size)
    lit = image * valid
    smooth = torch.nn.functional.avg_pool2d(lit.unsqueeze(1), 5, 1, 2).squeeze(1)
    inside = (smooth > _BRIGHT * smooth.amax((-2, -1), keepdim=True)).to(image.dtype) * valid
    for _ in range(_STEPS):
        outside = valid - inside
        level, level_error, noise = _background(lit, outside)
        centroid, size = sizes((image - level) * inside, pixel_size)
        near_x = (x - centroid[:, :1]).abs() <= _WIDE * size[:, :1] + pixel_size[0]
        near_y = (y - centroid[:, 1:]).abs() <= _WIDE * size[:, 1:] + pixel_size[1]
        before, inside = inside, (near_y.unsqueeze(-1) & near_x.unsqueeze(-2)) * valid
        if torch.equal(before, inside):
            break
    above = lit.clamp_min(0.0)
    pedestal = (above * (valid - inside)).sum((-2, -1)) / above.sum((-2, -1))
    common = lit.flatten(1).mode().values[:, None, None]
    alike = ((lit == common) * outside).sum((-2, -1)) / outside.sum((-2, -1)).clamp_min(1.0)
    if float(pedestal.median()) < _CLEAN or float(alike.median()) > _ALIKE:
        return Light(above, valid, torch.zeros_like(pedestal), torch.zeros_like(centroid))
    light = (image - level) * inside
    total = light.sum((-2, -1))
    errors = []
    for place, middle, width in zip((x, y.unsqueeze(-1)), centroid.unbind(-1), size.unbind(-1), strict=True):
        lever = inside * ((place - middle[:, None, None]).square() - width.square()[:, None, None])
        random = noise.flatten() * lever.square().sum((-2, -1)).sqrt()
        shared = level_error.flatten() * lever.sum((-2, -1)).abs()
        errors.append(0.5 * torch.hypot(random, shared) / (total * width.square()))
    return Light(light, inside, pedestal, torch.stack(errors, dim=-1))


def _background(image: Tensor, outside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return level, its standard error, and the noise of single pixels outside of windows, ``(settings, 1, 1)`` each.

    The level is zero where too few pixels are outside. The quarters of an image tell whether it is the same everywhere.
    """
    count = outside.sum((-2, -1), keepdim=True)
    known = count > _DARK * image[0].numel()
    level = torch.where(known, (image * outside).sum((-2, -1), keepdim=True) / count.clamp_min(1.0), 0.0)
    square = ((image - level).square() * outside).sum((-2, -1), keepdim=True) / count.clamp_min(1.0)
    ny, nx = image.shape[-2:]
    quarters = [
        (image[:, rows, columns], outside[:, rows, columns])
        for rows in (slice(0, ny // 2), slice(ny // 2, ny))
        for columns in (slice(0, nx // 2), slice(nx // 2, nx))
    ]
    counts = torch.stack([part.sum((-2, -1)) for _, part in quarters]).clamp_min(1.0)
    means = torch.stack([(light * part).sum((-2, -1)) for light, part in quarters]) / counts
    drift = (counts / counts.sum(0) * (means - level.flatten()).square()).sum(0).sqrt()
    error = torch.maximum((square / count.clamp_min(1.0)).sqrt(), 0.5 * drift[:, None, None])
    return level, error, square.sqrt()


def warn_of_noise(light: Light, screen: str) -> None:
    """Warn where noise and background make the sizes of a data set uncertain.

    Warns:
        PhysicsWarning: with their share of the intensity, and the call that helps.
    """
    error, share = float(light.size_error.median()), float(light.pedestal.median())
    if error > _UNCERTAIN:
        warnings.warn(
            f"{screen}: {100.0 * share:.0f} % of the intensity above zero are noise and background, which makes beam "
            f"sizes uncertain by {100.0 * error:.0f} %, and emittances by more; subtract an image taken without beam, "
            "data.subtract_background(image), leave out what the beam does not reach, data.crop(...), or take the mean "
            "of more shots",
            PhysicsWarning,
            stacklevel=4,
        )
