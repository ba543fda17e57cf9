"""Pictures of measured data: images with their settings, numbers over the scan, and what was done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.moments import ScreenStatistics, statistics
from lume_diff.errors import ValidationError
from lume_diff.plotting.lattice import BLUE, VERMILION, new_figure
from lume_diff.plotting.units import prefixed, pretty_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lume_diff.calibration.data.scalars import Dataset
    from lume_diff.calibration.data.screens import ScreenDataset
    from lume_diff.calibration.data.settings import Settings

_SIZE = 9.0  # [pt]
_MOST = 36  # images in one picture
_WIDTH = 13.0  # [inch]
_BY_NUMBER = "number of the setting"
_CUT = 0.05  # of the brightest row or column


def plot_screens(
    data: ScreenDataset, path: str | Path | None = None, *, shots: str = "mean", aperture: float | None = None
) -> Figure:
    """Draw the images with their settings, beam sizes and positions over the scan, and the steps that led here.

    Each image has a colour scale of its own, in the square root of the light; crosses are centroids, the ellipse is
    that of the rms sizes, and grey pixels are left out.

    Args:
        path: of a PNG, PDF or SVG to write; None to write nothing.
        shots: ``"mean"`` for one image a setting, ``"all"`` for every shot.
        aperture: for centroids and sizes; see `statistics`.

    Returns:
        A matplotlib figure; ``figure.savefig(path)`` writes it.

    Raises:
        ValidationError: another choice of ``shots``.

    Gradient:
        None: it draws numbers.
    """
    if shots not in ("mean", "all"):
        raise ValidationError(f"plot: shots is {shots!r}; expected 'mean' or 'all'")
    found = statistics(data, aperture)
    order = _in_order(data._settings)
    places: list[tuple[int, int | None]] = []
    for i in order:
        places += [(i, None)] if shots == "mean" else [(i, j) for j in range(data.shape[1]) if data.weights[i, j] > 0.0]
    shown = places if len(places) <= _MOST else [places[k] for k in np.linspace(0, len(places) - 1, _MOST).astype(int)]
    across = min(6 if len(shown) > 4 else 4, len(shown)) if shots == "mean" else _across(data.shape[1], len(shown))
    rows = -(-len(shown) // across)
    ny, nx = data.shape[2:]
    shape = min(max(ny * data.pixel_size[1] / (nx * data.pixel_size[0]), 0.4), 1.8)
    row_height = (_WIDTH / max(across, 3) - 0.35) * shape + 0.62
    text = _history_text(data)
    heights = rows * row_height + 0.4, 3.0, 0.15 * (text.count("\n") + 1) + 0.1
    figure = new_figure(_WIDTH, sum(heights))
    parts: Any = figure.subfigures(3, 1, height_ratios=heights)
    upper, middle, below = parts
    panels = upper.subplots(rows, across, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for k, (axes, (i, j)) in enumerate(zip(panels.flat, shown, strict=False)):
        _draw_image(axes, data, found, i, j)
        if k % across == 0:
            axes.set_ylabel("y [mm]", fontsize=_SIZE)
        if k + across >= len(shown):
            axes.set_xlabel("x [mm]", fontsize=_SIZE)
            axes.tick_params(labelbottom=True)
    left_out = f", {len(shown)} of {len(places)} shown" if len(shown) < len(places) else ""
    of = "mean of shots" if shots == "mean" and data.shape[1] > 1 else "single shots"
    upper.suptitle(
        f"{data.screen}: {_counts(data)}; {of}{left_out}; square-root colour scale",
        fontsize=_SIZE + 4,
    )
    charts = middle.subplots(1, 2)
    label, position = _horizontal(data._settings, data.units)
    for axes, key, title in ((charts[0], "sigma", "rms size"), (charts[1], "mean", "centroid")):
        curves = {f"{key}_x": (found[f"{key}_x"], BLUE, "x"), f"{key}_y": (found[f"{key}_y"], VERMILION, "y")}
        hollow = np.asarray(_is_cut(found).any(1)) if key == "sigma" else None
        _draw_scan(axes, position, curves, found.errors, "m", title, label, hollow)
    missing = int((~data.has_beam & (data.weights > 0.0)).sum())
    note = f"; {missing} images without beam are left out" if missing else ""
    note = f"dots: single shots; bars: noise of the pixels{note}"
    note += "; background not subtracted" if _has_background(data, found) else ""
    note += f"; aperture of {aperture:g} rms sizes" if aperture else ""
    note += "; hollow: cut off by the edge" if _is_cut(found).any() else ""
    charts[0].set_title(note, fontsize=_SIZE - 1, color="#555555", loc="left")
    below.text(0.01, 0.97, text, fontsize=_SIZE - 1.5, va="top", family="monospace", color="#333333")
    return _written(figure, path)


def plot_scalars(data: Dataset, path: str | Path | None = None) -> Figure:
    """Draw every measured quantity over the scan: single shots, their mean, and its standard error.

    Args:
        path: of a PNG, PDF or SVG to write; None to write nothing.

    Returns:
        A matplotlib figure.

    Gradient:
        None: it draws numbers.
    """
    names = list(data.outputs)
    across = min(len(names), 2)
    rows = -(-len(names) // across)
    figure = new_figure(6.5 * across, 3.2 * rows + 0.5)
    panels = figure.subplots(rows, across, squeeze=False)
    label, position = _horizontal(data._settings, data.units)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.flat, names, strict=False):
        values = np.ma.array(data.outputs[name], mask=~data.valid[name])
        _draw_scan(axes, position, {name: (values, BLUE, "")}, data.sigma, data.units.get(name, ""), name, label)
    steps = "; ".join(step.name for step in data.history)
    figure.suptitle(_counts(data) + (f"; {steps}" if steps else ""), fontsize=_SIZE + 2)
    return _written(figure, path)


def _written(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        figure.savefig(path)
    return figure


def _counts(data: ScreenDataset | Dataset) -> str:
    settings, shots = data.shape[:2]
    return f"{settings} setting{'s' * (settings > 1)}, {shots} shot{'s' * (shots > 1)}"


def _across(shots: int, count: int) -> int:
    """Return how many images stand side by side, such that the shots of a setting stay together."""
    return min(shots * max(1, 6 // shots), count) if shots <= 6 else 6


def _in_order(settings: Settings) -> list[int]:
    """Return positions in the order of what was scanned, as they are where several things were."""
    names = settings.scanned
    if len(names) != 1:
        return list(range(settings.count))
    return [int(i) for i in np.argsort(settings.values[names[0]], kind="stable")]


def _horizontal(settings: Settings, units: Mapping[str, str]) -> tuple[str, np.ndarray]:
    """Return the label and the positions of the axis along the scan."""
    names = settings.scanned
    if len(names) != 1:
        scanned = f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
        return _BY_NUMBER + scanned, np.arange(settings.count)
    unit = pretty_unit(units.get(names[0], ""))
    return f"{names[0]} [{unit}]" if unit else names[0], settings.values[names[0]]


def _draw_image(axes: Axes, data: ScreenDataset, found: ScreenStatistics, i: int, j: int | None) -> None:
    import matplotlib
    from matplotlib.colors import PowerNorm

    if j is None:
        weights = np.where(data.mask[i], data.weights[i][:, None, None], 0.0)
        total = weights.sum(0)
        image = np.ma.array((weights * data.images[i]).sum(0) / np.where(total > 0.0, total, 1.0), mask=total <= 0.0)
    else:
        image = np.ma.array(data.images[i, j], mask=~data.mask[i, j])
    is_seen = bool(data.has_beam[i].any() if j is None else data.has_beam[i, j])
    # Noise alone is shown as dark as it is beside the images with beam.
    brightest = float(image.max() if is_seen else data.images.max()) if image.count() else 1.0
    darkest = min(data.noise.level, brightest)
    norm = PowerNorm(0.5, vmin=darkest, vmax=brightest if brightest > darkest else darkest + 1.0, clip=True)
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="#d0d0d0")
    left, right, low, high = (1e3 * end for end in data.frame.extent)
    extent = left, right, low, high
    axes.imshow(image, origin="lower", extent=extent, cmap=colours, norm=norm, interpolation="nearest", aspect="equal")
    for k in range(data.shape[1]) if j is None else [j]:
        if not np.ma.getmaskarray(found["mean_x"])[i, k]:
            x, y = 1e3 * found["mean_x"][i, k], 1e3 * found["mean_y"][i, k]
            axes.plot(x, y, "+", color="white", markersize=7, markeredgewidth=1.0)
    if found["mean_x"][i].count() and (j is None or not np.ma.getmaskarray(found["mean_x"])[i, j]):
        axes.plot(*_ellipse(found, i, j), color="white", linewidth=0.8, linestyle=(0, (4, 2)))
    else:
        axes.text(0.5, 0.92, "no beam", transform=axes.transAxes, ha="center", va="top", color="white", fontsize=_SIZE)
    axes.autoscale(False)
    shot = "" if j is None or data.shape[1] == 1 else f"\nshot {j}"
    cut = " (cut off)" if _is_cut(found)[i, slice(None) if j is None else j].any() else ""
    axes.set_title(pretty_unit(data._settings.describe(i)).replace(", ", "\n") + cut + shot, fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 1)


def _has_background(data: ScreenDataset, found: ScreenStatistics) -> bool:
    """Return whether background is so much of the light that it shows in sizes."""
    if not found["intensity"].count():
        return False
    return bool(data.noise.level * data.mask[0, 0].sum() > 0.02 * np.ma.median(found["intensity"]))


def _is_cut(found: ScreenStatistics) -> np.ndarray:
    """Return which images show a beam that the edge cuts off, ``(settings, shots)``."""
    return np.asarray(found.cut.filled(0.0) > _CUT)


def _ellipse(found: ScreenStatistics, i: int, j: int | None) -> np.ndarray:
    """Return the outline of one rms size [mm], ``(2, n)``, of a shot or of the mean over shots."""
    pick = (lambda name: found[name][i].mean()) if j is None else (lambda name: found[name][i, j])
    xx, yy, xy = (float(pick(name)) for name in ("sigma_x", "sigma_y", "cov_x__y"))
    values, vectors = np.linalg.eigh(np.array([[xx**2, xy], [xy, yy**2]]))
    angle = np.linspace(0.0, 2.0 * np.pi, 120)
    outline = vectors @ (np.sqrt(np.maximum(values, 0.0))[:, None] * np.stack((np.cos(angle), np.sin(angle))))
    centre = np.array([[float(pick("mean_x"))], [float(pick("mean_y"))]])
    return 1e3 * (outline + centre)


def _draw_scan(
    axes: Axes,
    position: np.ndarray,
    curves: Mapping[str, tuple[np.ma.MaskedArray, str, str]],
    errors: Mapping[str, Any],
    unit: str,
    title: str,
    label: str,
    hollow: np.ndarray | None = None,
) -> None:
    largest = max((float(np.abs(values).max()) for values, _, _ in curves.values() if values.count()), default=1.0)
    factor, shown = prefixed(largest, unit)
    order = np.argsort(position, kind="stable")
    for name, (values, colour, legend) in curves.items():
        mean = values.mean(1)
        counts = np.maximum(values.count(1), 1)
        error = np.ma.sqrt((np.ma.array(errors[name], mask=values.mask) ** 2).sum(1)) / counts
        ok = ~np.ma.getmaskarray(mean)[order]
        x, y, e = (np.ma.getdata(part)[order][ok] for part in (position, mean * factor, error * factor))
        line = axes.errorbar(x, y, e, color=colour, linewidth=1.2, capsize=2, label=legend or None, zorder=3)
        faces = ["white" if hollow is not None and hollow[k] else colour for k in order[ok]]
        axes.scatter(x, y, 22.0, faces, edgecolors=line[0].get_color(), zorder=4)
        if values.shape[1] > 1:
            spread = np.repeat(position[:, None], values.shape[1], 1)
            axes.plot(spread[~values.mask], (values.compressed() * factor), ".", color=colour, markersize=5, alpha=0.45)
    if hollow is not None:
        axes.set_ylim(bottom=0.0)
    if label.startswith(_BY_NUMBER):
        axes.locator_params(axis="x", integer=True)
    axes.set_xlabel(label, fontsize=_SIZE)
    axes.set_ylabel(f"{title} [{pretty_unit(shown)}]" if shown else title, fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 1)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    if any(legend for _, _, legend in curves.values()):
        axes.legend(fontsize=_SIZE, frameon=False)


def _history_text(data: ScreenDataset) -> str:
    steps = [f"{i}. {step}" for i, step in enumerate(data.history, 1)] or ["no steps: as measured"]
    lines = [fill(step, 150, subsequent_indent="   ") for step in steps]
    noise = data.noise
    light = f", gain {noise.gain:.3g}" if noise.gain else ""
    light += f", relative {noise.relative:.3g}" if noise.relative else ""
    lines.append(f"noise of a pixel: sigma {noise.sigma:.3g}{light}; {noise.source}")
    return "\n".join(lines)
