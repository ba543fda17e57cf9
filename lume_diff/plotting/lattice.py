"""The strip under a plot along the line: what stands where."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lume_diff.errors import ValidationError
from lume_diff.models import FacilityModel, LUMEModel
from lume_diff.models.survey import BOX, LineElement, survey_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind can tell apart.
ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
)
#: Class -> (name in the legend, colour, half height of its box).
_BOXES: dict[str, tuple[str, str, float]] = {
    "Quadrupole": ("quadrupole (up: focusing in x)", VERMILION, 0.9),
    "Dipole": ("dipole", BLUE, 0.55),
    "RBend": ("dipole", BLUE, 0.55),
    "Sextupole": ("sextupole", PURPLE, 0.7),
    "Solenoid": ("solenoid", GREEN, 0.65),
    "Cavity": ("cavity", ORANGE, 0.4),
    "TransverseDeflectingCavity": ("deflecting cavity", YELLOW, 0.4),
    "Undulator": ("undulator", "#999999", 0.35),
}
#: Class -> (name in the legend, colour, marker, height).
_MARKS: dict[str, tuple[str, str, str, float]] = {
    "HorizontalCorrector": ("corrector (above: x, below: y)", SKY, "^", 0.5),
    "VerticalCorrector": ("corrector (above: x, below: y)", SKY, "v", -0.5),
    "CombinedCorrector": ("corrector (above: x, below: y)", SKY, "D", 0.5),
    "Screen": ("screen", "black", "|", 0.0),
    "BPM": ("BPM", "black", "o", 0.0),
    "Aperture": ("aperture", "#666666", "x", 0.0),
}


def elements_along(model: LUMEModel) -> list[LineElement]:
    """Return the elements of a model's line at its set-points, in the order of the beam.

    Args:
        model: a ``CheetahModel``, or a ``StagedModel`` of such.

    Raises:
        ValidationError: for a model without a line, or with a batch of settings.

    Gradient:
        None: it reads numbers.
    """
    survey = None if isinstance(model, FacilityModel) else survey_of(model)
    if survey is None or any(element.kind == BOX for element in survey.elements):
        raise ValidationError(
            f"a {type(model).__name__} has no line to draw; expected a CheetahModel, or a StagedModel of such"
        )
    for element in survey.elements:
        if math.isnan(element.length) or (element.strength is not None and math.isnan(element.strength)):
            raise ValidationError(f"{element.name!r} is a batch of settings; a picture shows one of them")
    return list(survey.elements)


def draw_lattice(axes: Axes, elements: Sequence[LineElement]) -> list[Any]:
    """Draw a strip of elements: boxes to scale, quadrupoles up or down by sign, hollow where the strength is zero.

    Args:
        axes: where to draw; s [m] is horizontal.
        elements: the line.

    Returns:
        One legend entry a class, in the order of the beam.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle

    total = max((element.s + element.length for element in elements), default=0.0) or 1.0
    thinnest = 0.004 * total
    axes.axhline(0.0, color="black", linewidth=0.8, zorder=1)
    entries: dict[str, Any] = {}
    for element in elements:
        if element.kind in _BOXES:
            label, colour, height = _BOXES[element.kind]
            is_off = not element.strength
            both_ways = element.kind not in ("Quadrupole", "Sextupole") or is_off
            low = -height if both_ways or (element.strength or 0.0) < 0.0 else 0.0
            high = height if both_ways or (element.strength or 0.0) > 0.0 else 0.0
            width = max(element.length, thinnest)
            axes.add_patch(
                Rectangle(
                    (element.centre - 0.5 * width, low),
                    width,
                    high - low,
                    facecolor="white" if is_off else colour,
                    edgecolor=colour if is_off else "black",
                    linewidth=1.0 if is_off else 0.5,
                    zorder=3,
                )
            )
            entries.setdefault(label, Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=label))
        elif element.kind in _MARKS:
            label, colour, marker, height = _MARKS[element.kind]
            size = 16.0 if marker == "|" else 5.0 if marker != "o" else 3.5
            style = {"linestyle": "", "marker": marker, "color": colour, "markeredgewidth": 1.0}
            axes.plot([element.centre], [height], markersize=size, zorder=4, **style)  # type: ignore[arg-type]
            shown = {**style, "marker": "^" if "corrector" in label else marker}
            entries.setdefault(label, Line2D([], [], markersize=min(size, 9.0), label=label, **shown))  # type: ignore[arg-type]
    if any(e.kind in _BOXES and not e.strength for e in elements):
        entries["hollow: off"] = Patch(facecolor="white", edgecolor="black", label="hollow: off")
    axes.set_ylim(-1.1, 1.1)
    axes.set_yticks([])
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    return list(entries.values())


def new_figure(width: float, height: float) -> Figure:
    """Return a figure [inch] that needs no window, leaves pyplot's state alone, and shows itself in a notebook."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    figure._repr_png_ = partial(_as_png, figure)  # type: ignore[attr-defined]
    return figure


def _as_png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def span(values: Iterable[float]) -> float:
    """Return the largest absolute finite value, or 0."""
    return max((abs(value) for value in values if abs(value) < float("inf")), default=0.0)
