"""How noisy a code's outputs are, how they bend, and the step at which a difference is best.

A difference of step ``h`` has two errors: noise of the code, which grows as ``h`` shrinks, and truncation, which grows
with ``h``. ``noise.calibrate`` measures what both need, once for an input; :class:`StepCalibration` turns it into steps
and error estimates for every output; :func:`step_classes` lets outputs share runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lume_diff.blackbox.differences.stencil import ASIDE, STENCILS, exact_step, no_room, stencil_of

Array = NDArray[Any]
#: Evaluates a line of offsets from the point, ``(k,) -> (k, n_out)``; rows of NaN stand for runs that failed.
Probe = Callable[[Array], Array]

_SIGMAS = 3.0  # standard deviations of noise in an error estimate


@dataclass(frozen=True)
class StepClass:
    """Outputs that share the runs of one difference: its formula, its step and what is left of error.

    Attributes:
        scheme: key of :data:`stencil.STENCILS`.
        step: in the unit of the input; negative where a one-sided formula looks towards the lower bound.
        outputs: indices of the outputs, ``(n,)``.
        error: estimated error of the derivative of each of them, ``(n,)``; NaN where nothing is known of it.
    """

    scheme: str
    step: float
    outputs: Array
    error: Array

    @property
    def offsets(self) -> Array:
        """Where to run besides the point itself, in the unit of the input."""
        return self.step * np.array([offset for offset in STENCILS[self.scheme].offsets if offset != 0])

    def derivative(self, centre: Array, values: Sequence[Array]) -> Array:
        """Return the derivative of all outputs, from the value at the point and those at ``offsets``."""
        stencil, others = STENCILS[self.scheme], iter(values)
        seen = np.array([centre if offset == 0 else next(others) for offset in stencil.offsets])
        return np.tensordot(np.array(stencil.weights), seen, 1) / self.step**stencil.power


@dataclass(frozen=True)
class StepCalibration:
    """What is known of one input's effect on all outputs, in units of the input and the outputs.

    An output that is not a number near the point has a noise of NaN and an error of infinity.

    Attributes:
        noise: standard deviation of the outputs' computational noise, ``(n_out,)``.
        third: size of the third derivative, ``(n_out,)``; never below what the noise lets one see, as all of these.
        size: size of the outputs, ``(n_out,)``.
        runs: simulator runs that it took.
        first: size of the first derivative, ``(n_out,)``.
        second: size of the second derivative, ``(n_out,)``.
        fourth: size of the fourth derivative, ``(n_out,)``.
        fifth: size of the fifth derivative, ``(n_out,)``, extrapolated from the lower ones.
        room: distances downwards and upwards up to which runs worked; infinite on a side that had no failures.
        place: where the input stood; None if ``room`` holds wherever it stands.

    Example:
        >>> import numpy as np
        >>> from lume_diff.blackbox.differences.noise import calibrate
        >>> found = calibrate(lambda offsets: np.sin(0.3 + offsets)[:, None], scale=1.0)
        >>> found.runs
        12
        >>> (plan,) = found.plan(scale=1.0, point=0.3)
        >>> h = plan.step
        >>> slope = (np.sin(0.3 + h) - np.sin(0.3 - h)) / (2 * h)
        >>> bool(abs(slope - np.cos(0.3)) < plan.error[0] < 1e-10)
        True
    """

    noise: Array
    third: Array
    size: Array
    runs: int
    first: Array | None = None
    second: Array | None = None
    fourth: Array | None = None
    fifth: Array | None = None
    room: tuple[float, float] = (math.inf, math.inf)
    place: float | None = None

    def only(self, outputs: Array) -> StepCalibration:
        """Return what is known of some of the outputs, given by their indices."""
        found = vars(self).items()
        arrays: dict[str, Any] = {name: v[outputs] for name, v in found if isinstance(v, np.ndarray)}
        return replace(self, **arrays)

    def plain(self) -> dict[str, Any]:
        """Return it as numbers and lists, which JSON can hold."""
        return {n: value.tolist() if isinstance(value, np.ndarray) else value for n, value in vars(self).items()}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> StepCalibration:
        """Return the calibration that ``plain`` was called on.

        Raises:
            TypeError: if the content is something else.
        """
        found: dict[str, Any] = {n: np.array(v, dtype=float) if isinstance(v, list) else v for n, v in content.items()}
        return cls(**{**found, "room": tuple(content["room"])})

    def bend(self, order: int) -> Array:
        """Return the size of a derivative, order 1 to 5, ``(n_out,)``.

        One that was not measured is taken from the third and the size, as for ``size * sin(x / length)``.
        """
        known = (self.first, self.second, self.third, self.fourth, self.fifth)[order - 1]
        if known is not None:
            return known
        with np.errstate(divide="ignore", invalid="ignore"):
            length = np.cbrt(self.size / self.third)
            return np.where(length > 0, self.third * length ** (3 - order), self.third)

    def steps(self, scale: float, room: float = math.inf, scheme: str = "central") -> Array:
        """Return the step of least expected error for each output.

        Constant outputs, whose derivative is right at any step, get the median step of the others, to share its runs.

        Args:
            scale: typical change of the input, beyond which no point of the formula goes.
            room: distance to the nearest bound, or to the farther one for a one-sided scheme.
            scheme: key of :data:`stencil.STENCILS`.

        Returns:
            Steps, ``(n_out,)``, positive, in the unit of the input.

        Source:
            J. J. Moré and S. M. Wild, ACM Trans. Math. Softw. 38, 19 (2012), doi:10.1145/2168773.2168777: minimise
            the mean square of truncation ``c F h**q`` and noise ``s eps / h**m`` together, ``h**(q + m) =
            sqrt(m / q) s eps / (c F)``. Forward: ``8**(1/4) sqrt(eps / |f''|)``; central: ``(3 eps / |f'''|)**(1/3)``.
        """
        stencil = stencil_of(scheme)
        strength = math.sqrt(stencil.power / stencil.order) * stencil.noise / stencil.coefficient
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = strength * self.noise / self.bend(stencil.power + stencil.order)
            best = ratio ** (1.0 / (stencil.power + stencil.order))
        widest = min(scale, room) / stencil.reach
        best = np.where((self.noise > 0) & np.isnan(best), widest, best)
        free = ~(self.noise > 0)
        limited = np.clip(best, 1e-12 * widest, widest)
        shared = float(np.exp(np.median(np.log(limited[~free])))) if not free.all() else 1e-3 * widest
        return np.where(free, shared, limited)

    def error(self, step: Array | float, scheme: str = "central") -> Array:
        """Return the estimated error of the derivative at a step, for each output.

        It is meant as a bound: three standard deviations of the noise plus the whole truncation error, for a central
        difference ``3 eps / (sqrt(2) h) + |f'''| h**2 / 6``.

        Args:
            step: in the unit of the input; one for all or ``(n_out,)``; the sign does not matter.
            scheme: key of :data:`stencil.STENCILS`.

        Returns:
            ``(n_out,)``, unit of the output over unit of the input to the power of the derivative.
        """
        stencil, size = stencil_of(scheme), np.abs(step)
        truncation = stencil.coefficient * self.bend(stencil.power + stencil.order) * size**stencil.order
        found = _SIGMAS * stencil.noise * self.noise / size**stencil.power + truncation
        return np.where(np.isnan(found), math.inf, found)

    def plan(
        self,
        scale: float,
        room: tuple[float, float] = (math.inf, math.inf),
        scheme: str = "central",
        *,
        point: float = 0.0,
        ratio: float = 3.0,
        most: int = 6,
    ) -> list[StepClass]:
        """Return the differences to take: formula, step, and which outputs to read from it.

        Near a bound a central difference shrinks or gives way to a one-sided one, whichever has the lesser error for
        most outputs.

        Args:
            scale: typical change of the input.
            room: distances to the lower and the upper bound.
            scheme: ``"forward"``, ``"central"``, ``"fourth"`` or, for second derivatives, ``"second"``.
            point: where the input stands; steps are then exact differences of floating-point numbers near it.
            ratio: steps within this ratio are shared.
            most: no more steps than this.

        Returns:
            One or more, smallest step first; every output is in one of them.

        Raises:
            GradientError: no room on either side, or steps too small for the floating-point numbers near the point.
        """
        moved = 0.0 if self.place is None else point - self.place
        worked = max(self.room[0] + moved, 0.0), max(self.room[1] - moved, 0.0)
        room = (min(room[0], worked[0]), min(room[1], worked[1]))
        side = 1.0 if room[1] >= min(room[0], scale) else -1.0
        near, wide = min(room), room[1] if side > 0 else room[0]
        if aside := ASIDE.get(scheme):
            errors = [
                np.median(self.error(self.steps(scale, space, name), name)) if space > 0 else math.inf
                for name, space in ((scheme, near), (aside, wide))
            ]
            scheme = scheme if errors[0] <= errors[1] else aside
        stencil = stencil_of(scheme)
        space, sign = (wide, side) if stencil.one_sided else (near, 1.0)
        if not space > 0:
            raise no_room(room)
        groups = step_classes(self.steps(scale, space, scheme), ratio, most)
        found = []
        for step, outputs in groups:
            exact = exact_step(point, sign * step)
            found.append(StepClass(scheme, exact, outputs, self.error(exact, scheme)[outputs]))
        return found


def mixed_error(a: StepCalibration, b: StepCalibration, step_a: float, step_b: float, value: Array) -> Array:
    """Return the estimated error of a mixed second derivative, for each output.

    The difference is ``(f(h, k) + f(-h, -k) + 2 f - f(h, 0) - f(-h, 0) - f(0, k) - f(0, -k)) / (2 h k)``, of which all
    but two runs serve the pure second derivatives as well. Its best steps are those of the scheme ``"mixed"`` for each
    input. Mixed fourth derivatives are not measured: they are taken from the value and the lengths over which the
    outputs change, or as geometric means of the pure ones where that is more.

    Args:
        a: calibration of the one input.
        b: calibration of the other.
        step_a: step ``h`` of the one input.
        step_b: step ``k`` of the other.
        value: the derivative that was found, ``(n_out,)``.

    Returns:
        ``(n_out,)``, unit of the output over units of both inputs.
    """
    u, v = (
        step / length_of(np.array([c.bend(n) for n in range(1, 5)]), step) for c, step in ((a, step_a), (b, step_b))
    )
    p, q = step_a * a.bend(4) ** 0.25, step_b * b.bend(4) ** 0.25
    truncation = np.maximum(
        np.abs(value) * (u**2 / 6 + u * v / 4 + v**2 / 6), p * q * (p**2 / 6 + p * q / 4 + q**2 / 6) / (step_a * step_b)
    )
    found = _SIGMAS * STENCILS["mixed"].noise * np.maximum(a.noise, b.noise) / (step_a * step_b) + truncation
    return np.where(np.isnan(found), math.inf, found)


def step_classes(steps: Array, ratio: float = 3.0, most: int = 6) -> list[tuple[float, Array]]:
    """Group outputs whose best steps are within a ratio of each other, so that they share runs.

    Args:
        steps: best step of each output, ``(n_out,)``.
        ratio: largest over smallest step in a group; widened until ``most`` groups are enough.
        most: number of groups at most.

    Returns:
        ``[(step, indices of outputs)]``, smallest step first. The step lies below the geometric middle of the group,
        since a step too large costs its square, one too small only itself.
    """
    order = np.argsort(steps, kind="stable")
    sorted_steps = np.asarray(steps, dtype=float)[order]
    while True:
        starts = [0]
        while (end := int(np.searchsorted(sorted_steps, ratio * sorted_steps[starts[-1]], "right"))) < len(order):
            starts.append(end)
            if len(starts) > most:
                break
        if len(starts) <= most:
            break
        ratio *= 1.5
    bounds = [*starts, len(order)]
    return [
        (float(sorted_steps[low] ** 0.6 * sorted_steps[high - 1] ** 0.4), np.sort(order[low:high]))
        for low, high in itertools.pairwise(bounds)
    ]


def length_of(sizes: Array, width: float) -> Array:
    """Return the length over which outputs change: in units of it, orders 1 and 2 are as large as 3 and 4."""
    length = np.full(sizes.shape[1], width)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(4):
            square = (sizes[0] + sizes[1] * length) / (sizes[2] + sizes[3] * length)
            length = np.nan_to_num(np.sqrt(square), nan=1e9 * width, posinf=1e9 * width)
    return length
