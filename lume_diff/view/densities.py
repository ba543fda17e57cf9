"""Densities of a bunch in phase space: charge per bin, over ranges that a few stray particles do not stretch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup, statistic_unit

#: What is shown of a bunch: horizontal and vertical axis, by openPMD's names.
PLANES = (("x", "px"), ("y", "py"), ("t", "energy"), ("x", "y"))
#: Axes that are shown relative to their mean.
RELATIVE = ("t", "energy")
#: The usual statistics, by openPMD's names.
STATISTICS = (
    *("charge", "n_alive", "mean_energy", "sigma_energy", "sigma_t"),
    *("mean_x", "sigma_x", "norm_emit_x", "twiss_beta_x", "twiss_alpha_x"),
    *("mean_y", "sigma_y", "norm_emit_y", "twiss_beta_y", "twiss_alpha_y"),
)
BINS = 80
_STRAY = 0.25  # [%] on each side that may lie outside
_SAMPLE = 4000  # particles at least that the range is judged by
_STEPS = np.array([1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.3, 8.0, 10.0])


@dataclass(frozen=True)
class Density:
    """Charge per bin.

    Attributes:
        charge: [C], row 0 at the lowest of the vertical axis, ``(BINS, BINS)``, single precision.
        x, y: lowest and highest of each axis, in openPMD's unit; relative to the mean where the axis is.
        outside: charge beyond these [C].
    """

    charge: np.ndarray
    x: tuple[float, float]
    y: tuple[float, float]
    outside: float


@dataclass(frozen=True)
class BeamPicture:
    """A bunch as it is shown.

    Attributes:
        densities: by the names of the axes.
        statistics: by openPMD's names; what is not defined is left out.
        units: of the statistics.
        is_lost: whether nothing of it is alive.
        has_particles: whether it is a bunch and not moments, whose density is that of a Gaussian beam.
    """

    densities: Mapping[tuple[str, str], Density]
    statistics: Mapping[str, float]
    units: Mapping[str, str]
    is_lost: bool
    has_particles: bool


def picture_of(beam: TorchParticleGroup | TorchMoments) -> BeamPicture:
    """Return densities and statistics of the living particles of a bunch, or of moments.

    Args:
        beam: without a batch.

    Raises:
        ValidationError: for one that is not finite.

    Gradient:
        None: it is made to be looked at.
    """
    with torch.no_grad():
        statistics = _statistics(beam)
        units = {key: statistic_unit(key) for key in statistics}
        lost = not statistics.get("charge", 0.0) > 0.0
        has_particles = isinstance(beam, TorchParticleGroup)
        if lost:
            return BeamPicture({}, statistics, units, True, has_particles)
        _check_finite(beam)
        found = _of_particles(beam) if isinstance(beam, TorchParticleGroup) else _of_moments(beam, statistics)
    return BeamPicture(found, statistics, units, False, has_particles)


def _check_finite(beam: TorchParticleGroup | TorchMoments) -> None:
    if isinstance(beam, TorchMoments):
        if not all(bool(part.isfinite().all()) for part in (beam.mean, beam.cov)):
            raise ValidationError("the moments of the beam are not finite: there is no density to show")
        return
    living = beam.alive * beam.weight > 0.0
    axes = {name: beam[name] for name in dict.fromkeys(axis for plane in PLANES for axis in plane)}
    wrong = {name: count for name, values in axes.items() if (count := int((living & ~values.isfinite()).sum()))}
    if wrong:
        name, count = max(wrong.items(), key=lambda item: item[1])
        raise ValidationError(f"{name} of {count} of {int(living.sum())} living particles is not finite")


def _statistics(beam: TorchParticleGroup | TorchMoments) -> dict[str, float]:
    told = beam.alive_only if isinstance(beam, TorchParticleGroup) else beam
    found = {}
    for key in STATISTICS:
        try:
            value = float(told[key])
        except LumeDiffError:  # moments know no particles
            continue
        if math.isfinite(value):
            found[key] = value
    return found


def _of_particles(bunch: TorchParticleGroup) -> dict[tuple[str, str], Density]:
    charge = (bunch.weight * bunch.alive).numpy()
    axes = {name: bunch[name].detach().numpy() for name in dict.fromkeys(axis for plane in PLANES for axis in plane)}
    living = charge > 0.0
    if not living.all():
        charge, axes = charge[living], {name: values[living] for name, values in axes.items()}
    for name in RELATIVE:
        axes[name] = axes[name] - np.average(axes[name], weights=charge)
    edges = {name: robust_range(values) for name, values in axes.items()}
    bins = {name: _bins(values, edges[name]) for name, values in axes.items()}
    found = {}
    for plane in PLANES:
        columns, rows = (bins[name] for name in plane)
        inside = (columns >= 0) & (columns < BINS) & (rows >= 0) & (rows < BINS)
        index = (rows * BINS + columns)[inside]
        table = np.bincount(index, charge[inside], BINS * BINS).reshape(BINS, BINS).astype(np.float32)
        outside = float(charge[~inside].sum()) if not inside.all() else 0.0
        found[plane] = Density(table, edges[plane[0]], edges[plane[1]], outside)
    return found


def _bins(values: np.ndarray, edges: tuple[float, float]) -> np.ndarray:
    low, high = edges
    return np.floor((values - low) * (BINS / (high - low))).clip(-1, BINS).astype(np.int64)


def _of_moments(moments: TorchMoments, statistics: Mapping[str, float]) -> dict[tuple[str, str], Density]:
    """Return the densities of a Gaussian beam."""
    found = {}
    for a, b in PLANES:
        means = [0.0 if name in RELATIVE else float(moments[f"mean_{name}"]) for name in (a, b)]
        aa, bb, ab = (float(moments[f"cov_{p}__{q}"]) for p, q in ((a, a), (b, b), (a, b)))
        reach = [3.5 * math.sqrt(max(variance, 0.0)) for variance in (aa, bb)]  # round-off may be below zero
        edges = [_rounded(mean - half, mean + half) for mean, half in zip(means, reach, strict=True)]
        x, y = (low + (np.arange(BINS) + 0.5) * (high - low) / BINS for low, high in edges)
        x, y = x - means[0], (y - means[1])[:, None]
        determinant = max(aa * bb - ab * ab, 1e-12 * aa * bb)
        exponent = (bb * x * x - 2.0 * ab * x * y + aa * y * y) / (2.0 * determinant) if determinant else 0.0 * x * y
        shape = np.exp(-exponent)
        charge = shape * (statistics["charge"] / max(shape.sum(), 1e-300))
        found[a, b] = Density(charge.astype(np.float32), edges[0], edges[1], 0.0)
    return found


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return a range that holds nearly all values, with round ends, so that it rarely changes from frame to frame.

    Args:
        values: at least one.
    """
    sample = values[:: max(1, values.size // _SAMPLE)]
    low, high = np.percentile(sample, (_STRAY, 100.0 - _STRAY))
    margin = 0.15 * (high - low)
    return _rounded(max(float(values.min()), low - margin), min(float(values.max()), high + margin))


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return a range that holds another one, with a round middle and a round width."""
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    half = max(half, 1e-9 * abs(middle), 1e-30)
    wanted = 1.06 * half
    decade = 10.0 ** math.floor(math.log10(wanted))
    width = float(decade * _STEPS[np.searchsorted(_STEPS, wanted / decade * (1.0 - 1e-9))])
    step = 0.1 * width
    middle = step * round(middle / step)
    if middle - width > low or middle + width < high:
        width *= 1.25
    return middle - width, middle + width
