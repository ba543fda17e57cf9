"""What the panels along the line have in common: figures, units that stay, colours for everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lume_diff.plotting.units import prefixed, pretty_unit, quantity
from lume_diff.view.panels.figures import INK, LINES, plot

#: Horizontal and vertical, and what is neither: colours that the colour-blind can tell apart.
X_COLOUR, Y_COLOUR, OTHER_COLOUR = LINES[0], LINES[1], INK
#: What has no value, or none that is reached.
GREY, PALE = "#8a8a8a", "#e6e6e6"


def signed_palette() -> list[str]:
    """Return 255 colours from orange by white to purple, for numbers of both signs."""
    from bokeh.palettes import PuOr11, interp_palette

    return list(interp_palette(tuple(reversed(PuOr11)), 255))


def bokeh() -> Any:
    """Return Bokeh's models, untyped: their declared types leave out half of what they take."""
    import bokeh.models

    return bokeh.models


def chart(height: int, y_label: str = "", x_label: str = "", **options: Any) -> Any:
    """Return a figure that leaves the wheel of the mouse to the page.

    Args:
        height: [px].
        y_label, x_label: of the axes, with their units.
        **options: of ``bokeh.plotting.figure``.
    """
    still = {"tools": "xpan,box_zoom,xwheel_zoom,reset,save", "active_scroll": None, "active_drag": None}
    made = plot(x_label, y_label, height, **{**still, "min_border_left": 60, **options})
    if isinstance(made.yaxis[0], bokeh().LinearAxis):
        made.yaxis.minor_tick_line_color = None
        made.yaxis.ticker.desired_num_ticks = 5
    made.outline_line_color = None
    return made


def fit(ranged: Any, values: np.ndarray, from_zero: bool = False) -> None:
    """Fit a range to numbers, if they leave it or fill little of it: an axis that moves with every frame tells nothing.

    Args:
        ranged: a ``Range1d``.
        values: those that are not finite do not count.
        from_zero: whether it begins at zero.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    low = min(low, 0.0) if from_zero else low
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    holds = ranged.start <= low and high <= ranged.end and high - low > 0.6 * (ranged.end - ranged.start)
    begins_right = (ranged.start == 0.0) == (from_zero and low == 0.0)
    if not holds or not begins_right:
        start, end = 0.0 if from_zero and low == 0.0 else low - margin, high + margin
        ranged.update(start=start, end=end, reset_start=start, reset_end=end)


class Hatching:
    """Hatch what is only computed: where the beam would be if nothing ended it before.

    Args:
        hatched: the figure.
        **edges: of the part, as far as it has any.
    """

    def __init__(self, hatched: Any, **edges: float) -> None:
        self._box = bokeh().BoxAnnotation(
            fill_color="#d9d9d9", fill_alpha=0.35, hatch_pattern="/", hatch_color=GREY, hatch_alpha=0.35,
            line_color=None, visible=False, **edges,
        )  # fmt: skip
        hatched.add_layout(self._box)

    def show(self, visible: bool, left: float | None = None) -> None:
        """Show the hatching or not.

        Args:
            visible: whether.
            left: where it begins; None for where it is.
        """
        if left is not None and self._box.left != left:
            self._box.left = left
        if self._box.visible is not visible:
            self._box.visible = visible


class SteadyUnit:
    """Choose a prefix for numbers that change, and change it only when it no longer fits.

    Args:
        unit: of the numbers, such as ``m``.
        of: openPMD's name of the numbers; an emittance is in micrometres always, because people compare it in these.
    """

    def __init__(self, unit: str, of: str = "") -> None:
        self.unit, self.of = unit, of
        self.factor, self.shown = 1.0, unit
        self._is_chosen = False

    def fit(self, size: float) -> bool:
        """Choose for the largest number that is shown [unit]; returns whether the choice is another one."""
        size = abs(size)
        if not size or size == float("inf") or size != size:
            return False
        if self._is_chosen and 0.3 <= size * self.factor < 3000.0:
            return False
        factor, shown = (1e6, "µm") if self.of.startswith("norm_emit") else prefixed(size, self.unit)
        is_new = (factor, shown) != (self.factor, self.shown) or not self._is_chosen
        self.factor, self.shown, self._is_chosen = factor, shown, True
        return is_new

    @property
    def label(self) -> str:
        """The unit for an axis."""
        return readable(self.shown)


def readable(unit: str) -> str:
    """Return a unit as people write it.

    Example:
        >>> readable("um"), readable("1/m^2"), readable("")
        ('µm', '1/m²', '1')
    """
    unit = f"µ{unit[1:]}" if unit.startswith("u") and len(unit) in (2, 3) else unit
    return pretty_unit(unit) or "1"


def amount(value: float, unit: str, digits: int = 4) -> str:
    """Return a number with its unit as people write it.

    Example:
        >>> amount(2.1e-4, "m"), amount(237.0, "um")
        ('210 µm', '237 µm')
    """
    number, _, shown = quantity(value, unit, digits).partition(" ")
    return f"{number} {readable(shown)}" if shown else number


def put(source: Any, data: Mapping[str, Any]) -> None:
    """Give a data source new columns, if they are not those that it has: what is the same is not sent."""
    if any(key not in source.data or len(source.data[key]) != len(column) for key, column in data.items()):
        source.data = dict(data)
        return
    changed = {key: column for key, column in data.items() if not _same(source.data[key], column)}
    if changed:
        source.data.update(changed)


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=np.asarray(b).dtype.kind == "f")
    return len(a) == len(b) and all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))
