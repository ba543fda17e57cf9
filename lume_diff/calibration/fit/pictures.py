"""The picture of a fit: data beside the best fit, estimates beside their priors, and how it got there."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from lume_diff.calibration.fit.objective import holds_images
from lume_diff.plotting.lattice import new_figure
from lume_diff.plotting.units import prefixed, pretty_unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lume_diff.calibration.fit.result import CalibrationResult

_SIZE = 9.0  # [pt]
_SHOWN = 6  # settings
_LIT = 0.03  # of the brightest pixel
_SHORT = 12  # letters of a name


def plot_result(
    result: CalibrationResult,
    path: str | os.PathLike[str] | BinaryIO | None = None,
    truth: Mapping[str, float] | None = None,
) -> Figure:
    """Draw a calibration result; see ``CalibrationResult.plot``."""
    screens = [(data, found) for data, found in zip(result.calibration.data, result.predict(), strict=True)]
    pictures = [pair for pair in screens if holds_images(pair[0])]
    rows = 3 if pictures else 0
    below = max(3.4, 1.1 + 0.36 * len(result.parameters))
    figure = new_figure(11.0, 0.4 + below + 1.75 * rows)
    heights = (1.75 * rows + 0.01, below)
    images, numbers = figure.subfigures(2, 1, height_ratios=heights, squeeze=False)[:, 0]
    if pictures:
        data, found = pictures[0]
        _draw_images(images, data, found[data.screen])
    left, middle, right = numbers.subplots(1, 3, width_ratios=(2.6, 1.4, 1.3))
    _draw_estimates(left, result, truth or {})
    _draw_correlation(middle, result, figure)
    _draw_history(right, result)
    state = "" if result.converged else ", NOT converged"
    figure.suptitle(
        f"Calibration by {result.method}: χ² per degree of freedom {result.reduced_chi_square:.3g}{state}",
        fontsize=_SIZE + 3,
    )
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _draw_images(figure: Any, data: Any, predicted: Tensor) -> None:
    """Draw measured and predicted images and what is left, for settings spread over the scan."""
    from lume_diff.calibration.likelihoods.measures import fitted_amplitude
    from lume_diff.calibration.likelihoods.shots import screen_shots

    shots = screen_shots(data)
    weight = shots.valid / shots.sigma.square()
    fitted = fitted_amplitude(predicted, shots.mean, weight, (-2, -1)) * predicted
    lit = torch.nonzero(shots.present.any(1)).flatten().numpy()
    chosen = lit[np.unique(np.linspace(0, len(lit) - 1, min(_SHOWN, len(lit))).astype(int))]
    panels = figure.subplots(3, len(chosen), squeeze=False)
    extent = [1e3 * edge for edge in data.frame.extent]
    limits = _lit_part(torch.maximum(shots.mean * shots.valid, fitted)[chosen], extent)
    for column, setting in enumerate(chosen):
        brightest = float(shots.mean[setting].max())
        left = ((shots.mean - fitted) / shots.sigma * shots.valid)[setting]
        for row, (image, options) in enumerate(
            (
                (shots.mean[setting], {"cmap": "viridis", "vmin": 0.0, "vmax": brightest}),
                (fitted[setting], {"cmap": "viridis", "vmin": 0.0, "vmax": brightest}),
                (left, {"cmap": "RdBu_r", "vmin": -5.0, "vmax": 5.0}),
            )
        ):
            axes = panels[row][column]
            drawn = axes.imshow(image.numpy(), origin="lower", extent=extent, aspect="auto", **options)
            axes.set_xlim(limits[0])
            axes.set_ylim(limits[1])
            axes.tick_params(labelsize=_SIZE - 2)
            if row < 2:
                axes.set_xticklabels([])
            if column:
                axes.set_yticklabels([])
        title = f"setting {setting}" if len(data.scanned) > 1 else data._settings.describe(int(setting))
        panels[0][column].set_title(title, fontsize=_SIZE - 1)
        panels[2][column].set_xlabel("x [mm]", fontsize=_SIZE)
    for row, label in enumerate(("measured", "best fit", "deviation [σ]")):
        panels[row][0].set_ylabel(f"{label}\ny [mm]", fontsize=_SIZE)
    figure.colorbar(drawn, ax=panels[2, :], fraction=0.02, pad=0.01).ax.tick_params(labelsize=_SIZE - 2)


def _lit_part(images: Tensor, extent: list[float]) -> list[tuple[float, float]]:
    """Return limits in x and y around everything that is lit on any of some images, ``(n, ny, nx)``."""
    bright = (images > _LIT * images.amax((-2, -1), keepdim=True)).any(0)
    found = []
    for lit, (low, high) in zip((bright.any(0), bright.any(1)), (extent[:2], extent[2:]), strict=True):
        places = torch.nonzero(lit).flatten()
        first, last = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, len(lit))
        margin = 0.25 * (last - first) + 2
        pitch = (high - low) / len(lit)
        edges = (low + pitch * max(first - margin, 0.0), low + pitch * min(last + margin, float(len(lit))))
        found.append(edges)
    return found


def _draw_estimates(axes: Any, result: CalibrationResult, truth: Mapping[str, float]) -> None:
    """Draw each estimate with its error in units of its prior's width; open where the data say nothing."""
    errors = result.laplace.errors.numpy()
    places = np.arange(len(errors))[::-1]
    axes.barh(places, 2.0, left=-1.0, height=0.8, color="#eeeeee", zorder=0)
    texts = []
    for place, parameter, u, error in zip(places, result.parameters, result.u.tolist(), errors, strict=True):
        known = result.resolved[parameter.name]
        face = "#1f5fa8" if known else "white"
        axes.errorbar(u, place, xerr=error, fmt="o", color="#1f5fa8", mfc=face, capsize=3, markersize=4)
        if parameter.name in truth:
            axes.plot(parameter.prior.coordinate(truth[parameter.name]), place, "D", color="#d1495b", markersize=3.5)
        value, spread = result[parameter.name]
        factor, unit = prefixed(max(abs(value), spread), parameter.unit) if parameter.unit else (1.0, "")
        decimals = min(max(1 - math.floor(math.log10(abs(spread * factor))), 0), 9) if spread else 3
        text = f"{value * factor:.{decimals}f} ± {spread * factor:.{decimals}f} {pretty_unit(unit)}".rstrip()
        texts.append(text if known else f"{text}\nnot resolved")
    axes.set_yticks(places, result.names, fontsize=_SIZE - 1)
    axes.set_ylim(-0.7, len(errors) - 0.3)
    beside = axes.secondary_yaxis("right")
    beside.set_yticks(places, texts, fontsize=_SIZE - 2)
    beside.tick_params(length=0)
    widest = max(2.0, float(np.abs(result.u.numpy()).max() + errors.max()))
    axes.set_xlim(-1.05 * widest, 1.05 * widest)
    axes.axvline(0.0, color="#999999", linewidth=0.6)
    axes.tick_params(axis="x", labelsize=_SIZE - 1)
    axes.set_xlabel("estimate, in standard deviations of the prior (grey)", fontsize=_SIZE)
    axes.set_title("estimates" + (" (red: the truth)" if truth else ""), fontsize=_SIZE)


def _draw_correlation(axes: Any, result: CalibrationResult, figure: Any) -> None:
    drawn = axes.imshow(result.correlation.numpy(), cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    axes.set_title("correlation", fontsize=_SIZE)
    axes.set_xticks([])
    axes.set_yticks([])
    if max(map(len, result.names)) <= _SHORT:
        axes.set_yticks(range(len(result.names)), result.names, fontsize=_SIZE - 3)
    figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02).ax.tick_params(labelsize=_SIZE - 2)


def _draw_history(axes: Any, result: CalibrationResult) -> None:
    costs = np.array([step.cost for step in result.history])
    axes.semilogy(np.arange(1, len(costs) + 1), costs, "o-", color="#1f5fa8", markersize=3)
    axes.set_xlabel("step", fontsize=_SIZE)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"cost; {result.runs} runs", fontsize=_SIZE)
    axes.tick_params(labelsize=_SIZE - 1)
