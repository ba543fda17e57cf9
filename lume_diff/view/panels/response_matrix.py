"""ResponseMatrix: what every knob would do to every output, kept up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lume_diff.errors import ControlError, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.plotting.units import per
from lume_diff.view import line
from lume_diff.view.background import Result
from lume_diff.view.doubt import doubt_of, in_short
from lume_diff.view.frame import Frame
from lume_diff.view.panels.figures import TEXT_SIZE, Veil
from lume_diff.view.panels.notice import Notice
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import PALE, amount, bokeh, chart, put, readable, signed_palette
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from panel.viewable import Viewable

#: How numbers are made comparable: name on the button -> what the colour says.
WAYS = {
    "by row": "effect of a typical change of each knob, as a share of the strongest on the same output",
    "by size": "effect of a typical change of each knob, in tenths of the output's limits, or as a share of its value",
    "per unit": "derivative, in output unit per knob unit",
}
_MOST = 60  # rows, and columns
_WITH_NUMBERS = 700  # cells
_ROUND_OFF = 1e-9  # of the strongest in a row: what is less is none
_SATURATED = 90  # [%] of the cells have a colour of their own; the strongest share the darkest


@final
class ResponseMatrix(Panel):
    """Show the derivatives of the outputs by the knobs as a heat map.

    A model is differentiated in the background, for the newest settings; of a server its own matrix is shown, where it
    works one out. Outputs that nothing acts on, and readbacks that only follow a knob, are left out unless asked for.

    Args:
        source: what to show, or a model.
        outputs: which; names or patterns such as ``"*:XRMS"``, several separated by commas.
        way: ``"by row"``, ``"by size"`` or ``"per unit"``.

    Raises:
        ValidationError: for another way.

    Example:
        >>> ResponseMatrix(machine, "*RMS")  # doctest: +SKIP
    """

    title = "Response matrix"
    place = 60
    wide = True

    def __init__(self, source: Source | LUMEModel, outputs: str = "*", way: str = "by row") -> None:
        if way not in WAYS:
            raise ValidationError(f"way is {way!r}; expected one of {', '.join(map(repr, WAYS))}")
        super().__init__(source)
        self.outputs, self.way = outputs, way

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether there are numbers to differentiate, or a server that has done so."""
        if source.model is None:
            try:
                return source.served_derivatives() is not None
            except ControlError:  # there is one, and the panel says what is the matter with it
                return True
        return all(line.scalars(source, read_only) for read_only in (True, False))

    def build(self) -> Viewable:
        """Make the heat map."""
        import panel as pn

        models = bokeh()
        self._buttons = pn.widgets.RadioButtonGroup(options=list(WAYS), value=self.way, margin=(5, 10))
        self._pattern = pn.widgets.TextInput(label="Outputs", value=self.outputs, width=260, margin=(0, 10))
        self._everything = pn.widgets.Checkbox(label="all outputs", value=False, margin=(25, 10, 0, 0))
        for widget in (self._buttons, self._pattern, self._everything):
            widget.param.watch(self._chosen, "value")
        self._notice = Notice()
        self._colours = models.LinearColorMapper(palette=signed_palette(), low=-1.0, high=1.0, nan_color=PALE)
        self._cells = models.ColumnDataSource({key: [] for key in ("knob", "output", "value", "text", "ink", "info")})
        borders: dict[str, Any] = {"min_border_left": 20, "min_border_right": 50}
        axes: dict[str, Any] = {
            "x_range": models.FactorRange(),
            "y_range": models.FactorRange(),
            "x_axis_location": "above",
        }
        self._figure = chart(300, tools="save,reset", **axes, **borders)
        self._figure.grid.visible = False
        self._figure.axis.major_tick_line_color = None
        self._figure.axis.axis_line_color = None
        self._figure.xaxis.major_label_orientation = 0.9
        fill = {"field": "value", "transform": self._colours}
        cells = self._figure.rect("knob", "output", 0.96, 0.92, source=self._cells, fill_color=fill, line_color=None)
        self._figure.text(
            "knob", "output", "text", source=self._cells, text_color="ink", text_font_size="12px",
            text_align="center", text_baseline="middle",
        )  # fmt: skip
        tips = "<div style='font-size:13px;max-width:480px'>@info{safe}</div>"
        self._figure.add_tools(models.HoverTool(renderers=[cells], tooltips=tips))
        bar = models.ColorBar(color_mapper=self._colours, width=12, major_label_text_font_size=TEXT_SIZE)
        self._figure.add_layout(bar, "right")
        self._veil = Veil(self._figure)
        return pn.Column(
            pn.Row(pn.Column(pn.Spacer(height=14), self._buttons), self._pattern, self._everything),
            pn.FlexBox(self._notice.view(), sizing_mode="stretch_width"),
            pn.pane.Bokeh(self._figure, sizing_mode="stretch_width"),
            sizing_mode="stretch_width",
        )

    def _chosen(self, event: Any) -> None:
        self.way, self.outputs = str(self._buttons.value), str(self._pattern.value)
        self.refresh()

    def _derivatives(self, frame: Frame) -> Result | None:
        if self.source.model is None:
            return line.served(self.source)
        rows, columns = (line.scalars(self.source, read_only) for read_only in (True, False))
        return line.derivatives(self.source, frame, rows, columns)

    def prepare(self, frame: Frame) -> None:
        """Have the derivatives worked out."""
        self._derivatives(frame)

    def update(self, frame: Frame) -> None:
        """Show the newest derivatives that there are."""
        found = self._derivatives(frame)
        doubt = doubt_of(frame, *([] if found is None else [found]))
        notes, what = [], WAYS[self.way]
        if found is None or found.value is None:
            if doubt is None:
                notes = [f"the response matrix is {line.why_not(self.source) or 'being worked out'}"]
        else:
            notes = self._draw(found.value, frame) + found.value.cost
            if self.source.model is not None and found.cycle != frame.cycle and doubt is None:
                what += " (follows the settings)"
        self._notice.show(doubt, [what, *notes])
        self._veil.show(in_short(doubt))

    def _draw(self, found: line.Derivatives, frame: Frame) -> list[str]:
        table = table_of(found, self.source, frame, self.way)
        patterns = [pattern.strip() for pattern in self.outputs.split(",") if pattern.strip()] or ["*"]
        rows = [i for i, name in enumerate(found.outputs) if any(fnmatchcase(name, one) for one in patterns)]
        shown = rows if self._everything.value else [i for i in rows if table.is_telling[i]]
        size = np.nan_to_num(np.abs(table.shown))
        shown = _strongest(shown, size.max(axis=1, initial=0.0))
        columns = _strongest(list(range(len(found.knobs))), size.max(axis=0, initial=0.0))
        left_out = len(rows) - len(shown)
        outputs, knobs = [found.outputs[i] for i in shown], [found.knobs[j] for j in columns]
        pairs = [(i, j) for i in shown for j in columns]
        acting = [value for value in size[np.ix_(shown, columns)].reshape(-1) if value > 0.0]
        highest = float(np.percentile(acting, _SATURATED)) if acting else 1.0
        if self.way == "by row":
            highest = 1.0
        values = [float(table.shown[pair]) for pair in pairs]
        has_numbers = len(pairs) <= _WITH_NUMBERS
        # The axes before the cells, which are placed by the factors that are there when they come.
        if list(self._figure.x_range.factors) != knobs:
            self._figure.x_range.factors = knobs
        if list(self._figure.y_range.factors) != outputs[::-1]:
            self._figure.y_range.factors = outputs[::-1]
            self._figure.height = 150 + 26 * max(4, len(outputs))
        put(
            self._cells,
            {
                "knob": [found.knobs[j] for _, j in pairs],
                "output": [found.outputs[i] for i, _ in pairs],
                "value": values,
                "text": [_number(value, self.way) if has_numbers else "" for value in values],
                "ink": ["#ffffff" if abs(value) > 0.6 * highest else "#1a1a1a" for value in values],
                "info": [table.info(i, j) for i, j in pairs],
            },
        )
        if (self._colours.low, self._colours.high) != (-highest, highest):
            self._colours.update(low=-highest, high=highest)
        return (
            [f"outputs not shown, because nothing acts on them or they just follow a knob: {left_out}"]
            if left_out
            else []
        )


@dataclass(frozen=True)
class Table:
    """Derivatives made comparable.

    Attributes:
        found: the derivatives.
        shown: what the colours say, ``(rows, columns)``; NaN where there is no value.
        is_telling: of each row, whether something acts on it other than a knob that it just follows.
        units: of rows and of columns.
        effects: of typical changes [output unit].
    """

    found: line.Derivatives
    shown: np.ndarray
    is_telling: Sequence[bool]
    units: tuple[Sequence[str], Sequence[str]]
    effects: np.ndarray

    def info(self, row: int, column: int) -> str:
        """Return what is said of one cell, as HTML."""
        output, knob = self.found.outputs[row], self.found.knobs[column]
        value, unit = self.found.values[row, column], self.units[0][row]
        head = f"<b>{escape(output)}</b> by {escape(knob)}"
        if not np.isfinite(self.shown[row, column]):
            return f"{head}<br>{escape(self.found.refused.get(output, 'no value now'))}"
        slope = f"{value:+.5g} {readable(per(readable(unit), self.units[1][column]))}"
        if self.found.errors is not None and np.isfinite(error := self.found.errors[row, column]):
            slope += f" ± {error:.1g}"
        effect = amount(self.effects[row, column], unit, 4)
        return f"{head}<br>{escape(slope)}<br>{escape(effect)} for a typical change of the knob"


def table_of(found: line.Derivatives, source: Source, frame: Frame, way: str) -> Table:
    """Return derivatives made comparable.

    Args:
        found: the derivatives.
        source: whose they are.
        frame: tells which outputs have a value.
        way: one of ``WAYS``.
    """
    effects = found.effects(line.scales(source, found.knobs))
    strongest = np.nan_to_num(np.abs(effects)).max(axis=1, initial=0.0)[:, None]
    effects = np.where(np.abs(effects) <= _ROUND_OFF * strongest, 0.0, effects)
    units = tuple([source.variables[name].unit for name in names] for names in (found.outputs, found.knobs))
    if way == "by row":
        shown = effects / np.where(strongest > 0.0, strongest, 1.0)
    elif way == "by size":
        shown = effects / np.array([_size(source, frame, name) for name in found.outputs])[:, None]
    else:
        shown = np.where(effects == 0.0, 0.0, found.values)
    good = np.array([line.has_value(frame, name) for name in found.outputs], dtype=bool)
    shown = np.where(good[:, None], shown, np.nan)
    acting = np.nan_to_num(effects) != 0.0
    follows = np.array([_follows(found.values[i], acting[i], units[0][i], units[1]) for i in range(len(acting))])
    is_telling = (acting.any(axis=1) if acting.size else np.zeros(0, bool)) & ~follows & good
    return Table(found, shown, is_telling.tolist(), (units[0], units[1]), effects)


def _size(source: Source, frame: Frame, name: str) -> float:
    """Return what counts as much of an output: a tenth of the width of its limits, or else its value [output unit]."""
    variable: Any = source.variables[name]
    for limits in (variable.value_range, variable.warning_range, variable.alarm_range):
        low, high = limits or (None, None)
        if low is not None and high is not None and 0.0 < high - low < float("inf"):
            return 0.1 * float(high - low)
    value = frame.value(name)
    return abs(value) if line.has_value(frame, name) and value else float(variable.scale)


def _follows(values: np.ndarray, acting: np.ndarray, unit: str, units: Sequence[str]) -> bool:
    """Tell whether an output is one of the knobs as it is."""
    places = np.flatnonzero(acting)
    return places.size == 1 and unit == units[places[0]] and abs(values[places[0]] - 1.0) < 1e-9


def _strongest(places: Sequence[int], size: np.ndarray) -> list[int]:
    """Return the places with the largest sizes, if there are too many, in their order."""
    if len(places) <= _MOST:
        return list(places)
    return sorted(sorted(places, key=lambda place: -size[place])[:_MOST])


def _number(value: float, way: str) -> str:
    if not np.isfinite(value):
        return "–"
    if value == 0.0 or (way == "by row" and abs(value) < 0.005):
        return ""
    return f"{value:.2f}" if 0.005 <= abs(value) < 100.0 else f"{value:.1e}"
