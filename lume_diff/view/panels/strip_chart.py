"""StripChart: scalars against time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

from lume_diff.errors import unknown_variable
from lume_diff.models import LUMEModel
from lume_diff.variables import BoolVariable, IntVariable, TorchScalarVariable
from lume_diff.view.alarms import worst_of
from lume_diff.view.doubt import in_short
from lume_diff.view.frame import Frame
from lume_diff.view.panels.figures import DASHES, INK, LINES, TEXT_SIZE, Veil, plot
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import readable
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from panel.viewable import Viewable

_MOST = 4  # charts
_EVERY = 0.5  # [s] between points that are drawn
#: Whatever the distance of its ticks, the axis tells the time of day.
_PERIODS = ("milliseconds", "seconds", "minsec", "minutes", "hourmin", "hours")


@final
class StripChart(Panel):
    """Draw scalars against the server's local time, one chart each, a break where a value does not hold.

    Args:
        source: what to show, or a model.
        names: of scalars, four at most; None for a choice that begins with sizes and positions that have values.

    Raises:
        UnknownVariableError: for a name that is no scalar.
    """

    title = "Strip charts"
    place = 50

    def __init__(self, source: Source | LUMEModel, names: Sequence[str] | None = None) -> None:
        super().__init__(source)
        self._scalars = _scalars(self.source)
        for name in names or ():
            if name not in self._scalars:
                raise unknown_variable(name, self._scalars, "the scalars")
        self._names = list(names if names is not None else _interesting(self.source, self._scalars))[:_MOST]
        self.source.history.keep(self._names)
        self._charts: dict[str, _Chart] = {}
        self._drawn = 0.0
        self._is_open = names is None and not self._names  # nothing had a value yet

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether there are scalar outputs."""
        return any(source.variables[name].read_only for name in _scalars(source))

    @property
    def names(self) -> Sequence[str]:
        """The scalars that are drawn."""
        return self._names

    def build(self) -> Viewable:
        """Make the charts, below a choice of what they show."""
        import panel as pn

        self._place = pn.Column(sizing_mode="stretch_width")
        self._choice = pn.widgets.MultiChoice(
            label=f"Variables, at most {_MOST}", options=self._scalars, value=self._names, max_items=_MOST,
            sizing_mode="stretch_width",
        )  # fmt: skip
        self._choice.param.watch(self._choose, "value")
        self._fill()
        return pn.Column(self._choice, self._place, sizing_mode="stretch_width")

    def _choose(self, event: Any) -> None:
        self._is_open = False
        self._names = list(event.new)
        self.source.history.keep(self._names)
        self._fill()
        self._drawn = 0.0
        self.refresh()

    def _fill(self) -> None:
        import panel as pn

        units = {name: self.source.variables[name].unit for name in self._names}
        measured = self.source.latest().measured
        self._charts = {
            name: self._charts.get(name) or _Chart(name, units[name], LINES[number % len(LINES)], name in measured)
            for number, name in enumerate(self._names)
        }
        charts: list[Any] = [pn.pane.Bokeh(one.figure, sizing_mode="stretch_width") for one in self._charts.values()]
        self._place.objects = charts or [pn.pane.Str("Choose a variable above.")]

    def prepare(self, frame: Frame) -> None:
        """Note the newest values."""
        self.source.history.note(frame, time.time())

    def update(self, frame: Frame) -> None:
        """Draw what has come since, twice a second."""
        if time.monotonic() - self._drawn < _EVERY:
            return
        if self._is_open and (found := _interesting(self.source, self._scalars)):
            self._choice.value = found  # which draws them
            return
        self._drawn = time.monotonic()
        for name, chart in self._charts.items():
            chart.show(*self.source.history.points(name))
            chart.veil.show(in_short(worst_of(frame, [name])))


class _Chart:
    """One scalar."""

    def __init__(self, name: str, unit: str, colour: str, is_twin: bool) -> None:
        from bokeh.models import ColumnDataSource, DatetimeTickFormatter

        def label(text: str) -> dict[str, str]:
            return {"legend_label": text} if is_twin else {}

        self._is_twin = is_twin
        self._data = ColumnDataSource({"time": [], "value": []} | ({"measured": []} if is_twin else {}))
        self.figure = plot("", readable(unit), 140, "xpan,xwheel_zoom,reset,save", title=name, x_axis_type="datetime")
        clock = DatetimeTickFormatter(**dict.fromkeys(_PERIODS, "%H:%M:%S"))
        self.figure.xaxis.update(formatter=clock, minor_tick_line_color=None)
        self.figure.yaxis.minor_tick_line_color = None
        self.figure.yaxis.ticker.desired_num_ticks = 4
        self.figure.step("time", "value", source=self._data, mode="after", color=colour, line_width=2, **label("model"))
        if is_twin:
            self.figure.step(
                "time", "measured", source=self._data, mode="after", color=INK, line_width=2, line_dash=DASHES[3],
                **label("measured"),
            )  # fmt: skip
            legend = self.figure.legend[0]
            legend.update(label_text_font_size=TEXT_SIZE, border_line_color=None, padding=0, margin=4)
            self.figure.add_layout(legend, "right")
        self.veil = Veil(self.figure)

    def show(self, times: Any, values: Any, measured: Any) -> None:
        """Draw points, times [s since 1970]."""
        offset = time.localtime().tm_gmtoff
        data = {"time": 1e3 * (times + offset), "value": values}
        self._data.data = data | ({"measured": measured} if self._is_twin else {})


def _scalars(source: Source) -> list[str]:
    kinds = TorchScalarVariable | IntVariable | BoolVariable
    return [name for name, variable in source.variables.items() if isinstance(variable, kinds)]


def _interesting(source: Source, names: Sequence[str]) -> list[str]:
    """Return scalar outputs that have values: beam sizes first, then others that are no readbacks of set-points."""
    frame = source.latest()
    good = [name for name in names if source.variables[name].read_only and frame.is_good(name)]
    good = [name for name in good if isinstance(source.variables[name], TorchScalarVariable)]
    sizes = [name for name in good if any(word in name.lower() for word in ("sigma", "rms", "emit"))]
    return [*sizes[:2], *(name for name in good if name not in sizes and "bact" not in name.lower())][:3]
