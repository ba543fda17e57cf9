"""A line with the sensitivity of one output to every knob."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lume_diff.plotting.envelope import Envelope, draw_envelope
from lume_diff.plotting.lattice import LineElement, draw_lattice, new_figure, span
from lume_diff.plotting.spread import spread_out
from lume_diff.plotting.units import prefixed, pretty_unit, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = 9.0  # [pt]
_SLANT = 35.0  # [deg]
_BAR = 0.0085  # width of a bar, of the panel
_WORTH_A_NAME = 0.01  # of the strongest
_VISIBLE = 1e-4  # of the strongest: what is smaller is not drawn


@dataclass(frozen=True)
class Sensitivity:
    """How much one knob moves an output.

    Attributes:
        knob: name of the input.
        unit: of the knob.
        value: where the derivative was taken [unit].
        derivative: [output unit / unit].
        scale: size of a typical change [unit].
        s: where the knob acts [m]; None for one that acts nowhere in particular.
        kind: class of its element.
    """

    knob: str
    unit: str
    value: float
    derivative: float
    scale: float
    s: float | None = None
    kind: str = ""

    @property
    def effect(self) -> float:
        """What a typical change does, to first order [output unit]."""
        return self.derivative * self.scale


def plot_sensitivities(
    elements: Sequence[LineElement],
    sensitivities: Sequence[Sensitivity],
    output: str,
    unit: str,
    *,
    envelope: Envelope | None = None,
    at: float | None = None,
    value: float | None = None,
    labels: int = 8,
) -> Figure:
    """Draw beam sizes, the lattice, and a bar at every knob: what a typical change of it does to the output.

    Height and colour of a bar mean the same. Neighbours that would hide each other stand side by side. Of a long line
    behind the place where the output is read, which cannot act on it, only the beginning is shown.

    Args:
        elements: the line.
        sensitivities: of the knobs; those without a place are left out.
        output: its name, for the title.
        unit: of the output.
        envelope: what the panel on top shows.
        at: where the output is read [m].
        value: the output itself [unit].
        labels: how many of the strongest get their names.

    Returns:
        A matplotlib figure; ``figure.savefig(path)`` writes it.

    Gradient:
        None: it draws numbers.
    """
    placed = [item for item in sensitivities if item.s is not None and abs(item.effect) < float("inf")]
    strongest = span(item.effect for item in placed)
    placed = [item for item in placed if abs(item.effect) > _VISIBLE * strongest]
    total = max((element.s + element.length for element in elements), default=1.0)
    last = max([at or 0.0, *(item.s or 0.0 for item in placed)])
    end = 1.15 * last if at is not None and 0.0 < last <= 0.7 * total else total
    elements = [element for element in elements if element.s <= end]

    figure = new_figure(11.0, 7.6)
    upper, strip, lower = figure.subplots(3, 1, sharex=True, height_ratios=(1.5, 0.5, 3.0))
    lower.set_xlim(-0.01 * end, 1.01 * end)
    if envelope is not None:
        draw_envelope(upper, [envelope.until(end)])
    entries = draw_lattice(strip, elements)
    factor, shown = prefixed(strongest, unit)
    lower.set_ylabel(
        f"change of {output} [{pretty_unit(shown) or '1'}]\nfor a typical change of the knob", fontsize=_SIZE + 1
    )
    lower.set_xlabel("s [m]", fontsize=_SIZE + 1)
    if placed:
        lower.set_title(f"typical changes: {_typical(placed)}", fontsize=_SIZE, color="#555555", loc="right")
    if at is not None:
        _mark_reading((upper, strip, lower), at, output.rpartition(".")[0].rpartition("(")[2], end)
    if end < total:
        strip.annotate(
            f"on to {total:.1f} m \u2192", (1.0, 1.0), xycoords="axes fraction", ha="right", va="bottom", fontsize=_SIZE
        )
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(len(entries), 5) or 1, fontsize=_SIZE, frameon=False
    )
    figure.suptitle(_title(output, unit, value), fontsize=_SIZE + 4)
    for axes in (upper, lower):
        axes.tick_params(labelsize=_SIZE)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6, zorder=0)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    _draw_bars(figure, lower, placed, factor, labels)
    return figure


def _title(output: str, unit: str, value: float | None) -> str:
    if value is None:
        return f"Sensitivity of {output}"
    factor, shown = prefixed(value, unit)
    return f"Sensitivity of {output} = {value * factor:.4g} {'' if shown == '1' else pretty_unit(shown)}".rstrip()


def _typical(placed: Sequence[Sensitivity]) -> str:
    """Return the typical changes by attribute, such as ``k1 0.1 1/m²``."""
    found: dict[str, dict[float, str]] = {}
    for item in placed:
        found.setdefault(item.knob.rpartition(".")[2], {})[item.scale] = quantity(item.scale, item.unit, 3)
    parts = []
    for attribute, scales in found.items():
        low, high = scales[min(scales)], scales[max(scales)]
        parts.append(f"{attribute} {pretty_unit(low if low == high else f'{low} to {high}')}")
    return ", ".join(parts)


def _mark_reading(panels: Sequence[Axes], at: float, place: str, end: float) -> None:
    for axes in panels:
        axes.axvline(at, color="black", linestyle=(0, (2, 2)), linewidth=1.0, zorder=0)
    is_right = at > 0.5 * end
    panels[0].annotate(
        f"{'the end' if place == 'final' else place} is read here",
        (at, 1.0),
        (5 if is_right else -5, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="bottom",
        fontsize=_SIZE,
    )


def _draw_bars(figure: Figure, axes: Axes, placed: Sequence[Sensitivity], factor: float, labels: int) -> None:
    import matplotlib
    from matplotlib.colors import Normalize

    axes.axhline(0.0, color="black", linewidth=0.8, zorder=3)
    if not placed:
        axes.text(0.5, 0.5, "no knob acts on it", transform=axes.transAxes, ha="center", fontsize=_SIZE + 2)
        axes.set_yticks([])
        return
    low, high = axes.get_xlim()
    width = _BAR * (high - low)
    placed = sorted(placed, key=lambda item: item.s or 0.0)
    spots = spread_out([item.s or 0.0 for item in placed], 1.1 * width)
    heights = [item.effect * factor for item in placed]
    colours, norm = matplotlib.colormaps["PuOr_r"], Normalize(-span(heights), span(heights))
    axes.bar(spots, heights, width, color=colours(norm(heights)), edgecolor="#222222", linewidth=0.6, zorder=4)
    ranked = sorted(zip(spots, heights, (item.knob for item in placed), strict=True), key=lambda bar: -abs(bar[1]))
    ranked = sorted(bar for bar in ranked[:labels] if abs(bar[1]) > _WORTH_A_NAME * span(heights))
    _label(figure, axes, [bar for bar in ranked if bar[1] > 0.0], [bar for bar in ranked if bar[1] <= 0.0], heights)


def _label(
    figure: Figure,
    axes: Axes,
    above: Sequence[tuple[float, float, str]],
    below: Sequence[tuple[float, float, str]],
    heights: Sequence[float],
) -> None:
    """Write slanted names beyond the bars, one beside the other in their order, each with a line to its bar."""
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    box = axes.get_window_extent()
    pixels_per_point = figure.dpi / 72.0
    per_pixel = (high - low) / box.width
    slant = math.radians(_SLANT)
    pitch = 1.25 * _SIZE * pixels_per_point / math.sin(slant) * per_pixel
    top, bottom = max([0.0, *heights]), min([0.0, *heights])
    gap = 10.0 * pixels_per_point
    room = {True: gap, False: gap}
    longest = {True: 0.0, False: 0.0}
    for is_up, bars in ((True, above), (False, below)):
        for _, _, name in bars:
            probe = axes.text(0.0, 0.0, name, fontsize=_SIZE)
            longest[is_up] = max(longest[is_up], probe.get_window_extent().width)
            probe.remove()
        if bars:
            room[is_up] += longest[is_up] * math.sin(slant) + gap + (4.0 + 0.5 * _SIZE) * pixels_per_point
    scale = (top - bottom) / max(box.height - room[True] - room[False], 0.3 * box.height)
    axes.set_ylim(bottom - room[False] * scale, top + room[True] * scale)
    for is_up, bars in ((True, above), (False, below)):
        if not bars:
            continue
        base = top + gap * scale if is_up else bottom - gap * scale
        # Names lean to the side where there is room.
        reach = longest[is_up] * math.cos(slant) * per_pixel
        to_right = bars[-1][0] + reach < high or bars[0][0] - reach < low
        rises = is_up == to_right
        spots = spread_out([bar[0] for bar in bars], pitch, low + 0.5 * pitch, high - 0.5 * pitch)
        for (x, y, name), spot in zip(bars, spots, strict=True):
            axes.plot([x, spot], [y, base], color="#888888", linewidth=0.7, zorder=3)
            axes.annotate(
                name,
                (spot, base),
                (0.0, 4.0 if is_up else -4.0),
                textcoords="offset points",
                rotation=_SLANT if rises else -_SLANT,
                rotation_mode="anchor",
                ha="left" if to_right else "right",
                va="center",
                fontsize=_SIZE,
                zorder=6,
            )
