"""How noisy a code's outputs are, how they bend, and the step at which a difference is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
#: Evaluates a line of offsets from the point, ``(k,) -> (k, n_out)``; rows of NaN stand for runs that failed.
Probe = Callable[[Array], Array]

_ECNOISE_POINTS = 8
_FIRST_SPACING = 1e-6


@dataclass(frozen=True)
class Calibration:
    """What is known of one input's effect on all outputs, in units of the input and the outputs.

    Attributes:
        noise: standard deviation of the outputs' computational noise, ``(n_out,)``.
        third: size of the third derivative, ``(n_out,)``.
        size: size of the outputs, ``(n_out,)``.
        runs: simulator runs that it took.
    """

    noise: Array
    third: Array
    size: Array
    runs: int

    def steps(self, scale: float, room: float = math.inf) -> Array:
        """Return the step of a central difference with the least error, for each output.

        Args:
            scale: typical change of the input, beyond which no step goes.
            room: distance to the nearest bound.

        Source:
            J. J. Moré and S. M. Wild, ACM Trans. Math. Softw. 38, 19 (2012), doi:10.1145/2168773.2168777, for
            central differences: minimise noise / (sqrt(2) h) + |f'''| h^2 / 6.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            best = np.cbrt(3.0 * self.noise / self.third / math.sqrt(2.0))
        best = np.where(np.isfinite(best) & (best > 0), best, scale)
        return np.clip(best, 1e-12 * scale, min(scale, room))

    def error(self, step: Array | float) -> Array:
        """Return the estimated error of a central difference at a step, for each output."""
        return 3.0 * self.noise / (math.sqrt(2.0) * step) + self.third * np.square(step) / 6.0


def noise_of(values: Array) -> Array:
    """Estimate the noise level of functions from values on an even grid by difference tables.

    Args:
        values: ``(points, n_out)``.

    Returns:
        Standard deviation of the noise, ``(n_out,)``; NaN where the table shows no noise: the spacing is too small
        (values that repeat) or too large (values that move too much).

    Source:
        J. J. Moré and S. M. Wild, SIAM J. Sci. Comput. 33, 1292 (2011), doi:10.1137/100786125, algorithm ECnoise.
    """
    count = values.shape[0]
    differences = values
    levels, signs = [], []
    gamma = 1.0
    for order in range(1, count):
        differences = np.diff(differences, axis=0)
        gamma *= 0.5 * order / (2 * order - 1)
        levels.append(np.sqrt(gamma * np.mean(np.square(differences), axis=0)))
        signs.append((differences.min(axis=0) < 0) & (differences.max(axis=0) > 0))
    level, changes = np.array(levels), np.array(signs)
    noise = np.full(values.shape[1], np.nan)
    for order in range(count - 4, -1, -1):
        window = level[order : order + 3]
        steady = window.max(axis=0) <= 4.0 * window.min(axis=0)
        noise = np.where(steady & changes[order], level[order], noise)
    low, high = values.min(axis=0), values.max(axis=0)
    largest = np.maximum(np.abs(low), np.abs(high))
    too_wide = high - low > 0.1 * largest
    repeated = (np.diff(np.sort(values, axis=0), axis=0) == 0).sum(axis=0) >= count // 2
    return np.where(too_wide | repeated, np.nan, noise)


def calibrate(probe: Probe, scale: float, room: tuple[float, float] = (math.inf, math.inf)) -> Calibration:
    """Measure noise and third derivative of all outputs along one input.

    The noise is taken at a spacing of 1e-6 of the scale, again at 100 times that or a hundredth where the first shows
    none, and is checked at a second spacing, because a code may look smooth to the last digit over a short stretch.

    Args:
        probe: evaluates offsets from the point.
        scale: typical change of the input.
        room: distances to the lower and the upper bound.

    Returns:
        The calibration; an output that is exactly constant has neither noise nor curvature.
    """
    side = -1.0 if room[0] > room[1] and room[1] < scale else 1.0
    runs = 0
    noise = None
    size = None
    for spacing in (_FIRST_SPACING, 100 * _FIRST_SPACING, 0.01 * _FIRST_SPACING):
        offsets = side * spacing * scale * np.arange(_ECNOISE_POINTS)
        values = probe(offsets)
        runs += len(offsets)
        values = values[np.isfinite(values).all(axis=1)]
        if len(values) < 4:
            continue
        found = noise_of(values)
        size = np.abs(values).max(axis=0) if size is None else size
        noise = found if noise is None else np.where(np.isnan(noise), found, noise)
        constant = values.max(axis=0) == values.min(axis=0)
        if not (np.isnan(noise) & ~constant).any():
            break
    if noise is None or size is None:
        raise ArithmeticError("every run near the point failed")
    floor = np.finfo(float).eps * size * 0.3
    noise = np.maximum(np.where(np.isnan(noise), floor, noise), floor)

    third, probes = _third_derivative(probe, noise, size, scale, room)
    return Calibration(noise, third, size, runs + probes)


def _third_derivative(
    probe: Probe, noise: Array, size: Array, scale: float, room: tuple[float, float]
) -> tuple[Array, int]:
    """Return |f'''| from four points around the point, floored at what noise alone would give."""
    relative = noise / np.maximum(size, np.finfo(float).tiny)
    spread = np.power(np.clip(np.median(relative), 1e-16, 1e-2), 0.2) * scale
    left, right = min(room[0] / 2, spread), min(room[1] / 2, spread)
    d = min(left, right)
    if d > 0.1 * spread:
        values = probe(np.array([-2 * d, -d, d, 2 * d]))
        third = (values[3] - 2 * values[2] + 2 * values[1] - values[0]) / (2 * d**3)
        floor = 1.58 * noise / d**3
    else:
        side = 1.0 if right >= left else -1.0
        d = max(left, right) / 1.5
        values = probe(side * d * np.arange(4.0))
        third = (values[3] - 3 * values[2] + 3 * values[1] - values[0]) / d**3
        floor = 4.47 * noise / d**3
    return np.maximum(np.where(np.isfinite(third), np.abs(third), 0.0), floor), 4


def step_classes(steps: Array, ratio: float = 3.0, most: int = 3) -> list[tuple[float, Array]]:
    """Group outputs whose best steps are within a ratio of each other, so that they share runs.

    Returns:
        ``[(step, indices of outputs)]``, at most ``most`` groups, the step being the geometric mean.
    """
    order = np.argsort(steps)
    groups: list[list[int]] = []
    for index in order:
        if groups and (steps[index] <= ratio * steps[groups[-1][0]] or len(groups) >= most):
            groups[-1].append(int(index))
        else:
            groups.append([int(index)])
    return [(float(np.exp(np.mean(np.log(steps[group])))), np.array(group)) for group in groups]


Offsets = Sequence[float]
