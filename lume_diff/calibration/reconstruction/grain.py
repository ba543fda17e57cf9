"""Grain: what the fine structure of images tells about the resolution of the screen."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.measures import normalised

_BORDER = 0.1  # of the image, faded out on each side
_HIGHEST = 0.9 * math.pi  # of frequencies in x and in y [rad per pixel]; beyond it images are aliased
_LOWEST = 1.0  # of squared frequencies: below it there is hardly anything but the bunch
_FEWEST = 3  # images that the scatter can be seen of
_SMALLEST = 16  # image [pixels]
_STEPS = 30
_PRIOR = 4.0  # widths of what is expected of an image's own parameters, in natural logarithms: hardly anything
_SHAPE = 0.02  # relative error of the variance because bunches have other spectra, on images of known ones
_CLEAR = 0.5  # relative error beyond which grain was not seen
_FINEST = 1e6  # particles; finer structure than theirs is the camera's

# What an image's own parameters start from, but for the noise: logarithms of the height, exponent and slopes of the
# bunch's spectrum, and its tilt.
_BUNCH = (math.log(0.1), 0.7, 0.5, 0.5, 0.0)
_COMMON = (0.0, math.log(1e-4))


class Grain(NamedTuple):
    """The resolution that the grain of images has, and how large the grain is.

    Attributes:
        variance: of the point spread in each plane [m^2].
        error: standard error of the variance [m^2].
        particles: how many independent ones make the grain.
    """

    variance: float
    error: float
    particles: float


class _Spectra(NamedTuple):
    """Powers ``(settings, modes)``, frequencies [rad per pixel in x] ``(modes,)``, and noise ``(settings,)``."""

    power: Tensor
    across: Tensor
    along: Tensor
    noise: Tensor


class _Fit(NamedTuple):
    """Parameters of all images ``(2,)``, of each of them ``(settings, 6)``, and what they cost."""

    common: Tensor
    own: Tensor
    cost: float


def grain_of(images: Tensor, pixel_size: tuple[float, float]) -> Grain | None:
    """Measure the resolution of a screen by the grain of its images, or find that they have none.

    Particles hit a screen at random, and each makes a spot of the same width: their noise is smooth over just that
    width, at every setting and in both planes, while structure of the bunch changes with the setting and camera noise
    is not smooth at all. The power spectrum of an image of unit sum is modelled as

    ``(1 / N + bunch(w)) exp(-variance |w|^2) + noise``

    with N and the variance common to all images, a bunch that falls off as a power of a quadratic form, and white
    noise of each image's own; all of it is fitted by the likelihood of independent, exponentially distributed powers.
    Images of simulations have such grain; those of a billion electrons do not, and noise that was smoothed by a filter
    must not be taken for it: grain finer than that of a million particles is not believed.

    Args:
        images: ``(settings, ny, nx)`` of any intensity, without background.
        pixel_size: width and height [m].

    Returns:
        The grain, with the larger of two errors, that of the likelihood and that by the scatter from image to image;
        None without grain, for fewer than three images, or where its size is not known to a factor of two.

    Gradient:
        None.

    Source:
        P. Whittle, Ark. Mat. 2, 423 (1953), doi:10.1007/BF02590998 (likelihood of a spectrum); H. White, Econometrica
        50, 1 (1982), doi:10.2307/1912526 (errors by scatter).
    """
    if len(images) < _FEWEST or min(images.shape[-2:]) < _SMALLEST:
        return None
    spectra = _spectra(images.double(), pixel_size)
    fit = _fitted(spectra)
    information, slope, _ = _reduced(*_terms(fit, spectra))
    total = information.sum(0)
    if not bool(torch.isfinite(total).all()) or float(torch.linalg.cond(total)) > 1.0 / torch.finfo(total.dtype).eps:
        return None
    inverse = torch.linalg.inv(total)
    scatter = inverse @ (slope.mT @ slope) @ inverse * len(images) / (len(images) - 2)
    errors = torch.maximum(inverse.diagonal(), scatter.diagonal()).sqrt()
    found, particles = float(fit.common[0].exp()), float((-fit.common[1]).exp())
    if not bool((errors < _CLEAR).all()) or particles > _FINEST:
        return None
    pixel = pixel_size[0] ** 2
    return Grain(found * pixel, math.hypot(float(errors[0]), _SHAPE) * found * pixel, particles)


def _spectra(images: Tensor, pixel_size: tuple[float, float]) -> _Spectra:
    """Return the power spectra of images but for their coarse structure."""
    ny, nx = images.shape[-2:]
    fade = _faded(ny).unsqueeze(-1) * _faded(nx)
    image = normalised(images)
    # Grain is as strong as what of the light is left.
    left = (image * fade.square()).sum((-2, -1))
    power = torch.fft.rfft2(image * fade).abs().square() / left[:, None, None]
    along, across = torch.meshgrid(
        2.0 * math.pi * torch.fft.fftfreq(ny, dtype=torch.float64),
        2.0 * math.pi * torch.fft.rfftfreq(nx, dtype=torch.float64),
        indexing="ij",
    )
    scale = pixel_size[0] / pixel_size[1]
    corner = (along.abs() > 0.85 * math.pi) & (across > 0.85 * math.pi)
    inside = (along.abs() < _HIGHEST) & (across < _HIGHEST) & (across > 0.0)
    inside &= across.square() + (scale * along).square() > _LOWEST
    return _Spectra(power[:, inside], across[inside], scale * along[inside], power[:, corner].mean(-1))


def _faded(count: int) -> Tensor:
    """Return a window that is one but for its ends, ``(count,)``."""
    place = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inward = torch.minimum(place, 1.0 - place) / _BORDER
    return torch.sin(0.5 * math.pi * inward.clamp(0.0, 1.0)).square()


def _log_power(common: Tensor, own: Tensor, spectra: _Spectra) -> Tensor:
    """Return the logarithm of the expected power of each mode of an image, ``(modes,)``."""
    height, exponent, slope_x, slope_y, tilt, noise = own.unbind(-1)
    across, along = spectra.across, spectra.along
    quadratic = (slope_x.exp() * across + tilt * along).square() + (slope_y.exp() * along).square()
    bunch = height - exponent.exp() * torch.log1p(quadratic)
    smooth = common[0].exp() * (across.square() + along.square())
    return torch.logaddexp(torch.logaddexp(common[1], bunch) - smooth, noise)


def _expected(spectra: _Spectra) -> Tensor:
    """Return what the parameters of each image start from, ``(settings, 6)``."""
    bunch = torch.tensor(_BUNCH, dtype=torch.float64).expand(len(spectra.power), -1)
    return torch.cat((bunch, spectra.noise.clamp_min(1e-14).log().unsqueeze(-1)), dim=-1)


def _fitted(spectra: _Spectra) -> _Fit:
    """Return the parameters of largest likelihood, by damped Fisher scoring."""
    start = _Fit(torch.tensor(_COMMON, dtype=torch.float64), _expected(spectra), math.inf)
    fit, damping = _weighed(start, spectra), 1.0
    for _ in range(_STEPS):
        tried = _moved(fit, spectra, damping)
        better = tried.cost < fit.cost
        damping *= 0.2 if better else 5.0
        gain = fit.cost - tried.cost
        fit = tried if better else fit
        if (better and gain < 1e-3) or damping > 1e6:
            break
    return fit


def _weighed(fit: _Fit, spectra: _Spectra) -> _Fit:
    """Return a fit with its cost."""
    log_power = torch.func.vmap(lambda own: _log_power(fit.common, own, spectra))(fit.own)
    prior = 0.5 * ((fit.own - _expected(spectra)) / _PRIOR).square().sum()
    return fit._replace(cost=float((log_power + spectra.power * (-log_power).exp()).sum() + prior))


def _terms(fit: _Fit, spectra: _Spectra) -> tuple[Tensor, Tensor]:
    """Return Fisher's information ``(settings, 8, 8)`` and the slope of the cost ``(settings, 8)``."""

    def log_power(common: Tensor, own: Tensor) -> Tensor:
        return _log_power(common, own, spectra)

    each = torch.func.vmap(torch.func.jacfwd(log_power, (0, 1)), (None, 0))
    jacobian = torch.cat(each(fit.common, fit.own), dim=-1)
    pull = 1.0 - spectra.power * (-torch.func.vmap(log_power, (None, 0))(fit.common, fit.own)).exp()
    slope = (jacobian * pull.unsqueeze(-1)).sum(1)
    slope[:, 2:] += (fit.own - _expected(spectra)) / _PRIOR**2
    information = jacobian.mT @ jacobian
    information[:, 2:, 2:] += torch.eye(6, dtype=slope.dtype) / _PRIOR**2
    return information, slope


def _reduced(whole: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return information and slopes of common parameters where an image's own ones follow, and how these do."""
    follow = torch.linalg.solve(whole[:, 2:, 2:], torch.cat((whole[:, 2:, :2], slope[:, 2:, None]), dim=-1))
    information = whole[:, :2, :2] - whole[:, :2, 2:] @ follow[..., :2]
    return information, slope[:, :2] - (whole[:, :2, 2:] @ follow[..., 2:]).squeeze(-1), follow


def _moved(fit: _Fit, spectra: _Spectra, damping: float) -> _Fit:
    """Return a fit after a step of Fisher scoring."""
    whole, slope = _terms(fit, spectra)
    whole = whole + damping * torch.diag_embed(whole.diagonal(dim1=-2, dim2=-1))
    information, pull, follow = _reduced(whole, slope)
    common = -torch.linalg.solve(information.sum(0), pull.sum(0))
    own = -(follow[..., 2] + follow[..., :2] @ common)
    moved = _Fit(fit.common + common.clamp(-1.0, 1.0), fit.own + own.clamp(-1.0, 1.0), math.inf)
    return _weighed(moved, spectra)
