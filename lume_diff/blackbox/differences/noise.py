"""Measuring how noisy a code's outputs are and how they bend, along one input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lume_diff.blackbox.differences.stencil import no_room
from lume_diff.blackbox.differences.steps import Array, Probe, StepCalibration, length_of
from lume_diff.errors import GradientError, ValidationError

_DIGITS = 0.3 * float(np.finfo(float).eps)  # relative noise of a number that is only rounded
_NEGLIGIBLE = 1e-10  # relative error of a derivative that is worth no further runs
_SEEN = 5.0  # standard deviations at which a derivative stands out of the noise, whose level is known to a factor 2
_FEW = 0.05  # outputs, as a fraction, that are worth no further runs

#: Where the noise is measured, in units of the spacing. Uneven, because on an even grid the values of an output that
#: the code rounds (a printed number) may lie on a straight line to the last digit: one such output in eight then seems
#: to have no noise. The close pair at the start tells noise from a function that bends within the spacing.
_CLUSTER = np.array([0.0, 0.02, 1.13, 1.87, 3.21, 3.94, 5.08, 6.17])
_SPACING = 1e-6  # of the scale


@dataclass(frozen=True)
class NoiseTable:
    """What a table of differences tells of each output, ``(n_out,)`` each.

    Attributes:
        noise: standard deviation at which the differences stay from one order to the next, NaN if they do not.
        bound: a level that the noise does not exceed.
        repeats: whether at least half of the values are equal to their neighbour, so that the spacing is too small.
    """

    noise: Array
    bound: Array
    repeats: Array


def noise_table(values: Array, points: Array) -> NoiseTable:
    """Estimate the noise of functions from all orders of differences, each scaled as if noise were all there is.

    Args:
        values: ``(points, n_out)``, at least four points.
        points: where they were taken, ``(points,)``, in any unit and not necessarily even.

    Source:
        J. J. Moré and S. M. Wild, SIAM J. Sci. Comput. 33, 1292 (2011), doi:10.1137/100786125, algorithm ECnoise; on
        uneven points its differences become divided differences, scaled to the noise of a single value.
    """
    count, points = len(points), points / np.ptp(points)
    levels, changes = [], []
    for order in range(1, count):
        weights = np.zeros((count - order, count))
        for start in range(count - order):
            window = slice(start, start + order + 1)
            row = _divided_difference(points[window])
            weights[start, window] = row / np.linalg.norm(row)
        differences = weights @ values
        levels.append(np.sqrt(np.mean(np.square(differences), axis=0)))
        changes.append((differences.min(axis=0) < 0) & (differences.max(axis=0) > 0))
    level = np.array(levels)
    noise = np.full(values.shape[1], np.nan)
    for order in range(count - 4, -1, -1):
        three = level[order : order + 3]
        steady = three.max(axis=0) <= 4.0 * three.min(axis=0)
        noise = np.where(steady & changes[order], level[order], noise)
    repeats = (np.diff(values, axis=0) == 0).sum(axis=0) >= count / 2
    return NoiseTable(noise, np.where(repeats, level[0], level.min(axis=0)), repeats)


def _divided_difference(points: Array) -> Array:
    """Return the weights of the divided difference of highest order over some points."""
    distances = points[:, None] - points
    np.fill_diagonal(distances, 1.0)
    return 1.0 / distances.prod(axis=1)


def calibrate(probe: Probe, scale: float, room: tuple[float, float] = (math.inf, math.inf)) -> StepCalibration:
    """Measure noise and derivatives of all outputs along one input, in 12 runs or a few more.

    Eight runs close together give the noise, tried again at 100 times or a hundredth of the spacing where it does not
    show, and checked at a second spacing where the wider runs contradict it. Four wider runs give the derivatives; four
    more are made further out where noise hides them, or closer in where outputs turn between them.

    Small jumps and kinks, as of particles that cross the cells of a mesh, count as noise: the derivative is that of the
    smooth part. A single large kink closer than the step is averaged over, which no error estimate here can tell.

    Args:
        probe: evaluates offsets from the point, ``(k,) -> (k, n_out)``; a row of NaN is a run that failed.
        scale: typical change of the input.
        room: distances to the lower and the upper bound.

    Returns:
        The calibration; an output that is exactly constant has neither noise nor derivatives.

    Raises:
        GradientError: the run at the point itself fails, or all around it do, or there is no room.
        ValidationError: the scale is not positive and finite.

    Source:
        J. J. Moré and S. M. Wild, ACM Trans. Math. Softw. 38, 19 (2012), doi:10.1145/2168773.2168777, for the noise
        and one more derivative as all that a step needs.
    """
    if not 0.0 < scale < math.inf:
        raise ValidationError(f"a scale of {scale:g} was given; expected a positive finite number, a typical change")
    line = _Line(probe, room)
    noise, spread, length = _measure_noise(line, scale)
    near = _bends(line, noise, _typical(spread[noise > 0] if (noise > 0).any() else spread), tries=4)
    if near is None:
        raise GradientError(
            f"too few of {line.runs} runs around the point gave numbers; move the point away from where the code "
            f"fails, or give the variable a scale smaller than {scale:g}"
        )
    silent = noise == 0
    size = np.maximum(np.abs(line.centre), near.sizes[0] * near.spacing)
    noise = np.where(near.moves, np.maximum(noise, _DIGITS * size), noise)
    # Further out it moves so fast that it cannot have stood still close by, had it been given with all its digits.
    frozen = silent & (near.sizes[0] * _CLUSTER[-1] * _SPACING * scale > 100.0 * _DIGITS * size)
    suspect = near.contradicts(noise, length) | frozen
    if suspect.any():
        noise = np.where(suspect, _second_look(line, noise, near, scale, suspect, silent), noise)
        spread = np.where(suspect, _spread(noise, size) * length, spread)
    found = _combine(line, noise, near, None)
    hidden = near.hides(noise)[2] & (found.error(found.steps(scale)) > _NEGLIGIBLE * found.bend(1))
    if hidden.mean() > _FEW:
        wanted = _typical(spread[hidden])
        wanted = wanted if wanted > 3.0 * near.spacing else 0.5 * scale
        if wanted > 2.0 * near.spacing:
            found = _combine(line, noise, near, _bends(line, noise, wanted, tries=1))
    return found


class _Line:
    """The runs along one input: counted, failed ones left out, and values given as what they moved from the centre.

    A side on which all runs of a call fail is closed to later ones at that distance.
    """

    def __init__(self, probe: Probe, room: tuple[float, float]) -> None:
        if not max(room) > 0:
            raise no_room(room)
        self.probe, self.bounds, self.runs = probe, room, 0
        self.closed = [math.inf, math.inf]  # distances, downwards and upwards, that are not worth a run
        self.reached = [0.0, 0.0]  # distances at which one worked
        self.centre: Array = np.zeros(0)
        self.lost: Array = np.zeros(0, dtype=bool)  # outputs that are not numbers

    def __call__(self, offsets: Array) -> tuple[Array, Array]:
        """Return the offsets that worked, the centre first, and what the outputs moved there."""
        known = self.centre.size > 0
        offsets = offsets[offsets != 0.0] if known else offsets
        self.runs += len(offsets)
        values = np.asarray(self.probe(offsets), dtype=float)
        if known:
            offsets, values = np.concatenate([[0.0], offsets]), np.concatenate([self.centre[None], values])
        else:
            self.centre, self.lost = values[0], ~np.isfinite(values[0])
            if self.lost.all():
                raise GradientError("the run at the point itself failed, so it has no derivative; move the point")
        finite = np.isfinite(values)
        good = finite[:, ~self.lost].mean(axis=1) >= 0.5
        self.lost = self.lost | ~finite[good].all(axis=0)
        for side, sign in enumerate((-1.0, 1.0)):
            there, worked = sign * offsets > 0, sign * offsets[good]
            self.reached[side] = max(self.reached[side], float(worked.max()))
            if there.sum() > 1 and not good[there].any():
                self.closed[side] = min(self.closed[side], 0.5 * float(np.abs(offsets[there]).min()))
        with np.errstate(invalid="ignore"):
            return offsets[good], np.where(finite, values - self.centre, 0.0)[good]

    @property
    def room(self) -> tuple[float, float]:
        """Distances downwards and upwards within which to stay."""
        return min(self.bounds[0], self.closed[0]), min(self.bounds[1], self.closed[1])

    def cluster(self, spacing: float) -> tuple[Array, Array] | None:
        """Return eight points close together, six at least; None where too many failed on both sides."""
        width = float(_CLUSTER[-1])
        right = self.room[1] >= min(width * spacing, self.room[0])
        for side in (1.0, -1.0) if right else (-1.0, 1.0):
            room = self.room[1] if side > 0 else self.room[0]
            if room > 0:
                points, values = self(side * min(spacing, room / width) * _CLUSTER)
                if len(points) >= 6:
                    return points, values
        return None

    def grid(self, spacing: float) -> Array:
        """Return five even points around the centre, moved or drawn together to fit between the bounds."""
        while True:
            left, right = (int(min(4.0, max(0.0, room) / spacing * (1 + 1e-9))) for room in self.room)
            if left + right >= 4:
                first = -min(left, max(2, 4 - right))
                return spacing * np.arange(first, first + 5)
            spacing *= 0.9


def _measure_noise(line: _Line, scale: float) -> tuple[Array, Array, Array]:
    """Return the noise of all outputs, the spacing at which their third derivatives show best, and their lengths."""
    noise = spread = length = np.zeros(0)
    settled = np.zeros(0, dtype=bool)
    factors = [1.0]
    while factors:
        factor = factors.pop(0)
        cluster = line.cluster(factor * _SPACING * scale)
        if cluster is None:
            if not noise.size and factor > 1e-3:
                factors = [0.01 * factor]
            continue
        points, values = cluster
        table, size = noise_table(values, points), np.abs(line.centre + values).max(axis=0)
        level = np.maximum(np.where(np.isnan(table.noise), table.bound, table.noise), _DIGITS * size)
        # What looks like noise of a percent may bend within the spacing: then the close pair is calm.
        doubtful = (level > 0.01 * size) & (np.abs(values[1]) < 0.05 * np.ptp(values, axis=0))
        still = ~values.any(axis=0)
        shown = ~table.repeats & ~np.isnan(table.noise) & ~doubtful
        good = ~still & (shown | (table.bound <= 10.0 * _DIGITS * size))
        amplitude, reach = _extent(points, values, level, size, scale)
        if not noise.size:
            noise, length, settled = np.where(still, 0.0, level), reach, good | still
            spread = _spread(level, amplitude) * reach
            coarse = table.repeats[~settled].mean() >= 0.5 if not settled.all() else True
            factors = [100.0, 0.01] if coarse else [0.01, 100.0]
        else:
            taken = ~settled & good
            lower = ~settled & ~still & ~table.repeats & (level < noise)
            noise, length = np.where(taken | lower, level, noise), np.where(taken, reach, length)
            spread = np.where(taken, _spread(level, amplitude) * reach, spread)
            settled = settled | taken
        if (~settled).mean() <= _FEW:
            break
    if not noise.size:
        raise GradientError(f"{line.runs} runs close to the point failed, on both sides; move the point")
    return np.where(line.lost, 0.0, noise), spread, length


def _spread(noise: Array, amplitude: Array) -> Array:
    """Return the best spacing for a third derivative, in units of the length over which a function changes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.nan_to_num(noise / amplitude, nan=_DIGITS)
    return np.clip(relative, 1e-17, 1e-2) ** 0.2


def _extent(points: Array, values: Array, noise: Array, size: Array, scale: float) -> tuple[Array, Array]:
    """Return amplitude and length of the outputs' changes, from the slope and curvature that a cluster shows."""
    width = np.abs(points).max()
    x = points[1:] / width
    solve = np.linalg.pinv(np.stack([x, x**2, x**3], axis=1))[:2]
    (slope, curve), seen = np.abs(solve @ values[1:]), 10.0 * np.linalg.norm(solve, axis=1)[:, None] * noise
    steep, curved = slope > seen[0], curve > seen[1]
    slope, curve = slope / width, 2.0 * np.where(curved, curve, 0.0) / width**2
    with np.errstate(divide="ignore", invalid="ignore"):
        length = np.where(curved, np.maximum(slope / curve, np.sqrt(size / curve)), np.inf)
    length = np.minimum(scale, 3.0 * length)
    return np.where(steep, slope * length + curve * length**2, size), length


def _typical(spreads: Array) -> float:
    """Return a spacing for the outputs that want the smallest."""
    smallest = np.quantile(spreads, 0.1, method="lower")
    return float(np.median(spreads[spreads <= 3.0 * smallest]))


@dataclass(frozen=True)
class _Bends:
    """Derivatives of orders 1 to 5 as five points or four show them.

    Attributes:
        sizes: ``(5, n_out)``, not floored.
        gains: what a noise of one adds to each, ``(5,)``.
        spacing: of the points.
        whole: whether all five points are there.
    """

    sizes: Array
    gains: Array
    spacing: float
    whole: bool

    @property
    def moves(self) -> Array:
        """Whether an output is not constant."""
        return np.any(self.sizes != 0.0, axis=0)

    def floored(self, noise: Array) -> Array:
        """Return the sizes, or what noise alone makes of them where that is more."""
        return np.maximum(self.sizes, self.gains[:, None] * noise)

    def hides(self, noise: Array) -> Array:
        """Return whether noise may be all there is to see, for each order and output."""
        return np.logical_and(self.sizes < _SEEN * self.gains[:, None] * noise, noise > 0)

    def fourth_difference(self) -> Array:
        """Return what the fourth difference of the values would be as noise."""
        return self.sizes[3] / self.gains[3]

    def contradicts(self, noise: Array, length: Array) -> Array:
        """Return whether the values jump about by more than the noise and more than curvature can explain.

        A function that changes over a tenth of the length or more has a fourth difference well below the lower ones.
        """
        if not self.whole:
            return np.zeros(noise.shape, dtype=bool)
        rate = 10.0 / length
        smooth = np.max([self.sizes[k] * rate ** (3 - k) for k in range(3)], axis=0) / self.gains[3]
        return self.fourth_difference() > 10.0 * noise + smooth


def _bends(line: _Line, noise: Array, spacing: float, tries: int) -> _Bends | None:
    """Measure derivatives from four runs around the point; closer in where runs fail or outputs turn between them."""
    found = None
    for _ in range(tries):
        room = line.room
        points, values = line(line.grid(spacing))
        if len(points) >= 4:
            width = float(np.abs(np.diff(np.sort(points))).min())
            weights = np.array([_weights(points / width, order) / width**order for order in range(1, len(points))])
            sizes, gains = np.abs(weights @ values), np.linalg.norm(weights, axis=1)
            if len(points) == 4:
                sizes, gains = np.vstack([sizes, 0.0 * sizes[:1]]), np.append(gains, math.sqrt(70.0) / width**4)
            length = length_of(sizes, width)
            with np.errstate(divide="ignore", invalid="ignore"):
                fifth = np.nan_to_num((sizes[2] + sizes[3] * length) / length**2)
            # The fifth counts as hidden where noise gives a step of more than 1.7 widths.
            sizes, gains = np.vstack([sizes, fifth]), np.append(gains, 1.0 / width**5)
            found = _Bends(sizes, gains, width, len(points) > 4)
            if ((length < width) & ~found.hides(noise)[3] & (noise > 0)).mean() <= _FEW:
                return found
        # With one side closed, the same spacing gives another grid.
        spacing /= 1.0 if (line.room[0] < room[0]) != (line.room[1] < room[1]) else 8.0
    return found


def _weights(points: Array, order: int) -> Array:
    """Return the weights of a derivative at the middle of some points."""
    powers = np.arange(len(points))[:, None]
    wanted = np.where(powers[:, 0] == order, float(math.factorial(order)), 0.0)
    return np.linalg.solve((points - points.mean()) ** powers, wanted)


def _second_look(line: _Line, noise: Array, near: _Bends, scale: float, suspect: Array, silent: Array) -> Array:
    """Return the noise at a hundred times the spacing, or of a jump or kink at the point itself.

    Where too few outputs ask for more runs, or one did not move close to the point at all, it is what the wider values
    allow.
    """
    cluster = line.cluster(min(100.0 * _SPACING * scale, near.spacing / 6.0)) if suspect.mean() > _FEW else None
    if cluster is None:
        return np.maximum(noise, near.fourth_difference())
    table = noise_table(cluster[1], cluster[0])
    wider = np.where(table.repeats, table.bound, np.nan_to_num(table.noise))
    open_ = suspect & (wider < 10.0 * noise)
    found = np.where(open_ & silent, near.fourth_difference(), np.maximum(noise, wider))
    if (open_ & ~silent).mean() > _FEW:
        closer = _bends(line, noise, near.spacing / 8.0, tries=1)
        if closer is not None:
            # Curvature would be 4096 times less, a kink 8 times, a jump not at all.
            least = np.maximum(0.01 * near.fourth_difference(), 10.0 * noise)
            found = np.where(open_ & ~silent & (closer.fourth_difference() > least), near.fourth_difference(), found)
    return found


def _combine(line: _Line, noise: Array, near: _Bends, far: _Bends | None) -> StepCalibration:
    """Take each derivative from the near points, and from the far ones where these show less behind the noise."""
    sizes = near.floored(noise)
    if far is not None:
        sizes = np.where(near.hides(noise), np.minimum(sizes, far.floored(noise)), sizes)
    sizes, noise = np.where(line.lost, np.nan, sizes), np.where(line.lost, np.nan, noise)
    first, second, third, fourth, fifth = sizes
    low, high = (math.inf if c == math.inf else r for c, r in zip(line.closed, line.reached, strict=True))
    return StepCalibration(noise, third, np.abs(line.centre), line.runs, first, second, fourth, fifth, (low, high))
