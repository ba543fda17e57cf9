"""How the panels draw: large letters, colours for everybody, and a veil over what does not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.plotting.units import prefixed, pretty_unit

if TYPE_CHECKING:
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure

#: Horizontal and vertical, and what is neither: Okabe and Ito's, which the colour-blind can tell apart.
X_COLOUR, Y_COLOUR, OTHER_COLOUR = "#0072B2", "#D55E00", "#000000"
#: What has no value, or one that does not hold.
GREY, PALE = "#8a8a8a", "#e6e6e6"
LETTERS, SMALL = "14px", "12px"


def signed_palette() -> list[str]:
    """Return 255 colours from orange by white to purple, for numbers of both signs."""
    from bokeh.palettes import PuOr11, interp_palette

    return list(interp_palette(tuple(reversed(PuOr11)), 255))


def new_figure(height: int, **options: Any) -> figure:
    """Return a figure that can be read from the back of a room.

    Args:
        height: [px].
        **options: of ``bokeh.plotting.figure``.
    """
    from bokeh.plotting import figure

    options = {"tools": "xpan,box_zoom,xwheel_zoom,reset,save", "active_scroll": None, "active_drag": None, **options}
    made = figure(height=height, sizing_mode="stretch_width", min_border_left=60, **options)
    made.toolbar.logo = None
    made.toolbar.autohide = True
    for axis in made.axis:
        axis.axis_label_text_font_size = LETTERS
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = "#1a1a1a"
        axis.major_label_text_font_size = SMALL
    made.title.text_font_size = LETTERS
    made.title.text_font_style = "normal"
    made.outline_line_color = None
    return made


class Veil:
    """Cover a figure with hatched grey while what it shows does not hold.

    Args:
        covered: the figure.
    """

    def __init__(self, covered: figure) -> None:
        from bokeh.models import BoxAnnotation, Label

        self._box = BoxAnnotation(
            fill_color="#d9d9d9", fill_alpha=0.6, hatch_pattern="/", hatch_color=GREY, hatch_alpha=0.6,
            line_color=None, level="overlay", visible=False,
        )  # fmt: skip
        self._label = Label(
            x=8, y=6, x_units="screen", y_units="screen", text="INVALID", text_font_size=LETTERS,
            text_font_style="bold", text_color="#1a1a1a", background_fill_color="white", background_fill_alpha=0.9,
            padding=3, level="overlay", visible=False,
        )  # fmt: skip
        covered.add_layout(self._box)
        covered.add_layout(self._label)

    def show(self, text: str) -> None:
        """Cover the figure and say why in a word; an empty text uncovers it."""
        visible = bool(text)
        if self._box.visible is not visible:
            self._box.visible = self._label.visible = visible
        if visible and self._label.text != text:
            self._label.text = text


class SteadyUnit:
    """Choose a prefix for numbers that change, and change it only when it no longer fits.

    Args:
        unit: of the numbers, such as ``m``.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.factor, self.shown = 1.0, unit
        self._is_chosen = False

    def fit(self, size: float) -> bool:
        """Choose for the largest number that is shown [unit]; returns whether the choice is another one."""
        size = abs(size)
        if not size or size == float("inf") or size != size:
            return False
        if self._is_chosen and 0.3 <= size * self.factor < 3000.0:
            return False
        factor, shown = prefixed(size, self.unit)
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


def put(source: ColumnDataSource, data: Mapping[str, Sequence[Any]]) -> None:
    """Give a data source new columns, if they are not those that it has: what is the same is not sent."""
    if not all(key in source.data and _same(source.data[key], column) for key, column in data.items()):
        source.data = dict(data)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=np.asarray(b).dtype.kind == "f")
    return len(a) == len(b) and all(x == y or (x != x and y != y) for x, y in zip(a, b, strict=True))
