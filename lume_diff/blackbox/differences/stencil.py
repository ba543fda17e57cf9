"""Where a difference looks, and how it weighs what it sees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stencil:
    """A first-difference formula: ``f' = sum(weights * f(x + offsets)) / step``.

    Attributes:
        step: [unit of the input].
        offsets: in units of the step; 0 is the point itself.
        weights: of the values there.
    """

    step: float
    offsets: tuple[float, ...]
    weights: tuple[float, ...]

    @property
    def scheme(self) -> str:
        """The name that ``Calibration.error`` knows it by."""
        if 0.0 not in self.offsets:
            return "central" if len(self.offsets) == 2 else "fourth"
        return "forward" if len(self.offsets) == 2 else "one_sided"

    @property
    def runs(self) -> int:
        """How many runs it takes beyond the point itself."""
        return sum(offset != 0 for offset in self.offsets)


_CENTRAL = ((-1.0, 1.0), (-0.5, 0.5))
_FOURTH = ((-2.0, -1.0, 1.0, 2.0), (1 / 12, -8 / 12, 8 / 12, -1 / 12))
_FORWARD = ((0.0, 1.0), (-1.0, 1.0))
_ONE_SIDED = ((0.0, 1.0, 2.0), (-1.5, 2.0, -0.5))


def choose(scheme: str, step: float, room: tuple[float, float]) -> Stencil:
    """Return the stencil of a scheme that stays within the bounds.

    Where the room on one side is short, the step shrinks as far as a third; beyond that the stencil is one-sided, of
    second order.

    Args:
        scheme: ``"central"``, ``"forward"`` or ``"fourth"``.
        step: wanted [unit of the input].
        room: distances to the lower and the upper bound, not negative.
    """
    left, right = room
    reach = 2.0 if scheme == "fourth" else 1.0
    if scheme == "forward":
        side = 1.0 if right >= step or right >= left else -1.0
        step = min(step, max(left, right))
        return mirrored(Stencil(step, *_FORWARD), side)
    if min(left, right) >= reach * step / 3.0:
        shrunk = min(step, min(left, right) / reach)
        return Stencil(shrunk, *(_FOURTH if scheme == "fourth" else _CENTRAL))
    return one_sided(step, room)


def one_sided(step: float, room: tuple[float, float], other: bool = False) -> Stencil:
    """Return the second-order stencil on the side with more room, or on the other one."""
    left, right = room
    side = 1.0 if right >= left else -1.0
    side = -side if other else side
    space = right if side > 0 else left
    return mirrored(Stencil(min(step, space / 2.0), *_ONE_SIDED), side)


def mirrored(stencil: Stencil, side: float) -> Stencil:
    """Return a stencil as it is, or turned to negative offsets."""
    if side > 0:
        return stencil
    return Stencil(stencil.step, tuple(-o for o in stencil.offsets), tuple(-w for w in stencil.weights))
