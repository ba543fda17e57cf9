"""Difference formulas, and which of them fits between the bounds of an input."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lume_diff.errors import GradientError, ValidationError


@dataclass(frozen=True)
class Stencil:
    """A difference formula: ``sum(weights * f(x + offsets * h)) / h**power``.

    Its truncation error is ``coefficient * |f^(power + order)| * h**order``.
    """

    offsets: tuple[float, ...]
    weights: tuple[float, ...]
    power: int
    order: int
    coefficient: float

    @property
    def reach(self) -> float:
        """The largest offset."""
        return max(abs(offset) for offset in self.offsets)

    @property
    def noise(self) -> float:
        """How many times the noise of a value, over ``h**power``, the noise of the difference is."""
        return math.sqrt(sum(weight**2 for weight in self.weights))

    @property
    def one_sided(self) -> bool:
        """Whether all points lie on one side; with a negative step they lie on the other."""
        return min(self.offsets) == 0

    @property
    def runs(self) -> int:
        """How many runs it takes beyond the point itself."""
        return sum(offset != 0 for offset in self.offsets)


STENCILS: dict[str, Stencil] = {
    "forward": Stencil((0, 1), (-1, 1), 1, 1, 1 / 2),
    "central": Stencil((-1, 1), (-1 / 2, 1 / 2), 1, 2, 1 / 6),
    "one_sided": Stencil((0, 1, 2), (-3 / 2, 2, -1 / 2), 1, 2, 1 / 3),
    "fourth": Stencil((-2, -1, 1, 2), (1 / 12, -2 / 3, 2 / 3, -1 / 12), 1, 4, 1 / 30),
    "second": Stencil((-1, 0, 1), (1, -2, 1), 2, 2, 1 / 12),
    "second_one_sided": Stencil((0, 1, 2, 3), (2, -5, 4, -1), 2, 2, 11 / 12),
    # One input's part in the mixed difference of mixed_error: of (h, k), (-h, -k), the centre, (h, 0), (-h, 0), (0, k)
    # and (0, -k).
    "mixed": Stencil((1, -1, 0, 1, -1, 0, 0), (1 / 2, 1 / 2, 1, -1 / 2, -1 / 2, -1 / 2, -1 / 2), 2, 2, 7 / 12),
}

#: What takes the place of a formula that needs room on both sides.
ASIDE = {"central": "one_sided", "fourth": "one_sided", "second": "second_one_sided"}


def stencil_of(scheme: str) -> Stencil:
    """Return the formula of a name.

    Raises:
        ValidationError: if there is none.
    """
    if scheme not in STENCILS:
        raise ValidationError(f"scheme {scheme!r} is not known; expected one of {', '.join(map(repr, STENCILS))}")
    return STENCILS[scheme]


def no_room(room: tuple[float, float]) -> GradientError:
    """Return the error for a point between bounds that touch it on both sides."""
    return GradientError(
        f"distances to the bounds of {room[0]:g} and {room[1]:g} leave no room for a difference; move the point away "
        "from them or widen them"
    )


def exact_step(point: float, step: float) -> float:
    """Return the step as an exact difference of floating-point numbers near the point.

    Raises:
        GradientError: if it is too small for them.
    """
    exact = (point + step) - point
    if exact == 0.0:
        raise GradientError(
            f"a step of {step:g} does not change an input of {point:g}; give the variable a larger scale, or a larger "
            "step where it is given"
        )
    return exact


def fitted(scheme: str, step: float, room: tuple[float, float]) -> tuple[str, float]:
    """Return a formula and a step that stay within the bounds, for a step that is not to be chosen.

    Where the room on one side is short, the step shrinks as far as a third; beyond that the formula is one-sided, of
    second order.

    Args:
        scheme: ``"central"``, ``"forward"``, ``"fourth"`` or ``"second"``.
        step: wanted [unit of the input].
        room: distances to the lower and the upper bound, not negative.

    Returns:
        Key of :data:`STENCILS` and the step, negative where a one-sided formula looks down.

    Raises:
        GradientError: no room on either side.
    """
    if not max(room) > 0:
        raise no_room(room)
    if scheme == "forward":
        side = 1.0 if room[1] >= step or room[1] >= room[0] else -1.0
        return scheme, side * min(step, max(room))
    reach = STENCILS[scheme].reach
    if min(room) >= reach * step / 3.0:
        return scheme, min(step, min(room) / reach)
    return one_sided(step, room, scheme)


def one_sided(
    step: float, room: tuple[float, float], scheme: str = "central", other: bool = False
) -> tuple[str, float]:
    """Return the one-sided formula in place of another, on the side with more room, or on the other one."""
    side, name = (room[1] >= room[0]) != other, ASIDE[scheme]
    space = room[1] if side else room[0]
    return name, (1.0 if side else -1.0) * min(abs(step), space / STENCILS[name].reach)
