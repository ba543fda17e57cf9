"""Beam sizes along a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.plotting.lattice import BLUE, VERMILION, LineElement, draw_lattice, new_figure
from lume_diff.plotting.units import prefixed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Envelope:
    """Beam sizes along a line.

    Attributes:
        s: places [m], ``(n,)``.
        sigma_x, sigma_y: sizes there [m], ``(n,)``.
        label: what distinguishes it from others in the same picture.
        energy: energy there [eV], ``(n,)``; empty where it is not shown.
    """

    s: np.ndarray
    sigma_x: np.ndarray
    sigma_y: np.ndarray
    label: str = ""
    energy: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def until(self, end: float) -> Envelope:
        """Return the part up to a place [m]."""
        kept = self.s <= end
        energy = self.energy[kept] if self.energy.size else self.energy
        return Envelope(self.s[kept], self.sigma_x[kept], self.sigma_y[kept], self.label, energy)


def draw_envelope(axes: Axes, envelopes: Sequence[Envelope]) -> float:
    """Draw sizes, the last envelope full and the ones before it faint and dashed; logarithmic over large ranges.

    Args:
        axes: where to draw.
        envelopes: in the order of time.

    Returns:
        What the sizes [m] were multiplied by.
    """
    sizes = np.concatenate([a for e in envelopes for a in (e.sigma_x, e.sigma_y)])
    sizes = sizes[np.isfinite(sizes) & (sizes > 0.0)]
    # The unit is that of a size in the middle of the picture.
    largest, smallest = (float(sizes.max()), float(sizes.min())) if sizes.size else (1.0, 1.0)
    is_log = largest > 30.0 * smallest
    factor, unit = prefixed(float(np.sqrt(largest * smallest)) if is_log else largest, "m")
    for i, envelope in enumerate(envelopes):
        is_last = i == len(envelopes) - 1
        for name, size, colour in (("x", envelope.sigma_x, BLUE), ("y", envelope.sigma_y, VERMILION)):
            label = f"$\\sigma_{name}$ {envelope.label}".strip()
            style = {"linewidth": 1.8} if is_last else {"linewidth": 1.3, "linestyle": (0, (4, 2)), "alpha": 0.65}
            axes.plot(envelope.s, size * factor, color=colour, label=label, zorder=5, **style)
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(0.0, 1.12 * largest * factor)
    axes.set_ylabel(f"rms size [{unit}]", fontsize=10)
    axes.legend(fontsize=9, ncols=len(envelopes), frameon=True, framealpha=0.9, edgecolor="none", loc="upper left")
    return factor


def plot_envelopes(
    elements: Sequence[LineElement],
    envelopes: Sequence[Envelope],
    title: str = "",
    target: tuple[float, float] | None = None,
) -> Figure:
    """Draw beam sizes, the energy and the lattice along a line.

    Args:
        elements: the line.
        envelopes: in the order of time; the last one is drawn full.
        title: above.
        target: place and size [m] to be marked.

    Returns:
        A matplotlib figure; ``figure.savefig(path)`` writes it.

    Gradient:
        None: it draws numbers.
    """
    has_energy = envelopes[-1].energy.size > 0
    figure = new_figure(11.0, 6.0)
    ratios = (2.6, 0.5, 0.9) if has_energy else (2.6, 0.5)
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    upper, strip = panels[0], panels[1]
    factor = draw_envelope(upper, envelopes)
    if target is not None:
        upper.plot(
            [target[0]], [target[1] * factor], marker="*", markersize=13, color="black", linestyle="", zorder=6,
            label="target", clip_on=False,
        )  # fmt: skip
        upper.legend(fontsize=9, ncols=len(envelopes) + 1, framealpha=0.9, edgecolor="none", loc="upper left")
    entries = draw_lattice(strip, elements)
    if has_energy:
        _draw_energy(panels[2], envelopes[-1])
    _mark_stages(upper, elements)
    panels[-1].set_xlabel("s [m]", fontsize=10)
    total = max((element.s + element.length for element in elements), default=1.0)
    panels[-1].set_xlim(-0.01 * total, 1.01 * total)
    for axes in (upper, *panels[2:]):
        axes.tick_params(labelsize=9)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(len(entries), 5) or 1, fontsize=9, frameon=False
    )
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def _draw_energy(axes: Axes, envelope: Envelope) -> None:
    factor, unit = prefixed(float(envelope.energy.max()), "eV")
    axes.plot(envelope.s, envelope.energy * factor, color="black", linewidth=1.5)
    axes.set_ylim(0.0, 1.15 * float(envelope.energy.max()) * factor)
    axes.set_ylabel(f"energy [{unit}]", fontsize=10)


def _mark_stages(axes: Axes, elements: Sequence[LineElement]) -> None:
    """Write the names of stages above the plot, with a line at each border."""
    borders: dict[str, tuple[float, float]] = {}
    for element in elements:
        begin, _ = borders.get(element.stage, (element.s, element.s))
        borders[element.stage] = (begin, element.s + element.length)
    if len(borders) < 2:
        return
    for name, (begin, end) in borders.items():
        axes.text(
            0.5 * (begin + end), 1.02, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=10
        )
        if begin > 0.0:
            axes.axvline(begin, color="#888888", linewidth=0.8, linestyle=":")
