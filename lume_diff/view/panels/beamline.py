"""Beamline: the line along s, coloured by what every knob would do to one output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lume_diff.control.readings import Severity
from lume_diff.errors import unknown_variable
from lume_diff.models import LUMEModel
from lume_diff.models.survey import LineElement, Survey
from lume_diff.plotting.spread import spread_out
from lume_diff.plotting.units import per
from lume_diff.view import line
from lume_diff.view.alarms import Alarm
from lume_diff.view.background import Result
from lume_diff.view.doubt import doubt_of, in_short
from lume_diff.view.frame import Frame
from lume_diff.view.panels import shapes
from lume_diff.view.panels.figures import INK, TEXT_SIZE, Veil
from lume_diff.view.panels.notice import Notice
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import (
    GREY,
    PALE,
    Hatching,
    SteadyUnit,
    amount,
    bokeh,
    chart,
    put,
    readable,
    signed_palette,
)
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from panel.viewable import Viewable

_MOST_NAMES = 40
_ROUND_OFF = 1e-9  # of the strongest effect: what is less is none


@final
class Beamline(Panel):
    """Draw the line with its elements, and say what a typical change of every knob would do to an output.

    Args:
        source: what to show, or a model.
        output: the output that is asked about first; None for a beam size if there is one.

    Raises:
        UnknownVariableError: for an output that is not there, or is not a number.

    Example:
        >>> Beamline(machine, "OTRS:DIAG0:420:XRMS")  # doctest: +SKIP
    """

    title = "Beamline"
    place = 10
    wide = True

    def __init__(self, source: Source | LUMEModel, output: str | None = None) -> None:
        super().__init__(source)
        self._outputs = line.scalars(self.source, read_only=True)
        if output is not None and output not in self._outputs:
            raise unknown_variable(output, self._outputs, "the numbers that can be read")
        self.output = output or first_size(self._outputs)
        self._placed: tuple[Any, ...] = ()

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether the model tells of a line."""
        return line.survey(source, source.latest()).value is not None

    def build(self) -> Viewable:
        """Make the drawing."""
        import panel as pn

        models = bokeh()
        self._choice = pn.widgets.Select(
            label="Sensitivity of", options=self._outputs, value=self.output, width=330, margin=(5, 10)
        )
        self._choice.param.watch(self._chosen, "value")
        self._notice = Notice()
        self._elements = models.ColumnDataSource(
            {key: [] for key in ("xs", "ys", "effect", "edge", "name", "kind", "strength", "info")}
        )
        self._names = models.ColumnDataSource({"x": [], "y": [], "text": []})
        self._leaders = models.ColumnDataSource({"xs": [], "ys": []})
        self._bars = models.ColumnDataSource({"s": [], "width": [], "effect": [], "name": [], "info": []})
        self._colours = models.LinearColorMapper(palette=signed_palette(), low=-1.0, high=1.0, nan_color=PALE)
        fill = {"field": "effect", "transform": self._colours}
        s_range = models.Range1d(0.0, 1.0)

        self._drawing = chart(250, x_range=s_range, y_range=(-3.1, 1.05))
        self._drawing.yaxis.visible = self._drawing.xaxis.visible = False
        self._drawing.grid.visible = False
        self._drawing.add_layout(models.Span(location=0.0, dimension="width", line_color="black", line_width=1.2))
        self._drawing.multi_line("xs", "ys", source=self._leaders, line_color="#a0a0a0", line_width=0.8)
        patches = self._drawing.patches(
            "xs", "ys", source=self._elements, fill_color=fill, line_color="edge", line_width=1.3
        )
        labels = {"text_align": "right", "text_baseline": "middle", "text_font_size": "13px", "text_color": INK}
        self._drawing.add_layout(
            models.LabelSet(x="x", y="y", text="text", source=self._names, angle=math.pi / 2, **labels)
        )
        self._dark = Hatching(self._drawing, bottom=-0.95)
        tips = "<div style='font-size:13px;max-width:520px'>@info{safe}</div>"
        self._drawing.add_tools(models.HoverTool(renderers=[patches], tooltips=tips))

        self._chart = chart(190, x_label="s [m]", x_range=s_range, y_range=models.Range1d(-1.0, 1.0))
        self._chart.xgrid.visible = False
        bars = self._chart.vbar(
            "s", "width", "effect", source=self._bars, fill_color=fill, line_color="#1a1a1a", line_width=1.2
        )
        self._chart.add_layout(models.Span(location=0.0, dimension="width", line_color="black", line_width=1.0))
        self._chart.add_tools(models.HoverTool(renderers=[bars], tooltips=tips))
        self._scale = models.ColorBar(
            color_mapper=self._colours, width=12, major_label_text_font_size=TEXT_SIZE, padding=2
        )
        self._chart.add_layout(self._scale, "right")
        self._factor = models.CustomJSTickFormatter(
            args={"factor": 1.0}, code="return (tick * factor).toPrecision(3) * 1 + ''"
        )
        self._chart.yaxis.formatter = self._scale.formatter = self._factor
        self._veils = [Veil(self._drawing), Veil(self._chart)]
        self._unit = SteadyUnit("")
        panes = [pn.pane.Bokeh(one, sizing_mode="stretch_width") for one in (self._drawing, self._chart)]
        head = pn.FlexBox(self._choice, self._notice.view(), sizing_mode="stretch_width")
        return pn.Column(head, *panes, sizing_mode="stretch_width")

    def prepare(self, frame: Frame) -> None:
        """Survey the line, have the derivatives worked out, and lay out what they colour."""
        line.survey(self.source, frame)
        self._coloured(frame, self._derivatives(frame))

    def _derivatives(self, frame: Frame) -> Any:
        return line.derivatives(self.source, frame, [self.output], line.scalars(self.source, read_only=False))

    def _chosen(self, event: Any) -> None:
        self.output = event.new
        self.refresh()

    def update(self, frame: Frame) -> None:
        """Draw the line as it is at a frame."""
        surveyed = line.survey(self.source, frame)
        found = self._derivatives(frame)
        doubt = doubt_of(frame, surveyed)
        notes = []
        coloured = self._coloured(frame, found)
        if coloured is not None:
            notes += self._draw(surveyed.value, coloured, found is not None and found.cycle != frame.cycle)
        elif doubt is None:
            doubt = Alarm("", Severity.INVALID, "the model does not tell of its line now", None)
        notes += self._remarks(frame, found) if doubt is None else []
        self._notice.show(doubt, notes)
        for veil in self._veils:
            veil.show(in_short(doubt))

    def _remarks(self, frame: Frame, found: Any) -> list[str]:
        if found is None:
            why = line.why_not(self.source)
            return [f"the sensitivity is {why or 'being worked out'}"]
        if found.error or found.value.refused:
            return [f"no sensitivity of {self.output}: {found.error or found.value.refused[self.output]}"]
        if not line.has_value(frame, self.output):
            return [f"{self.output} has no value now: nothing acts on it"]
        return list(found.value.cost)

    def _coloured(self, frame: Frame, found: Any) -> Coloured | None:
        """Return the elements with their colours, once for all pages; None where there is no line."""
        output = self.output

        def laid_out() -> Coloured | None:
            survey = line.survey(self.source, frame).value
            return None if survey is None else coloured(self.source, frame, survey, output, found)

        return frame.once(("coloured", output), laid_out, found)

    def _draw(self, survey: Survey, shown: Coloured, follows: bool) -> list[str]:
        put(self._elements, shown.elements)
        put(self._bars, shown.bars)
        self._show_scale(shown.strongest, follows)
        self._show_names(shown.drawn, shown.places, survey)
        return self._show_stop(survey)

    def _show_scale(self, strongest: float, follows: bool) -> None:
        unit = self.source.variables[self.output].unit
        if self._unit.unit != unit:
            self._unit = SteadyUnit(unit)
        self._unit.fit(strongest)
        if strongest > 0.0 and not 0.5 * self._colours.high <= strongest <= self._colours.high:
            self._colours.update(low=-1.15 * strongest, high=1.15 * strongest)
            self._chart.y_range.update(start=-1.15 * strongest, end=1.15 * strongest)
        if self._factor.args["factor"] != self._unit.factor:
            self._factor.args = {"factor": self._unit.factor}
        title = f"change of {self.output} [{self._unit.label}] for a typical change of each knob"
        title += " (follows the settings)" if follows else ""
        if self._chart.title.text != title:
            self._chart.title.text = title

    def _show_names(self, drawn: Sequence[LineElement], places: Sequence[float], survey: Survey) -> None:
        key = tuple((e.name, e.s) for e in drawn)
        if key == self._placed:
            return
        self._placed = key
        first = shapes.beginning(survey.elements, survey.end)
        self._drawing.x_range.update(start=first - 0.01 * survey.end, end=1.01 * survey.end)
        self._drawing.x_range.update(reset_start=first - 0.01 * survey.end, reset_end=1.01 * survey.end)
        order = sorted(range(len(drawn)), key=places.__getitem__)
        if len(order) > _MOST_NAMES:
            order = [i for i in order if drawn[i].knobs][:_MOST_NAMES]
        wanted = [places[i] for i in order]
        spots = spread_out(wanted, 0.0135 * survey.end) if order else []
        put(self._names, {"x": spots, "y": [-1.2] * len(spots), "text": [drawn[i].name for i in order]})
        pairs = list(zip(wanted, spots, strict=True))
        put(self._leaders, {"xs": [[a, a, b] for a, b in pairs], "ys": [[0.0, -0.92, -1.15]] * len(pairs)})

    def _show_stop(self, survey: Survey) -> list[str]:
        stop = survey.stop
        self._dark.show(stop is not None, None if stop is None else stop.s)
        if stop is None:
            return []
        return [f"{stop.variable} ends the beam at s = {stop.s:.2f} m"]


@dataclass(frozen=True)
class Coloured:
    """The elements of a line with what their knobs do to an output.

    Attributes:
        drawn: the elements that are drawn.
        places: their middles [m].
        elements, bars: columns of the drawing and of the chart below it.
        strongest: the largest effect [unit of the output].
    """

    drawn: list[LineElement]
    places: list[float]
    elements: dict[str, list[Any]]
    bars: dict[str, list[Any]]
    strongest: float


def coloured(source: Source, frame: Frame, survey: Survey, output: str, found: Result | None) -> Coloured:
    """Return the elements of a line, coloured by what a typical change of their strongest knob does to an output.

    Args:
        source: what is shown.
        frame: the newest.
        survey: of the line.
        output: name of a number.
        found: the ``Derivatives`` of the output by all knobs, as far as they are known.
    """
    knobs = line.scalars(source, read_only=False)
    derivatives: dict[str, float] = {}
    if found is not None and found.value is not None and line.has_value(frame, output):
        derivatives = dict(zip(knobs, found.value.values[0], strict=True))
    scales = dict(zip(knobs, line.scales(source, knobs), strict=True))
    effects = {name: value * scales[name] for name, value in derivatives.items() if math.isfinite(value)}
    strongest = max((abs(value) for value in effects.values()), default=0.0)
    end = survey.end
    shapes_of = [(e, shape) for e in survey.elements if (shape := shapes.outline(e, end)) is not None]
    drawn = [e for e, _ in shapes_of]
    fills, infos = [], []
    for element in drawn:
        acting = [effects[knob] for knob in element.knobs if knob in effects]
        fills.append(max(acting, key=abs, default=math.nan))
        infos.append(describe(source, frame, element, output, derivatives, effects))
    places = [0.5 * (float(np.nanmin(shape[0])) + float(np.nanmax(shape[0]))) for _, shape in shapes_of]
    elements: dict[str, list[Any]] = {
        "xs": [shape[0] for _, shape in shapes_of],
        "ys": [shape[1] for _, shape in shapes_of],
        "effect": fills,
        "edge": ["#1a1a1a" if e.knobs else GREY for e in drawn],
        "name": [e.name for e in drawn],
        "kind": [e.kind for e in drawn],
        "strength": [math.nan if e.strength is None else e.strength for e in drawn],
        "info": infos,
    }
    acting_at = [i for i, value in enumerate(fills) if abs(value) > _ROUND_OFF * strongest]
    bars: dict[str, list[Any]] = {
        "s": spread_out([places[i] for i in acting_at], 0.012 * end) if acting_at else [],
        "width": [0.01 * end] * len(acting_at),
        "effect": [fills[i] for i in acting_at],
        "name": [drawn[i].name for i in acting_at],
        "info": [infos[i] for i in acting_at],
    }
    return Coloured(drawn, places, elements, bars, strongest)


def first_size(outputs: Sequence[str]) -> str:
    """Return the output that is asked about first: a beam size if there is one."""
    sizes = [name for name in outputs if name.endswith(("XRMS", "sigma_x"))]
    return (sizes or list(outputs) or [""])[0]


def describe(
    source: Source,
    frame: Frame,
    element: LineElement,
    output: str,
    derivatives: dict[str, float],
    effects: dict[str, float],
) -> str:
    """Return what is said of an element: its strength, its knobs, and what they would do to an output, as HTML."""
    kind = shapes.KIND_NAMES.get(element.kind, element.kind).partition(" (")[0]
    alias = f" ({element.native})" if element.native and element.native != element.name else ""
    lines = [f"<b>{escape(element.name)}</b>{escape(alias)}, {escape(kind)}"]
    place = f"s = {element.s:.3f} m" + (f", {element.length:.3f} m long" if element.length else "")
    if element.strength is not None:
        place += f", {element.attribute} = {amount(element.strength, element.unit)}"
    lines.append(escape(place))
    unit = source.variables[output].unit if output else ""
    for knob in element.knobs:
        value, of_knob = frame.value(knob), source.variables[knob].unit
        shown = amount(value, of_knob) if isinstance(value, float) else str(value)
        state = "" if frame.is_good(knob) else " <b>INVALID</b>"
        text = f"{escape(knob)} = {escape(shown)}{state}"
        if knob in derivatives:
            slope = f"{derivatives[knob]:+.4g} {readable(per(readable(unit), of_knob))}"
            typical = f"{amount(effects.get(knob, math.nan), unit, 3)} for a typical change"
            text += f"<br>&nbsp;&nbsp;changes {escape(output)} by {escape(slope)}, {escape(typical)}"
        lines.append(text)
    return "<br>".join(lines)
