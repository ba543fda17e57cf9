"""The strip under a plot along the line: what stands where."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lume_diff.errors import ValidationError
from lume_diff.models import CheetahModel, LUMEModel, StagedModel
from lume_diff.models.line.elements import read_segment

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The number that says how strong an element of a class is, and whether it points up or down.
STRENGTH = {
    "Quadrupole": "k1",
    "Dipole": "angle",
    "RBend": "angle",
    "Sextupole": "k2",
    "Solenoid": "k",
    "HorizontalCorrector": "angle",
    "VerticalCorrector": "angle",
    "CombinedCorrector": "horizontal_angle",
    "Cavity": "voltage",
    "TransverseDeflectingCavity": "voltage",
    "Undulator": "kx",
}
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


@dataclass(frozen=True)
class LineElement:
    """One element as it stands in the line.

    Attributes:
        name: as in the names of its knobs.
        kind: class of the element.
        s: where it begins [m].
        length: [m].
        strength: the number that its class goes by, in its own unit; None for elements without one.
        stage: the stage that it belongs to, where there are several.
    """

    name: str
    kind: str
    s: float
    length: float
    strength: float | None = None
    stage: str = ""

    @property
    def centre(self) -> float:
        """The middle of the element [m]."""
        return self.s + 0.5 * self.length


def elements_along(model: LUMEModel) -> list[LineElement]:
    """Return the elements of a model's line at its set-points, in the order of the beam.

    Args:
        model: a ``CheetahModel``, or a ``StagedModel`` of such.

    Raises:
        ValidationError: for a model without a line, or with a batch of settings.

    Gradient:
        None: it reads numbers.
    """
    return _elements(model, model, "", 0.0)


def _elements(model: LUMEModel, chain: LUMEModel, stage: str, start: float) -> list[LineElement]:
    if isinstance(model, StagedModel):
        found: list[LineElement] = []
        for name, part in model.stages.items():
            begin = found[-1].s + found[-1].length if found else start
            found += _elements(part, chain, name, begin)
        return found
    if not isinstance(model, CheetahModel):
        raise ValidationError(f"a {type(model).__name__} has no line to draw; expected a CheetahModel")

    def value(knob: str, otherwise: torch.Tensor) -> float:
        """Return a number as the chain has it, whose set-points are not those of its stages."""
        for name in (knob, f"{stage}/{knob}"):
            if name in chain.input_names:
                return _plain(chain.get(name), name)
        return _plain(otherwise, knob)

    placed = []
    for element in read_segment(model.simulator, model.dtype, model.device):
        length = value(f"{element.name}.length", element.length)
        attribute = STRENGTH.get(element.kind)
        strength = value(f"{element.name}.{attribute}", element.values[attribute]) if attribute else None
        placed.append(LineElement(element.name, element.kind, start, length, strength, stage))
        start += length
    return placed


def _plain(value: torch.Tensor, name: str) -> float:
    if value.numel() != 1:
        raise ValidationError(f"{name!r} is a batch of {tuple(value.shape)} settings; a picture shows one of them")
    return float(value.detach().reshape(()))


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
