"""Optics: beam sizes, lattice functions and energy along s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lume_diff.control.readings import Severity
from lume_diff.models import LUMEModel
from lume_diff.models.survey import BeamAlong, Survey
from lume_diff.view import line
from lume_diff.view.alarms import Alarm
from lume_diff.view.doubt import doubt_of, in_short
from lume_diff.view.frame import Frame
from lume_diff.view.panels import shapes
from lume_diff.view.panels.figures import TEXT_SIZE, Veil
from lume_diff.view.panels.notice import Notice
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import (
    GREY,
    OTHER_COLOUR,
    X_COLOUR,
    Y_COLOUR,
    Hatching,
    SteadyUnit,
    bokeh,
    chart,
    fit,
    put,
)
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from panel.viewable import Viewable

#: What can be chosen for the middle chart: name on the button -> (openPMD keys, axis label).
_FUNCTIONS = {
    "beta": (("beta_x", "beta_y"), "Twiss β"),
    "alpha": (("alpha_x", "alpha_y"), "Twiss α"),
    "dispersion": (("eta_x", "eta_y"), "dispersion η"),
    "emittance": (("norm_emit_x", "norm_emit_y"), "norm. emittance"),
    "orbit": (("mean_x", "mean_y"), "centroid"),
    "duration": (("sigma_t",), "rms duration"),
}
#: Of these, the ones that are never negative: their axes begin at zero.
_SIZES = ("beta", "emittance", "duration")
_IN_UNIT = "return (value * factor).toPrecision(5) * 1 + ' ' + unit"
_STYLES = {"x": (X_COLOUR, "solid"), "y": (Y_COLOUR, "solid"), "": (OTHER_COLOUR, "solid")}


@dataclass
class _Chart:
    """One chart of the beam along s.

    Attributes:
        figure: of Bokeh.
        label: of its axis, without the unit.
        keys: what it shows.
        unit: of the axis.
        formats: that write numbers at the axis and where the mouse is.
        dark: the part behind what ends the beam.
    """

    figure: Any
    label: str
    keys: tuple[str, ...]
    unit: SteadyUnit
    formats: tuple[Any, Any]
    dark: Any


@final
class Optics(Panel):
    """Show rms beam sizes, a lattice function and the energy along the line.

    What lies behind something that ends the beam is shown hatched, as it would be without. Between the elements of a
    line the curves are those of the maps, not straight lines.

    Args:
        source: what to show, or a model.
        function: ``"beta"``, ``"alpha"``, ``"dispersion"``, ``"emittance"``, ``"orbit"`` or ``"duration"``, which the
            page can change.

    Example:
        >>> Optics(machine, "emittance")  # doctest: +SKIP
    """

    title = "Optics"
    place = 20
    wide = True

    def __init__(self, source: Source | LUMEModel, function: str = "beta") -> None:
        super().__init__(source)
        self.function = function

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether the model knows the beam along its line."""
        return line.along(source, source.latest()).value is not None

    def build(self) -> Viewable:
        """Make the charts."""
        import panel as pn

        models = bokeh()
        self._notice = Notice()
        self._choice = pn.widgets.RadioButtonGroup(options=list(_FUNCTIONS), value=self.function, margin=(5, 10))
        self._choice.param.watch(self._chosen, "value")
        columns = ("s", "x", "y", "function_x", "function_y", "energy")
        self._along = models.ColumnDataSource({name: [] for name in columns})
        self._strip = models.ColumnDataSource({"xs": [], "ys": [], "name": [], "kind": []})
        self._range = models.Range1d(0.0, 1.0)
        self._lattice = self._new_lattice()
        self._sizes = self._new_chart("rms beam size", ("sigma_x", "sigma_y"), "m", ("x", "y"), 210)
        keys, label = _FUNCTIONS[self.function]
        self._functions = self._new_chart(label, keys, "m", ("function_x", "function_y"), 190)
        self._energy = self._new_chart("energy", ("mean_energy",), "eV", ("energy",), 150)
        self._energy.figure.yaxis.ticker.desired_num_ticks = 3
        self._energy.figure.xaxis.axis_label = "s [m]"
        self._energy.figure.xaxis.visible = True
        charts = self._charts = (self._sizes, self._functions, self._energy)
        across = models.Span(dimension="height", line_color=GREY, line_width=1)
        for one in charts:
            one.figure.add_tools(models.CrosshairTool(overlay=[across, models.Span(dimension="width", line_alpha=0.0)]))
        self._veils = [Veil(one.figure) for one in charts]
        self._key: tuple[Any, ...] = ()
        figures = [self._lattice, *(one.figure for one in charts)]
        panes = [pn.pane.Bokeh(one, sizing_mode="stretch_width") for one in figures]
        return pn.Column(
            pn.FlexBox(self._choice, self._notice.view(), sizing_mode="stretch_width"),
            *panes,
            sizing_mode="stretch_width",
        )

    def _new_lattice(self) -> Any:
        models = bokeh()
        figure = chart(70, x_range=self._range, y_range=(-1.05, 1.05), tools="")
        figure.axis.visible = False
        figure.grid.visible = False
        figure.add_layout(models.Span(location=0.0, dimension="width", line_color="black", line_width=1.0))
        patches = figure.patches(
            "xs", "ys", source=self._strip, fill_color="#c9c9c9", line_color="#1a1a1a", line_width=1.0
        )
        figure.add_tools(models.HoverTool(renderers=[patches], tooltips=[("", "@name, @kind")]))
        return figure

    def _new_chart(self, label: str, keys: tuple[str, ...], unit: str, columns: tuple[str, ...], height: int) -> _Chart:
        models = bokeh()
        figure = chart(
            height, x_range=self._range, y_range=models.Range1d(0.0, 1.0), min_border_top=7, min_border_bottom=7
        )
        figure.xaxis.visible = False
        factor = models.CustomJSTickFormatter(
            args={"factor": 1.0}, code="return (tick * factor).toPrecision(4) * 1 + ''"
        )
        figure.yaxis.formatter = factor
        lines = []
        for column in columns:
            plane = column[-1] if column[-1] in "xy" and column != "energy" else ""
            colour, dash = _STYLES[plane]
            legend = {"legend_label": plane} if plane else {}
            drawn = figure.line(
                "s", column, source=self._along, line_color=colour, line_width=3, line_dash=dash, **legend
            )
            if plane == "y":
                drawn.glyph.line_dash = [9, 3]  # not by colour alone
            lines.append(drawn)
        if len(columns) > 1:
            figure.legend.location, figure.legend.orientation = "top_right", "horizontal"
            figure.legend.label_text_font_size = TEXT_SIZE
            figure.legend.background_fill_alpha, figure.legend.padding = 0.7, 3
        told = models.CustomJSHover(args={"factor": 1.0, "unit": ""}, code=_IN_UNIT)
        names = [column[-1] if len(columns) > 1 else label for column in columns]
        tips = [(name, f"@{column}{{custom}}") for name, column in zip(names, columns, strict=True)]
        hover = models.HoverTool(
            mode="vline",
            renderers=lines[:1],
            tooltips=[("s", "$x{0.000} m"), *tips],
            formatters={f"@{column}": told for column in columns},
            line_policy="interp",
        )
        figure.add_tools(hover)
        dark = Hatching(figure)
        return _Chart(figure, label, keys, SteadyUnit(unit), (factor, told), dark)

    def prepare(self, frame: Frame) -> None:
        """Have the beam along the line worked out."""
        if line.along(self.source, frame).value is not None:
            self._outlines(frame)

    def _outlines(self, frame: Frame) -> dict[str, list[Any]]:
        """Return the elements of the line as they are drawn above the charts."""

        def drawn() -> dict[str, list[Any]]:
            survey: Survey = line.survey(self.source, frame).value
            end = survey.end
            shown = [(e, shape) for e in survey.elements if (shape := shapes.outline(e, end)) is not None]
            return {
                "xs": [shape[0] for _, shape in shown],
                "ys": [shape[1] for _, shape in shown],
                "name": [e.name for e, _ in shown],
                "kind": [shapes.KIND_NAMES.get(e.kind, e.kind).partition(" (")[0] for e, _ in shown],
            }

        return frame.once("outlines", drawn)

    def _chosen(self, event: Any) -> None:
        self.function = event.new
        self.refresh()

    def update(self, frame: Frame) -> None:
        """Draw the beam along the line as it is at a frame."""
        surveyed, found = line.survey(self.source, frame), line.along(self.source, frame)
        doubt = doubt_of(frame, surveyed, found)
        notes: list[str] = []
        if found.value is not None:
            self._draw(found.value)
            put(self._strip, self._outlines(frame))
            notes = self._draw_line(surveyed.value)
        elif doubt is None:
            doubt = Alarm("", Severity.INVALID, "the model does not tell of the beam along its line now", None)
        self._notice.show(doubt, notes)
        for veil in self._veils:
            veil.show(in_short(doubt))

    def _draw(self, along: BeamAlong) -> None:
        keys, label = _FUNCTIONS[self.function]
        self._functions.keys, self._functions.label = keys, label
        nothing = np.full(along.s.size, np.nan)

        def column(key: str) -> np.ndarray:
            return along.values.get(key, nothing)

        put(
            self._along,
            {
                "s": along.s,
                "x": column("sigma_x"),
                "y": column("sigma_y"),
                "function_x": column(keys[0]),
                "function_y": column(keys[1]) if len(keys) > 1 else nothing,
                "energy": column("mean_energy"),
            },
        )
        for one in self._charts:
            unit = along.units.get(one.keys[0], "")
            if (one.unit.unit, one.unit.of) != (unit, one.keys[0]):
                one.unit = SteadyUnit(unit, one.keys[0])
            values = np.concatenate([column(key) for key in one.keys])
            one.unit.fit(float(np.nanmax(np.abs(values), initial=0.0)))
            text = f"{one.label} [{one.unit.label}]"
            if one.figure.yaxis.axis_label != text:
                one.figure.yaxis.axis_label = text
            args = {"factor": one.unit.factor, "unit": one.unit.label}
            for written in one.formats:
                if written.args != args:
                    written.args = args
            from_zero = one is not self._functions or self.function in _SIZES
            fit(one.figure.y_range, values, from_zero)

    def _draw_line(self, survey: Survey) -> list[str]:
        first = shapes.beginning(survey.elements, survey.end)
        if self._key != (first, survey.end):
            self._key = (first, survey.end)
            start, end = first - 0.01 * survey.end, 1.01 * survey.end
            self._range.update(start=start, end=end, reset_start=start, reset_end=end)
        stop = survey.stop
        for one in self._charts:
            one.dark.show(stop is not None, None if stop is None else stop.s)
        if stop is None:
            return []
        return [f"{stop.variable} ends the beam at s = {stop.s:.2f} m; hatched: the beam as it would go on"]
