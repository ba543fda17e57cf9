"""Screen: what a screen shows, and in a twin what it measures and the difference."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import numpy as np

from lume_diff.control.readings import Severity
from lume_diff.errors import ValidationError, unknown_variable
from lume_diff.models import LUMEModel
from lume_diff.plotting.units import prefixed
from lume_diff.variables import TorchNDVariable
from lume_diff.view.alarms import Alarm, measured_alarm_of, worst_of
from lume_diff.view.doubt import in_short
from lume_diff.view.frame import Frame
from lume_diff.view.panels.figures import INK, TEXT_SIZE, Veil, plot, side_by_side
from lume_diff.view.panels.panel import Panel
from lume_diff.view.pictures import Picture, difference, picture
from lume_diff.view.source import Source

if TYPE_CHECKING:
    from panel.viewable import Viewable

_HEIGHT = 330  # [px]
_SHARE = 0.18  # of the picture that a profile may take
_NO_IMAGE: dict[str, Any] = {"image": [], "x": [], "y": [], "w": [], "h": []}
_NO_LINES: dict[str, Any] = {"xs": [[], []], "ys": [[], []]}
_METRES = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "µm": 1e-6, "μm": 1e-6}


@final
class Screen(Panel):
    """Show an image, with its profiles, centroid and rms sizes.

    Args:
        source: what to show, or a model.
        name: of the image; None for a choice among all, beginning with one that has a beam on it.

    Raises:
        UnknownVariableError, ValidationError: if there is no such image.

    Example:
        >>> Screen(machine, "SCR1.image")  # doctest: +SKIP
    """

    title = "Screens"
    place = 14

    def __init__(self, source: Source | LUMEModel, name: str | None = None) -> None:
        super().__init__(source)
        self._images = _images(self.source)
        self._is_twin = any(one in self.source.latest().measured for one in self._images)
        self.wide = self._is_twin  # three pictures beside each other
        if name is not None and name not in self._images:
            if name in self.source.variables:
                raise ValidationError(f"{name!r} is no image: expected an array of two dimensions")
            raise unknown_variable(name, self._images, "the images")
        self._name = name if name is not None else _with_beam(self.source, self._images)
        self._is_fixed = name is not None
        self._drawings: list[_Drawing] = []

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether there is an image."""
        return bool(_images(source))

    @property
    def names(self) -> Sequence[str]:
        """The image."""
        return [self._name]

    def build(self) -> Viewable:
        """Make the figures, beside each other."""
        import panel as pn

        kinds = ("model", "measured", "difference") if self._is_twin else ("model",)
        self._drawings = [_Drawing(kind, self._is_twin) for kind in kinds]
        first = self._drawings[0].figure
        for other in self._drawings[1:]:  # what is looked at closely in one is so in all
            other.figure.update(x_range=first.x_range, y_range=first.y_range)
        self._facts = pn.pane.HTML("", sizing_mode="stretch_width", margin=(0, 10))
        panes = [pn.pane.Bokeh(one.figure, sizing_mode="stretch_width") for one in self._drawings]
        figures = pn.Row(*panes, sizing_mode="stretch_width", styles=side_by_side(330))
        if self._is_fixed or len(self._images) == 1:
            return pn.Column(figures, self._facts, sizing_mode="stretch_width")
        choice = pn.widgets.Select(label="Screen", options=self._images, value=self._name)
        choice.param.watch(self._choose, "value")
        return pn.Column(choice, figures, self._facts, sizing_mode="stretch_width")

    def _choose(self, event: Any) -> None:
        self._name = event.new
        self.refresh()

    def prepare(self, frame: Frame) -> None:
        """Make the pictures."""
        for drawing in self._drawings:
            self._picture(frame, drawing.kind)

    def update(self, frame: Frame) -> None:
        """Show the newest image, and whether it holds."""
        alarm, measured = worst_of(frame, [self._name]), measured_alarm_of(frame, self._name)
        alarms = {"model": alarm, "measured": measured, "difference": _worse(alarm, measured)}
        pictures = {drawing.kind: self._picture(frame, drawing.kind) for drawing in self._drawings}
        for drawing in self._drawings:
            found = pictures[drawing.kind]
            drawing.veil.show(in_short(alarms[drawing.kind]))
            if drawing.shown is not found:
                drawing.show(found, self.source.variables[self._name].unit)
        text = self._text(pictures, alarms)
        if self._facts.object != text:
            self._facts.object = text

    def _picture(self, frame: Frame, kind: str) -> Picture | None:
        name = self._name

        def make() -> Picture | None:
            size = self._pixel_size(name, frame)
            model, measured = frame.readings.get(name), frame.measured.get(name)
            images = [None if one is None else one.value for one in (model, measured)]
            if kind == "difference":
                return None if images[0] is None or images[1] is None else difference(images[0], images[1], size)
            image = images[kind == "measured"]
            return None if image is None else picture(np.asarray(image), size)

        return frame.once(("picture", kind, name), make)

    def _pixel_size(self, name: str, frame: Frame) -> tuple[float, float] | None:
        """Return width and height of a pixel [m] as the image declares it, or as its ``RESOLUTION`` says."""
        declared = getattr(self.source.variables[name], "pixel_size", None)
        if declared is not None:
            return float(declared[0]), float(declared[1])
        stem = name.removesuffix("ArrayData").removesuffix("Image:").removesuffix("IMAGE")
        variable, value = self.source.variables.get(f"{stem}RESOLUTION"), frame.value(f"{stem}RESOLUTION")
        if variable is None or not isinstance(value, float) or not value > 0.0:
            return None
        side = value * _METRES.get(variable.unit, math.nan)
        return (side, side) if math.isfinite(side) else None

    def _text(self, pictures: dict[str, Picture | None], alarms: dict[str, Alarm | None]) -> str:
        unit = self.source.variables[self._name].unit
        lines = []
        for kind, found in pictures.items():
            if kind == "difference":
                continue
            label, alarm = f"{kind}: " if len(pictures) > 1 else "", alarms[kind]
            if found is not None:
                lines.append(html.escape(label + _facts(found, unit)))
            elif alarm is None:
                lines.append(html.escape(f"{label}no image of {self._name}"))
            if alarm is not None and alarm.severity is not Severity.NO_ALARM:
                lines.append(f"<strong>{html.escape(f'{label}{alarm.name} {alarm.text}')}</strong>")
        return f'<div style="font-size:{TEXT_SIZE};color:{INK}">' + "<br>".join(lines) + "</div>"


class _Drawing:
    """One figure: the model's image, the measured one or their difference."""

    def __init__(self, kind: str, is_twin: bool) -> None:
        from bokeh.models import ColumnDataSource, LinearColorMapper
        from bokeh.models.annotations import ColorBar
        from bokeh.palettes import Cividis256, Viridis256

        self.kind = kind
        self.shown: Picture | None = None
        palette = _diverging() if kind == "difference" else Cividis256 if kind == "measured" else Viridis256
        self.figure = plot("x", "y", _HEIGHT, title=kind if is_twin else "", match_aspect=True, min_border_left=70)
        self.figure.grid.visible = False
        self.figure.background_fill_color = palette[128 if kind == "difference" else 0]
        self._image, self._lines = ColumnDataSource(_NO_IMAGE), ColumnDataSource(_NO_LINES)
        mapper = LinearColorMapper(palette=palette, low=0, high=255)
        self._scale = LinearColorMapper(palette=palette, low=0, high=1)
        self.figure.image("image", "x", "y", "w", "h", source=self._image, color_mapper=mapper)
        colour = "#000000" if kind == "difference" else "#ffffff"
        self.figure.multi_line("xs", "ys", source=self._lines, color=colour, line_width=1.5, alpha=0.9)
        self._bar = ColorBar(
            color_mapper=self._scale, title="share of the sum", title_text_font_size=TEXT_SIZE, width=12,
            title_text_font_style="normal", title_standoff=6, major_label_text_font_size=TEXT_SIZE,
        )  # fmt: skip
        self.figure.add_layout(self._bar, "right")
        for ranged in (self.figure.x_range, self.figure.y_range):
            ranged.range_padding = 0.0
        self.veil = Veil(self.figure)

    def show(self, found: Picture | None, unit: str) -> None:
        """Show a picture, or nothing where there is none.

        Args:
            found: the picture.
            unit: of the image.
        """
        self.shown = found
        if found is None:
            self._image.data, self._lines.data = dict(_NO_IMAGE), dict(_NO_LINES)
            return
        left, bottom, width, height = found.extent
        self._image.data = {"image": [found.pixels], "x": [left], "y": [bottom], "w": [width], "h": [height]}
        factor, shown = prefixed(found.high, "" if self.kind == "difference" else unit)
        low, high = factor * found.low, factor * found.high if found.high > found.low else found.low + 1.0
        if (low, high) != (self._scale.low, self._scale.high):
            self._scale.update(low=low, high=high)
        if self.kind != "difference":
            self._bar.title = f"{shown or 'value'} per pixel"
            xs, ys = (left + width * _middles(found.profile_x), bottom + height * _middles(found.profile_y))
            self._lines.data = {
                "xs": [xs, left + _SHARE * width * found.profile_y],
                "ys": [bottom + _SHARE * height * found.profile_x, ys],
            }
        label = "px" if found.in_pixels else "mm"
        if self.figure.xaxis.axis_label != f"x [{label}]":
            self.figure.xaxis.axis_label, self.figure.yaxis.axis_label = f"x [{label}]", f"y [{label}]"


def _middles(profile: np.ndarray) -> np.ndarray:
    return np.asarray((np.arange(profile.size) + 0.5) / profile.size, dtype=np.float32)


def _facts(found: Picture, unit: str) -> str:
    if not found.total > 0.0:
        return "no beam on the screen"
    length, (factor, shown) = "px" if found.in_pixels else "mm", prefixed(found.total, unit)
    parts = [
        f"σx {found.sigma[0]:.4g} {length}, σy {found.sigma[1]:.4g} {length}",
        f"centre ({found.mean[0]:.3f}, {found.mean[1]:.3f}) {length}",
        f"sum {factor * found.total:.4g} {shown}".rstrip(),
    ]
    return "; ".join(parts)


def _worse(*alarms: Alarm | None) -> Alarm | None:
    return max((one for one in alarms if one is not None), key=lambda one: one.severity, default=None)


def _diverging() -> list[str]:
    from bokeh.palettes import interp_palette

    return list(interp_palette(("#053061", "#4393c3", "#f7f7f7", "#d6604d", "#67001f"), 256))


def _images(source: Source) -> list[str]:
    found = [(name, source.variables[name]) for name in source.outputs]
    return [name for name, variable in found if isinstance(variable, TorchNDVariable) and len(variable.shape) == 2]


def _with_beam(source: Source, names: Sequence[str]) -> str:
    """Return the first image that has something on it, or the first of all."""
    if not names:
        raise ValidationError("there is no image to show: expected an output that is an array of two dimensions")
    frame = source.latest()
    for name in names:
        value = frame.value(name)
        if isinstance(value, np.ndarray) and frame.is_good(name) and float(np.nansum(value)) > 0.0:
            return name
    return names[0]
