"""Polynomial conversions."""

from __future__ import annotations

import math
from typing import Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.models.facility.conversions.base import Conversion, Numbers, Place
from lume_diff.models.facility.conversions.monotone import solve


@final
class Polynomial(Conversion):
    """``native = c0 + c1 * setpoint + c2 * setpoint**2 + ...`` within a range, and along its tangents outside.

    Args:
        coefficients: ``c0, c1, ...``, native unit per power of the setpoint's unit.
        range: lowest and highest setpoint; None for the declared limits of the setpoint.

    Raises:
        ValidationError: where the polynomial is not strictly monotone over the range.

    Gradient:
        Exact; of the inverse up to the third order.
    """

    kind: Literal["polynomial"] = "polynomial"
    coefficients: tuple[float, ...] = Field(min_length=2)
    range: tuple[float, float] | None = None

    @property
    def setpoint_range(self) -> tuple[float, float] | None:
        """The range that was given."""
        return self.range

    def numbers(self, place: Place) -> dict[str, Any]:
        """Return coefficients from the highest power down, and the ends of the range."""
        ends = self.range or place.value_range
        if ends is None or not all(math.isfinite(end) for end in ends) or not ends[0] < ends[1]:
            raise ValidationError(
                f"a polynomial conversion needs a finite range (low, high) of setpoints, got {ends}: give range, or "
                "value_range of the variable"
            )
        falling = [float(c) for c in reversed(self.coefficients)]
        if not all(map(math.isfinite, falling)):
            raise ValidationError(f"a coefficient of {list(self.coefficients)} is not finite: correct it")
        turn = _turning_point(falling, *ends)
        if turn is not None:
            raise ValidationError(
                f"the polynomial with coefficients {list(self.coefficients)} is not strictly monotone from {ends[0]:g} "
                f"to {ends[1]:g}: its slope vanishes or changes sign near {turn:.6g}; narrow the range or correct the "
                "coefficients"
            )
        return {"coefficients": falling, "low": ends[0], "high": ends[1]}

    def to_native(self, setpoint: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return the polynomial's value."""
        return _value_and_slope(setpoint, numbers)[0]

    def to_setpoint(self, native: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return where the polynomial has the value."""
        low, high = numbers["low"].expand(native.shape), numbers["high"].expand(native.shape)
        bottom, falls = _value_and_slope(low, numbers)
        top, rises = _value_and_slope(high, numbers)
        sign = torch.sign(rises)
        is_below, is_above = sign * (native - bottom) < 0.0, sign * (native - top) > 0.0
        inner = torch.where(is_below, bottom.detach(), torch.where(is_above, top.detach(), native))
        found = solve(lambda x: _inner(x, numbers), inner, low, high)
        found = torch.where(is_below, low + (native - bottom) / falls, found)
        return torch.where(is_above, high + (native - top) / rises, found)


def _inner(x: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Return value and slope by Horner's rule."""
    value = slope = torch.zeros_like(x)
    for coefficient in numbers["coefficients"].unbind(-1):
        slope = slope * x + value
        value = value * x + coefficient
    return value, slope


def _value_and_slope(x: Tensor, numbers: Numbers) -> tuple[Tensor, Tensor]:
    """Return value and slope, continued along the tangents at the ends of the range."""
    inside = x.clamp(numbers["low"], numbers["high"])
    value, slope = _inner(inside, numbers)
    return value + slope * (x - inside), slope


def _turning_point(falling: list[float], low: float, high: float) -> float | None:
    """Return a place in a range where the slope is 0 or has another sign than at the ends, None where there is none."""
    import numpy as np

    slope = np.poly1d(falling).deriv()
    # The least slope is at an end or at an extremum of it; the real part of a double root that round-off has split
    # is looked at too.
    places = [low, high, *(root.real for root in slope.deriv().roots if low < root.real < high)]
    values = [float(slope(place)) for place in places]
    floor = 1e-12 * max(map(abs, values))
    sign = math.copysign(1.0, values[0])
    return next((place for place, value in zip(places, values, strict=True) if not sign * value > floor), None)
