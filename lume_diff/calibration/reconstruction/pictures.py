"""The picture of a reconstruction: images measured and predicted, the bunch in all planes, the course of the fit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lume_diff.calibration.likelihoods.measures import normalised
from lume_diff.calibration.likelihoods.shots import screen_shots
from lume_diff.plotting.lattice import BLUE, VERMILION, new_figure
from lume_diff.plotting.units import prefixed, pretty_unit, quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lume_diff.calibration.data.screens import ScreenDataset
    from lume_diff.calibration.reconstruction.result import Reconstruction

_SIZE = 9.0  # [pt]
_SHOWN = 7  # settings
_BINS = 90
_COORDINATES = {"x": "m", "xp": "rad", "y": "m", "yp": "rad"}
_LONGITUDINAL = {"t": "s", "energy": "eV"}


def plot_reconstruction(result: Reconstruction, path: str | os.PathLike[str] | None, n_particles: int) -> Figure:
    """Draw a reconstruction; see ``Reconstruction.plot``."""
    figure = new_figure(12.5, 14.0)
    images, below = figure.subfigures(2, 1, height_ratios=(5.6, 8.0), squeeze=False)[:, 0]
    _draw_images(images, result, n_particles)
    corner, side = below.subfigures(1, 2, width_ratios=(8.0, 4.5), squeeze=False)[0]
    _draw_corner(corner, result, n_particles)
    emittances, pointing, history = side.subplots(3, 1, height_ratios=(0.8, 1.0, 1.2))
    _draw_emittances(emittances, result)
    _draw_pointing(pointing, result)
    _draw_history(history, result)
    state = "" if result.finished else ", STOPPED before its end"
    screens = ", ".join(dict.fromkeys(screen.data.screen for screen in result.task.screens))
    figure.suptitle(f"bunch reconstructed from {screens}: {result.fit}{state}", fontsize=_SIZE + 3)
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _draw_images(figure: Any, result: Reconstruction, n_particles: int) -> None:
    """Draw measured and predicted images and their difference, for settings spread over the scan."""
    sets = [screen.data for screen in result.task.screens]
    panels = figure.subfigures(1, len(sets), squeeze=False)[0]
    for panel, data in zip(panels, sets, strict=True):
        if len(sets) > 1:
            panel.suptitle(data.screen, fontsize=_SIZE)
        _draw_images_of(panel, result, data, max(_SHOWN // len(sets), 2), n_particles)


def _draw_images_of(figure: Any, result: Reconstruction, data: ScreenDataset, most: int, n_particles: int) -> None:
    shots = screen_shots(data)
    lit = torch.nonzero(shots.present.any(1)).flatten().numpy()
    name = [*data.scanned, *data.settings][0]
    lit = lit[np.argsort(data.settings[name][lit], kind="stable")]
    chosen = lit[np.unique(np.linspace(0, len(lit) - 1, min(most, len(lit))).astype(int))]
    measured = normalised((shots.mean * shots.valid).clamp_min(0.0))[chosen].numpy()
    predicted = result.predict(data[chosen], n_particles).numpy()
    panels = figure.subplots(3, len(chosen), squeeze=False)
    extent = [1e3 * edge for edge in data.frame.extent]
    unit = data.units.get(name) or result.task.model.supported_variables[name].unit or ""
    for column, setting in enumerate(chosen):
        brightest, left = measured[column].max(), measured[column] - predicted[column]
        rows = (
            (measured[column], {"cmap": "viridis", "vmin": 0.0, "vmax": brightest}),
            (predicted[column], {"cmap": "viridis", "vmin": 0.0, "vmax": brightest}),
            (left, {"cmap": "RdBu_r", "vmin": -0.5 * brightest, "vmax": 0.5 * brightest}),
        )
        for row, (image, options) in enumerate(rows):
            axes = panels[row][column]
            axes.imshow(image, origin="lower", extent=extent, aspect="auto", **options)
            axes.tick_params(labelsize=_SIZE - 2)
            if row < 2:
                axes.set_xticklabels([])
            if column:
                axes.set_yticklabels([])
        label = f"setting {setting}" if len(data.scanned) > 1 else _with_unit(data.settings[name][setting], unit)
        panels[0][column].set_title(label if len(data.scanned) > 1 else f"{name} = {label}", fontsize=_SIZE - 1)
        panels[2][column].set_title(f"L1 {np.abs(left).sum():.3f}", fontsize=_SIZE - 1)
        panels[2][column].set_xlabel("x [mm]", fontsize=_SIZE)
    for row, label in enumerate(("measured", "predicted", "difference, ±½ of peak")):
        panels[row][0].set_ylabel(f"{label}\ny [mm]", fontsize=_SIZE)


def _with_unit(value: float, unit: str) -> str:
    number, _, shown = quantity(float(value) + 0.0, unit).partition(" ")
    return f"{number} {pretty_unit(shown)}"


def _draw_corner(figure: Any, result: Reconstruction, n_particles: int) -> None:
    """Draw the density of the bunch in all pairs of coordinates, and its projections."""
    bunch = result.bunch(0, n_particles)
    units = {**_COORDINATES, **(_LONGITUDINAL if result.task.dimensions == 6 else {})}
    values = {name: np.asarray(bunch[name].detach()) for name in units}
    shown, labels = {}, {}
    for name, unit in units.items():
        centred = values[name] - values[name].mean() if name in _LONGITUDINAL else values[name]
        low, high = np.quantile(centred, (0.002, 0.998))
        factor, prefix = prefixed(max(abs(low), abs(high)), unit)
        shown[name] = centred * factor
        labels[name] = f"{'Δ' if name in _LONGITUDINAL else ''}{name.replace('p', chr(8242))} [{prefix}]"
    names = list(units)
    limits = {name: np.quantile(v, (0.001, 0.999)) for name, v in shown.items()}
    panels = figure.subplots(len(names), len(names), squeeze=False)
    for row, up in enumerate(names):
        for column, across in enumerate(names):
            axes = panels[row][column]
            axes.tick_params(labelsize=_SIZE - 2)
            if column > row:
                axes.set_visible(False)
                continue
            if column == row:
                axes.hist(shown[up], bins=_BINS, range=tuple(limits[up]), color=BLUE, histtype="stepfilled", alpha=0.7)
                axes.set_yticks([])
            else:
                density, edges_x, edges_y = np.histogram2d(
                    shown[across], shown[up], bins=_BINS, range=(limits[across], limits[up])
                )
                axes.pcolormesh(edges_x, edges_y, np.ma.masked_equal(density.T, 0.0), cmap="viridis", rasterized=True)
                axes.set_ylim(*limits[up])
            axes.set_xlim(*limits[across])
            if row == len(names) - 1:
                axes.set_xlabel(labels[across], fontsize=_SIZE)
            else:
                axes.set_xticklabels([])
            if column == 0 and row:
                axes.set_ylabel(labels[up], fontsize=_SIZE)
            elif column and column != row:
                axes.set_yticklabels([])
    figure.suptitle("bunch at the entrance of the model", fontsize=_SIZE + 1)


def _draw_emittances(axes: Any, result: Reconstruction) -> None:
    """Write emittances and machine parameters with their errors, and on what they depend."""
    axes.axis("off")
    lines = []
    parameters = [(parameter.name, parameter.unit) for parameter in result.task.parameters]
    for name, unit in [("norm_emit_x", "m"), ("norm_emit_y", "m"), *parameters]:
        value, error = result.statistic(name)
        factor, shown = prefixed(value, unit)
        spread = f" ± {error * factor:.2g}" if np.isfinite(error) else ""
        lines.append(f"{name} = {value * factor:.4g}{spread} {shown}")
    lines += [f"if {condition}" for condition in result.conditional_on]
    if len(result.members) > 1:
        lines.append(f"errors: spread of {len(result.members)} bunches")
    axes.text(0.0, 1.0, "\n".join(lines), va="top", fontsize=_SIZE, transform=axes.transAxes, wrap=True)


def _draw_pointing(axes: Any, result: Reconstruction) -> None:
    data = result.task.data
    name = [*data.scanned, *data.settings][0]
    setting = data.settings[name][result.task.seen.numpy()]
    order = np.argsort(setting, kind="stable")
    for label, off, colour in (("x", result.fit.off_x, BLUE), ("y", result.fit.off_y, VERMILION)):
        axes.plot(
            setting[order],
            1e3 * off.numpy()[: len(setting)][order],
            "o-",
            color=colour,
            markersize=3,
            linewidth=0.8,
            label=label,
        )
    axes.axhline(0.0, color="#999999", linewidth=0.6)
    axes.set_xlabel(name, fontsize=_SIZE)
    axes.set_ylabel("centroid,\nmeasured − predicted [mm]", fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 2)
    axes.legend(fontsize=_SIZE - 1, frameon=False)


def _draw_history(axes: Any, result: Reconstruction) -> None:
    for member in range(len(result.members)):
        rows = [row for row in result.history if row.member == member]
        shade = 1.0 if member == 0 else 0.3
        axes.plot([row.aligned for row in rows], color=BLUE, alpha=shade, label=None if member else "centroids aligned")
        axes.plot([row.image for row in rows], color=VERMILION, alpha=shade, label=None if member else "as they are")
        shape = sum(row.part == "shape" for row in rows)
        if member == 0 and shape < len(rows):
            axes.axvline(shape, color="#999999", linewidth=0.6)
            axes.annotate(" pointing", (shape, 1.0), xycoords=("data", "axes fraction"), va="top", fontsize=_SIZE - 2)
    axes.set_yscale("log")
    axes.set_xlabel("epoch", fontsize=_SIZE)
    axes.set_ylabel("distance of images (L1)", fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 2, which="both")
    axes.legend(fontsize=_SIZE - 1, frameon=False)
