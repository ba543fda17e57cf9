"""Conversions by a table: a monotone cubic spline."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.models.facility.conversions.base import Conversion, Numbers, Place
from lume_diff.models.facility.conversions.monotone import solve


@final
class Table(Conversion):
    """A monotone cubic spline (PCHIP) through measured points, and its tangents outside.

    At an end where PCHIP would have no slope, which has no inverse, it has a tenth of the secant's.

    Args:
        setpoints: strictly rising, at least 2, in the setpoint's unit.
        natives: strictly rising or strictly falling, in the native unit.

    Raises:
        ValidationError: where the points are not strictly monotone; with the first two that are not.

    Gradient:
        Exact, continuous across the points; the inverse's exact too, up to the third order inside of an interval.

    Source:
        F. N. Fritsch and J. Butland, SIAM J. Sci. Stat. Comput. 5, 300 (1984), doi:10.1137/0905021.
    """

    kind: Literal["table"] = "table"
    setpoints: tuple[float, ...] = Field(min_length=2)
    natives: tuple[float, ...] = Field(min_length=2)

    @property
    def setpoint_range(self) -> tuple[float, float] | None:
        """The first and the last setpoint."""
        return self.setpoints[0], self.setpoints[-1]

    def numbers(self, place: Place) -> dict[str, Any]:
        """Return the points and the slopes at them."""
        if len(self.setpoints) != len(self.natives):
            raise ValidationError(
                f"a table conversion has {len(self.setpoints)} setpoints and {len(self.natives)} natives: give as many"
            )
        for word, points in (("setpoints", self.setpoints), ("natives", self.natives)):
            if not all(map(math.isfinite, points)):
                raise ValidationError(f"{word} of a table conversion have a number that is not finite: correct it")
        rises = self.natives[-1] > self.natives[0]
        for (x0, x1), (y0, y1) in zip(pairwise(self.setpoints), pairwise(self.natives), strict=True):
            if not x0 < x1 or y0 == y1 or (y0 < y1) != rises:
                raise ValidationError(
                    f"the table conversion is not strictly monotone: setpoints {x0:g}, {x1:g} go with {y0:g}, {y1:g}; "
                    "setpoints must rise and natives rise or fall throughout"
                )
        return {"x": self.setpoints, "y": self.natives, "slope": _slopes(self.setpoints, self.natives)}

    def to_native(self, setpoint: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return the spline's value."""
        x = numbers["x"]
        inside = setpoint.clamp(x[..., 0], x[..., -1])
        piece = _Piece(numbers, _interval(inside.detach(), x))
        value, slope = piece.value_and_slope(inside)
        return value + slope * (setpoint - inside)

    def to_setpoint(self, native: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return where the spline has the value."""
        x, y, slope = numbers["x"], numbers["y"], numbers["slope"]
        sign = torch.sign(y[..., -1] - y[..., 0])
        first, last = y[..., 0].expand(native.shape), y[..., -1].expand(native.shape)
        is_below, is_above = sign * (native - first) < 0.0, sign * (native - last) > 0.0
        inner = torch.where(is_below, first, torch.where(is_above, last, native))
        piece = _Piece(numbers, _interval((sign * inner).detach(), sign.unsqueeze(-1) * y))
        found = solve(piece.value_and_slope, inner, piece.x0, piece.x1)
        found = torch.where(is_below, x[..., 0] + (native - first) / slope[..., 0], found)
        return torch.where(is_above, x[..., -1] + (native - last) / slope[..., -1], found)


class _Piece:
    """The cubic that each of some numbers lies on."""

    def __init__(self, numbers: Numbers, index: Tensor) -> None:
        def at(table: Tensor, index: Tensor) -> Tensor:
            return table.expand(*index.shape, table.shape[-1]).gather(-1, index.unsqueeze(-1)).squeeze(-1)

        self.x0, self.x1 = at(numbers["x"], index), at(numbers["x"], index + 1)
        self._y0, self._y1 = at(numbers["y"], index), at(numbers["y"], index + 1)
        self._d0, self._d1 = at(numbers["slope"], index), at(numbers["slope"], index + 1)

    def value_and_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cubic and its derivative."""
        width, rise = self.x1 - self.x0, self._y1 - self._y0
        t = (x - self.x0) / width
        c, b = width * self._d0, 3.0 * rise - width * (2.0 * self._d0 + self._d1)
        a = width * (self._d0 + self._d1) - 2.0 * rise
        value = self._y0 + t * (c + t * (b + t * a))
        return value, (c + t * (2.0 * b + 3.0 * a * t)) / width


def _interval(value: Tensor, points: Tensor) -> Tensor:
    """Return the number of the interval between rising points that each value lies in, ``(*batch, n)``."""
    return (value.unsqueeze(-1) >= points[..., 1:-1]).sum(-1)


def _slopes(x: tuple[float, ...], y: tuple[float, ...]) -> list[float]:
    """Return PCHIP's slopes, none of them 0."""
    h = [b - a for a, b in pairwise(x)]
    secants = [(b - a) / step for (a, b), step in zip(pairwise(y), h, strict=True)]
    if len(secants) == 1:
        return [secants[0], secants[0]]
    inner = []
    for (h0, h1), (m0, m1) in zip(pairwise(h), pairwise(secants), strict=True):
        w0, w1 = 2.0 * h1 + h0, h1 + 2.0 * h0
        inner.append((w0 + w1) / (w0 / m0 + w1 / m1))
    ends = [_end_slope(h[0], h[1], secants[0], secants[1]), _end_slope(h[-1], h[-2], secants[-1], secants[-2])]
    return [ends[0], *inner, ends[1]]


def _end_slope(h0: float, h1: float, m0: float, m1: float) -> float:
    slope = ((2.0 * h0 + h1) * m0 - h0 * m1) / (h0 + h1)
    return slope if slope / m0 > 0.1 else 0.1 * m0
