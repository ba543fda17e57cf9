"""The outlines of elements, as control rooms draw a line."""

from __future__ import annotations

import math
from collections.abc import Callable

from lume_diff.models.survey import BOX, LineElement

#: x and y of a polygon, x from 0 to 1 along the element; NaN between parts.
Outline = tuple[list[float], list[float]]

_THINNEST = 0.004  # of the line: what is shorter is drawn so wide
_BOX = 0.05  # of the line: width of a stage without elements


def outline(element: LineElement, total: float) -> Outline | None:
    """Return the polygon of an element: s [m], and height from -1 to 1; None for one that is not drawn.

    Args:
        element: the element.
        total: length of the line [m].
    """
    draw = _SHAPES.get(element.kind)
    if draw is None and element.kind == "Drift":
        return None
    xs, ys = (draw or _tick)(element)
    if element.kind == BOX:
        low, high = element.s - _BOX * total, element.s - 0.15 * _BOX * total
    else:
        width = max(element.length, _THINNEST * total * _WIDTHS.get(element.kind, 1.0))
        low, high = element.centre - 0.5 * width, element.centre + 0.5 * width
    return [low + x * (high - low) for x in xs], ys


def beginning(elements: tuple[LineElement, ...], total: float) -> float:
    """Return where the drawing begins [m]: before the line, if a stage without elements stands there."""
    return min((min(outline(e, total)[0]) for e in elements if e.kind == BOX), default=0.0)  # type: ignore[index]


def _rectangle(low: float, high: float) -> Outline:
    return [0.0, 1.0, 1.0, 0.0], [low, low, high, high]


def _by_sign(height: float) -> Callable[[LineElement], Outline]:
    """Return what draws a lens above the axis for a positive strength, below it for a negative one."""

    def draw(element: LineElement) -> Outline:
        strength = element.strength or 0.0
        if not strength:
            return _rectangle(-0.5 * height, 0.5 * height)
        return _rectangle(0.0, math.copysign(height, strength))

    return draw


def _bend(element: LineElement) -> Outline:
    lean = math.copysign(0.12, element.strength or 0.0) if element.strength else 0.0
    return [lean, 1.0 - lean, 1.0 + lean, -lean], [-0.5, -0.5, 0.5, 0.5]


def _cells(element: LineElement) -> Outline:
    """Return a string of cells."""
    count = min(9, max(3, round(3.0 * element.length)))
    xs = [i / (12 * count) for i in range(12 * count + 1)]
    ys = [0.2 + 0.3 * abs(math.sin(math.pi * count * x)) for x in xs]
    return [*xs, *reversed(xs)], [*ys, *(-y for y in reversed(ys))]


def _corrector(element: LineElement) -> Outline:
    if element.kind == "CombinedCorrector":
        return [0.0, 0.5, 1.0, 0.5], [0.0, -0.65, 0.0, 0.65]
    top = 0.65 if element.kind == "HorizontalCorrector" else -0.65
    return [0.0, 1.0, 0.5], [0.0, 0.0, top]


def _screen(element: LineElement) -> Outline:
    return [0.0, 0.4, 1.0, 0.6], [-0.75, -0.75, 0.75, 0.75]


def _monitor(element: LineElement) -> Outline:
    angles = [2.0 * math.pi * i / 16 for i in range(16)]
    return [0.5 + 0.5 * math.cos(a) for a in angles], [0.16 * math.sin(a) for a in angles]


def _jaws(element: LineElement) -> Outline:
    nan = math.nan
    return [0.0, 1.0, 1.0, 0.0, nan, 0.0, 1.0, 1.0, 0.0], [0.3, 0.3, 0.8, 0.8, nan, -0.3, -0.3, -0.8, -0.8]


def _tick(element: LineElement) -> Outline:
    return _rectangle(-0.3, 0.3)


_SHAPES: dict[str, Callable[[LineElement], Outline]] = {
    "Quadrupole": _by_sign(0.85),
    "Sextupole": _by_sign(0.6),
    "Dipole": _bend,
    "RBend": _bend,
    "Solenoid": lambda element: _rectangle(-0.6, 0.6),
    "Cavity": _cells,
    "TransverseDeflectingCavity": _cells,
    "Undulator": lambda element: _rectangle(-0.3, 0.3),
    "HorizontalCorrector": _corrector,
    "VerticalCorrector": _corrector,
    "CombinedCorrector": _corrector,
    "Screen": _screen,
    "BPM": _monitor,
    "Aperture": _jaws,
    BOX: lambda element: _rectangle(-0.6, 0.6),
}
#: Least width, in times the thinnest.
_WIDTHS = {
    "HorizontalCorrector": 2.5,
    "VerticalCorrector": 2.5,
    "CombinedCorrector": 2.5,
    "BPM": 1.8,
    "Screen": 3.0,
    "Marker": 0.6,
}
#: What a kind is called, in the order of a legend.
KIND_NAMES = {
    BOX: "model without elements",
    "Quadrupole": "quadrupole (above: focuses in x, below: in y)",
    "Sextupole": "sextupole (by sign)",
    "Dipole": "bend",
    "RBend": "bend",
    "Solenoid": "solenoid",
    "Cavity": "cavity",
    "TransverseDeflectingCavity": "deflecting cavity",
    "Undulator": "undulator",
    "HorizontalCorrector": "corrector (above: x, below: y)",
    "VerticalCorrector": "corrector (above: x, below: y)",
    "CombinedCorrector": "corrector (x and y)",
    "Screen": "screen",
    "BPM": "BPM",
    "Aperture": "aperture",
}
