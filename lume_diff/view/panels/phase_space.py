"""PhaseSpace: densities of the beam at any element, with the usual statistics."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lume_diff.control.readings import Severity
from lume_diff.errors import unknown_variable
from lume_diff.models import LUMEModel
from lume_diff.models.survey import BOX, LineElement, Survey
from lume_diff.plotting.units import prefixed
from lume_diff.view import line
from lume_diff.view.alarms import Alarm
from lume_diff.view.background import Result
from lume_diff.view.densities import BINS, PLANES, BeamPicture, Density, picture_of
from lume_diff.view.doubt import doubt_of, in_short
from lume_diff.view.frame import Frame
from lume_diff.view.panels.figures import Veil, side_by_side
from lume_diff.view.panels.notice import Notice
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import Hatching, amount, bokeh, chart
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from panel.viewable import Viewable

_UNITS = {"x": "m", "y": "m", "px": "eV/c", "py": "eV/c", "t": "s", "energy": "eV"}
_LABELS = {"t": "t − ⟨t⟩", "energy": "E − ⟨E⟩"}
#: Columns of the table of statistics.
_TABLE = (
    ("charge", "n_alive"),
    ("mean_energy", "sigma_energy", "sigma_t"),
    ("mean_x", "sigma_x", "norm_emit_x"),
    ("twiss_beta_x", "twiss_alpha_x"),
    ("mean_y", "sigma_y", "norm_emit_y"),
    ("twiss_beta_y", "twiss_alpha_y"),
)


@final
class PhaseSpace(Panel):
    """Show the beam behind an element: x-px, y-py, t-E and x-y, and its statistics.

    Particles are asked of the model only for the element that somebody looks at. A few stray ones do not stretch the
    axes; how much charge lies beyond them is said. Of moments the density of a Gaussian beam is shown.

    Args:
        source: what to show, or a model.
        element: that is looked at first; None for the first screen.

    Raises:
        UnknownVariableError: for an element that is not in the line.

    Example:
        >>> PhaseSpace(machine, "OTRS:DIAG0:420")  # doctest: +SKIP
    """

    title = "Phase space"
    place = 40
    wide = True

    def __init__(self, source: Source | LUMEModel, element: str | None = None) -> None:
        super().__init__(source)
        survey = line.survey(self.source, self.source.latest()).value
        elements: Sequence[LineElement] = () if survey is None else survey.elements
        self._names = [e.name for e in elements if e.kind != "Drift"]
        found = None if survey is None or element is None else survey.find(element)
        if element is not None and found is None:
            raise unknown_variable(element, self._names, "the line")
        screens = [e.name for e in elements if e.kind == "Screen"]
        self.element = found.name if found is not None else (screens or self._names[-1:] or [""])[0]
        if self.element and self.element not in self._names:
            self._names.append(self.element)

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether the model tells of a line."""
        return line.survey(source, source.latest()).value is not None

    def build(self) -> Viewable:
        """Make the pictures."""
        import panel as pn

        self._choice = pn.widgets.Select(
            label="Beam behind", options=self._names, value=self.element, width=330, margin=(5, 10)
        )
        self._choice.param.watch(self._chosen, "value")
        self._notice = Notice()
        self._pictures = {plane: _Picture(*plane) for plane in PLANES}
        self._table = pn.pane.HTML("", sizing_mode="stretch_width", margin=(0, 10))
        figures = [
            pn.pane.Bokeh(one.figure, sizing_mode="stretch_width", margin=(0, 4)) for one in self._pictures.values()
        ]
        return pn.Column(
            pn.FlexBox(self._choice, self._notice.view(), sizing_mode="stretch_width"),
            pn.Row(*figures, sizing_mode="stretch_width", styles=side_by_side(270)),
            self._table,
            sizing_mode="stretch_width",
        )

    def _picture(self, frame: Frame) -> Result:
        found = line.beam(self.source, frame, self.element)
        if found.value is None:
            return found
        return line.tried(frame, ("picture", self.element), lambda: picture_of(found.value))

    def prepare(self, frame: Frame) -> None:
        """Have the particles tracked and counted."""
        self._picture(frame)

    def _chosen(self, event: Any) -> None:
        self.element = event.new
        self.refresh()

    def update(self, frame: Frame) -> None:
        """Show the beam as it is at a frame."""
        found, surveyed = self._picture(frame), line.survey(self.source, frame)
        doubt, notes = doubt_of(frame, found, surveyed), []
        picture: BeamPicture | None = found.value
        if picture is None:
            doubt = doubt or Alarm(self.element, Severity.INVALID, "the model does not tell of the beam there", None)
        elif picture.is_lost:
            doubt = doubt or Alarm(self.element, Severity.INVALID, "no beam: all of it is lost before", None)
        else:
            notes = self._show(picture, frame)
        dark = surveyed.value is not None and self._stopped(surveyed.value)
        if dark:
            notes.insert(0, f"{dark} ends the beam before {self.element}: shown as it would go on")
        self._notice.show(doubt, notes)
        for shown in self._pictures.values():
            shown.veil.show(in_short(doubt))
            shown.dark.show(bool(dark))

    def _stopped(self, survey: Survey) -> str:
        """Return what ends the beam before the element, nothing if it arrives."""
        element, stop = survey.find(self.element), survey.stop
        is_behind = element is not None and stop is not None and element.kind != BOX and element.end > stop.s
        return stop.variable if stop is not None and is_behind else ""

    def _show(self, picture: BeamPicture, frame: Frame) -> list[str]:
        for plane, density in picture.densities.items():
            self._pictures[plane].show(density)
        html = frame.once(("table", self.element), lambda: table_of(picture))
        if html != self._table.object:
            self._table.object = html
        outside = max(density.outside for density in picture.densities.values())
        notes = [] if picture.has_particles else ["moments only: densities of a Gaussian beam"]
        charge = picture.statistics["charge"]
        return notes + (
            [f"up to {100.0 * outside / charge:.2g} % of the charge lies outside the pictures"]
            if outside > 0.005 * charge
            else []
        )


class _Picture:
    """One density as an image."""

    def __init__(self, horizontal: str, vertical: str) -> None:
        models = bokeh()
        self._axes = horizontal, vertical
        self.figure = chart(
            330,
            x_range=models.Range1d(0, 1),
            y_range=models.Range1d(0, 1),
            min_border_left=50,
            tools="box_zoom,reset,save",
        )
        self.figure.grid.visible = False
        self.figure.outline_line_color = "#1a1a1a"
        self.figure.xaxis.ticker.desired_num_ticks = 4
        self.figure.xaxis.minor_tick_line_color = None
        self.data = models.ColumnDataSource(
            {"image": [np.zeros((BINS, BINS), np.float32)], "x": [0], "y": [0], "dw": [1], "dh": [1]}
        )
        self._colours = models.LinearColorMapper(palette="Viridis256", low=0.0, high=1.0, low_color="white")
        image = self.figure.image("image", "x", "y", "dw", "dh", source=self.data, color_mapper=self._colours)
        self._hover = models.HoverTool(renderers=[image])
        self.figure.add_tools(self._hover)
        self.dark, self.veil = Hatching(self.figure), Veil(self.figure)

    def show(self, density: Density) -> None:
        """Show a density in units with the prefix that fits."""
        x, right = self._placed(0, density.x)
        y, top = self._placed(1, density.y)
        if density.charge is self.data.data["image"][0]:
            return
        # The lowest colour is for what is not empty: empty bins are white.
        highest = float(density.charge.max()) or 1.0
        self._colours.update(low=1e-3 * highest, high=highest)
        self.data.data = {"image": [density.charge], "x": [x], "y": [y], "dw": [right - x], "dh": [top - y]}

    def _placed(self, axis: int, edges: tuple[float, float]) -> tuple[float, float]:
        name = self._axes[axis]
        factor, unit = prefixed(max(0.5 * (edges[1] - edges[0]), 1e-3 * max(map(abs, edges))), _UNITS[name])
        low, high = (edge * factor for edge in edges)
        its_range = (self.figure.x_range, self.figure.y_range)[axis]
        its_axis = (self.figure.xaxis, self.figure.yaxis)[axis][0]
        label = f"{_LABELS.get(name, name)} [{unit}]"
        if its_axis.axis_label != label:
            its_axis.axis_label = label
            self._hover.tooltips = [
                (self.figure.xaxis.axis_label or "", "$x{0.000}"),
                (self.figure.yaxis.axis_label or "", "$y{0.000}"),
                ("charge in the bin [C]", "@image{0.00e}"),
            ]
        if (its_range.start, its_range.end) != (low, high):
            its_range.update(start=low, end=high, reset_start=low, reset_end=high)
        return low, high


def table_of(picture: BeamPicture) -> str:
    """Return the statistics as an HTML table, under openPMD's names."""
    cells = []
    for column in _TABLE:
        rows = []
        for key in column:
            text = _shown(picture, key)
            rows.append(
                f'<tr><th scope="row" style="text-align:left;font-weight:normal;color:#444;padding:1px 10px 1px 0">'
                f'{escape(key)}</th><td style="text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap">'
                f"<b>{escape(text)}</b></td></tr>"
            )
        cells.append(f'<table style="border-collapse:collapse;font-size:14px">{"".join(rows)}</table>')
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px 32px;align-items:flex-start">{"".join(cells)}</div>'


def _shown(picture: BeamPicture, key: str) -> str:
    value, unit = picture.statistics.get(key), picture.units.get(key, "")
    if value is None:
        return "–"
    if key == "n_alive":
        return f"{value:.0f}"
    if key.startswith("norm_emit"):
        return f"{1e6 * value:.4g} µm"
    size = picture.statistics.get(key.replace("mean_", "sigma_"), 0.0) if key in ("mean_x", "mean_y") else 0.0
    if abs(value) < 1e-6 * size:
        value = 0.0  # round-off of a beam on the axis
    return amount(value, unit)
