"""Figures as all panels draw them: legible on a projector, and greyed where what they show does not hold."""

from __future__ import annotations

from typing import Any

from lume_diff.control.readings import Severity
from lume_diff.view.alarms import Alarm

TEXT_SIZE, TITLE_SIZE = "14px", "15px"
INK, GRID = "#1a1a1a", "#d9d9d9"

#: Colours of lines that stay apart for colour-blind people (Okabe and Ito, 2008); give each a dash of its own too.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("solid", "dashed", "dotdash", "dotted", "dashdot", [2, 6])


def plot(
    x_label: str, y_label: str, height: int = 300, tools: str = "pan,wheel_zoom,box_zoom,reset,save", **options: Any
) -> Any:
    """Return an empty figure.

    Args:
        x_label, y_label: of the axes, with their units.
        height: [px]; the width is that of the place it is put in.
        tools: of Bokeh.
        options: others of ``bokeh.plotting.figure``.
    """
    from bokeh.plotting import figure

    made: Any = figure(
        height=height, tools=tools, sizing_mode="stretch_width", x_axis_label=x_label, y_axis_label=y_label, **options
    )
    for axis in (*made.xaxis, *made.yaxis):
        axis.axis_label_text_font_size = axis.major_label_text_font_size = TEXT_SIZE
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = INK
    made.title.text_font_size = TITLE_SIZE
    made.grid.grid_line_color = GRID
    made.toolbar.logo = None
    made.toolbar.autohide = True
    made.background_fill_color = "#ffffff"
    return made


def side_by_side(least: int) -> dict[str, str]:
    """Return the style of a row whose figures go below each other where there is no place.

    Args:
        least: width of a figure [px].
    """
    return {"display": "grid", "grid-template-columns": f"repeat(auto-fit, minmax(min({least}px, 100%), 1fr))"}


class Veil:
    """Grey a figure while what it shows does not hold, and say why and since when.

    Args:
        made: the figure.
    """

    def __init__(self, made: Any) -> None:
        from bokeh.models.annotations import BoxAnnotation, Label

        self._box = BoxAnnotation(
            fill_color="#8c8c8c", fill_alpha=0.55, line_alpha=0.0, level="annotation", visible=False
        )
        self._label = Label(
            x=8,
            y=8,
            x_units="screen",
            y_units="screen",
            text="",
            text_font_size=TEXT_SIZE,
            text_font_style="bold",
            text_color="#ffffff",
            background_fill_color="#5b2a6e",
            background_fill_alpha=1.0,
            padding=4,  # type: ignore[arg-type]
            visible=False,
        )
        made.add_layout(self._box)
        made.add_layout(self._label)

    def show(self, alarm: Alarm | None) -> None:
        """Cover the figure if an alarm says that what it shows is INVALID, and uncover it otherwise."""
        is_down = alarm is not None and alarm.severity is Severity.INVALID
        text = f"{alarm.name} {alarm.text}" if is_down and alarm is not None else ""
        if self._label.text != text:
            self._label.text = text
        if self._box.visible != is_down:
            self._box.visible = self._label.visible = is_down
