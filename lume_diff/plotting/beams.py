"""A beam on a screen: phase spaces and images, one row a beam, all on the same scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.plotting.lattice import BLUE, VERMILION, new_figure
from lume_diff.plotting.units import prefixed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = 9.5  # [pt]


@dataclass(frozen=True)
class Shot:
    """A beam on a screen.

    Attributes:
        label: what distinguishes it from others in the same picture.
        x, y: positions [m], ``(n,)``.
        px, py: momenta [eV/c], ``(n,)``.
        image: charge in each pixel [C], ``(ny, nx)``, row 0 at the lowest y.
        pixel_size: width and height [m].
    """

    label: str
    x: np.ndarray
    px: np.ndarray
    y: np.ndarray
    py: np.ndarray
    image: np.ndarray
    pixel_size: tuple[float, float]


def plot_beams(shots: Sequence[Shot], title: str = "", target: float | None = None) -> Figure:
    """Draw x-px, y-py and the screen image of beams, a row each, with common axes and colour scales.

    Args:
        shots: in the order of time.
        title: above.
        target: rms radius [m] of a round beam, drawn as a circle of twice that around the image's centre.

    Returns:
        A matplotlib figure; ``figure.savefig(path)`` writes it.

    Gradient:
        None: it draws numbers.
    """
    figure = new_figure(12.0, 3.75 * len(shots) + 0.5)
    grid = figure.subplots(len(shots), 3, squeeze=False, width_ratios=(1.0, 1.0, 1.12))
    widest = max(_reach([getattr(shot, plane) for shot in shots]) for plane in "xy")
    hottest = max(_reach([getattr(shot, f"p{plane}") for shot in shots]) for plane in "xy")
    units = prefixed(widest, "m"), prefixed(hottest, "eV/c")
    for column, (plane, colour) in enumerate((("x", BLUE), ("y", VERMILION))):
        _draw_phase_spaces([row[column] for row in grid], shots, plane, colour, units)
    shown = _draw_images([row[2] for row in grid], shots, target)
    bar = figure.colorbar(shown, ax=[row[2] for row in grid], shrink=0.85, pad=0.02)
    bar.set_label("charge density [pC/mm²], square-root scale", fontsize=_SIZE)
    bar.ax.tick_params(labelsize=_SIZE - 1)
    for row, shot in zip(grid, shots, strict=True):
        row[0].annotate(
            shot.label, (0.0, 0.5), (-56, 0), xycoords="axes fraction", textcoords="offset points",
            rotation=90, ha="center", va="center", fontsize=14, fontweight="bold",
        )  # fmt: skip
        for axes in row:
            axes.tick_params(labelsize=_SIZE - 1)
    if title:
        figure.suptitle(title, fontsize=13)
    return figure


def _draw_phase_spaces(
    panels: Sequence[Axes],
    shots: Sequence[Shot],
    plane: str,
    colour: str,
    units: tuple[tuple[float, str], tuple[float, str]],
) -> None:
    positions = [getattr(shot, plane) for shot in shots]
    momenta = [getattr(shot, f"p{plane}") for shot in shots]
    reach, kick = _reach(positions), _reach(momenta)
    (f, unit), (g, momentum_unit) = units
    for axes, u, p in zip(panels, positions, momenta, strict=True):
        axes.scatter(u * f, p * g, s=2.0, color=colour, alpha=0.3, linewidths=0, rasterized=True)
        axes.plot(*_ellipse(u * f, p * g, 2.0), color="black", linewidth=1.2, label="2σ ellipse")
        axes.set_xlim(-reach * f, reach * f)
        axes.set_ylim(-kick * g, kick * g)
        axes.set_xlabel(f"{plane} [{unit}]", fontsize=_SIZE)
        axes.set_ylabel(f"p{plane} [{momentum_unit}]", fontsize=_SIZE, labelpad=1)
        axes.set_title(f"phase space {plane}–p{plane}", fontsize=_SIZE + 1.5)
        axes.legend(loc="upper right", fontsize=_SIZE - 1, frameon=False, handlelength=1.2)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)


def _reach(values: Sequence[np.ndarray]) -> float:
    """Return half the width of an axis centred on zero that shows all but the rarest particles."""
    return 1.15 * max(float(np.quantile(np.abs(v), 0.998)) for v in values) or 1.0


def _ellipse(u: np.ndarray, p: np.ndarray, sigmas: float) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh(np.cov(u, p))
    angle = np.linspace(0.0, 2.0 * np.pi, 200)
    circle = np.stack((np.cos(angle), np.sin(angle)))
    outline = sigmas * vectors @ (np.sqrt(np.maximum(values, 0.0))[:, None] * circle)
    return outline[0] + u.mean(), outline[1] + p.mean()


def _draw_images(panels: Sequence[Axes], shots: Sequence[Shot], target: float | None) -> Any:
    """Draw images in mm with projections along two edges; returns what the colour bar is for."""
    from matplotlib.colors import PowerNorm

    densities = [shot.image / (shot.pixel_size[0] * shot.pixel_size[1]) * 1e12 * 1e-6 for shot in shots]
    brightest = max(float(d.max()) for d in densities) or 1.0
    reach = max(_lit(shot) for shot in shots) * 1e3
    shown: Any = None
    for axes, shot, density in zip(panels, shots, densities, strict=True):
        ny, nx = density.shape
        half = 0.5 * nx * shot.pixel_size[0] * 1e3, 0.5 * ny * shot.pixel_size[1] * 1e3
        shown = axes.imshow(
            density,
            origin="lower",
            extent=(-half[0], half[0], -half[1], half[1]),
            aspect="equal",
            cmap="viridis",
            norm=PowerNorm(0.5, vmin=0.0, vmax=brightest),
            interpolation="nearest",
        )
        x, y = np.linspace(-1, 1, 2 * nx + 1)[1::2] * half[0], np.linspace(-1, 1, 2 * ny + 1)[1::2] * half[1]
        across, up = density.sum(0), density.sum(1)
        axes.plot(x, -reach + 0.35 * reach * across / (across.max() or 1.0), color="white", linewidth=1.0)
        axes.plot(-reach + 0.35 * reach * up / (up.max() or 1.0), y, color="white", linewidth=1.0)
        (mean_x, size_x), (mean_y, size_y) = _moments(x, across), _moments(y, up)
        if target is not None:
            angle = np.linspace(0.0, 2.0 * np.pi, 200)
            axes.plot(
                mean_x + 2e3 * target * np.cos(angle), mean_y + 2e3 * target * np.sin(angle),
                color="#ff8c69", linewidth=1.3, linestyle=(0, (4, 2)),
            )  # fmt: skip
            text = f"dashed: 2σ of {target * 1e6:.0f} µm"
            axes.text(0.97, 0.94, text, transform=axes.transAxes, ha="right", color="#ffb19a", fontsize=_SIZE - 1)
        axes.set_xlim(-reach, reach)
        axes.set_ylim(-reach, reach)
        axes.set_xlabel("x [mm]", fontsize=_SIZE)
        axes.set_ylabel("y [mm]", fontsize=_SIZE, labelpad=1)
        axes.set_title(f"screen: σx = {size_x * 1e3:.0f} µm, σy = {size_y * 1e3:.0f} µm", fontsize=_SIZE + 1.5)
    return shown


def _lit(shot: Shot) -> float:
    """Return half the width [m] of the centred square that holds almost all of the light, within the screen."""
    ny, nx = shot.image.shape
    found = []
    for profile, size in ((shot.image.sum(0), shot.pixel_size[0]), (shot.image.sum(1), shot.pixel_size[1])):
        n = profile.size
        distance = np.abs(np.arange(n) - 0.5 * (n - 1)) * size
        order = np.argsort(distance)
        share = np.cumsum(profile[order]) / (profile.sum() or 1.0)
        found.append(float(distance[order][min(int(np.searchsorted(share, 0.99)), n - 1)]) + 0.5 * size)
    return min(1.4 * max(found), 0.5 * max(nx * shot.pixel_size[0], ny * shot.pixel_size[1]))


def _moments(u: np.ndarray, profile: np.ndarray) -> tuple[float, float]:
    total = profile.sum() or 1.0
    mean = float((u * profile).sum() / total)
    return mean, float(np.sqrt(((u - mean) ** 2 * profile).sum() / total))
