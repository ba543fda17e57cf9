"""The picture and the page of a study: convergence with and without the model, and what was thought of the model."""

from __future__ import annotations

import io
import os
from html import escape
from typing import Any, BinaryIO

import numpy as np

from lume_diff.calibration.fit.report import as_page
from lume_diff.calibration.optimisation.study import Arm, StudyResult
from lume_diff.plotting.lattice import BLUE, ORANGE, new_figure
from lume_diff.plotting.units import pretty_unit

_SIZE = 9.0  # [pt]
_COLOURS = (BLUE, ORANGE)
_MARKERS = ("o", "s")


def draw_convergence(result: StudyResult, path: str | os.PathLike[str] | BinaryIO) -> None:
    """Draw a study.

    Args:
        result: of a study.
        path: of a picture, or a file to write a PNG into.
    """
    judged = [decision for decision in result.prior.decisions if np.isfinite(decision.advantage)]
    figure = new_figure(9.0 if judged else 6.0, 3.8)
    if judged:
        axes, evidence = figure.subplots(1, 2, width_ratios=(1.7, 1.0))
        _draw_evidence(evidence, judged)
    else:
        axes = figure.subplots()
    for arm, colour, marker in zip(result.arms, _COLOURS, _MARKERS, strict=False):
        _draw_arm(axes, arm, colour, marker)
    axes.axvspan(0.5, result.start + 0.5, color="#eeeeee", zorder=0)
    axes.text(0.5 * result.start + 0.5, 0.99, "random", ha="center", va="top", fontsize=_SIZE - 2, color="#666666",
              transform=axes.get_xaxis_transform())  # fmt: skip
    axes.set_xlim(0.5, max(len(arm.values) for arm in result.arms) + 0.5)
    axes.set_xlabel("evaluations of the machine", fontsize=_SIZE)
    goal = "minimised" if result.arms[0].is_minimised else "maximised"
    axes.set_ylabel(f"{result.arms[0].objective}, {goal}", fontsize=_SIZE)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=_SIZE - 1)
    axes.set_title("line: the best so far; marks: every evaluation", fontsize=_SIZE)
    axes.legend(fontsize=_SIZE - 1, frameon=False)
    figure.savefig(path, dpi=110, format=None if isinstance(path, (str, os.PathLike)) else "png")


def _draw_arm(axes: Any, arm: Arm, colour: str, marker: str) -> None:
    numbers = np.arange(1, len(arm.values) + 1)
    axes.step(numbers, arm.best_so_far, where="post", color=colour, linewidth=1.8, label=arm.name)
    axes.plot(numbers, arm.values, marker, color=colour, markersize=3.5, alpha=0.55, linestyle="none")


def _draw_evidence(axes: Any, judged: Any) -> None:
    """Draw by how much the model predicts the data better than a constant; hollow where the constant was taken."""
    for trusted, face, label in ((True, BLUE, "the model is the mean"), (False, "white", "a constant is")):
        own = [decision for decision in judged if decision.trusted == trusted]
        if own:
            points, gains = [d.points for d in own], [d.advantage for d in own]
            axes.plot(points, gains, "o", color=BLUE, mfc=face, markersize=4.5, label=label)
    axes.axhline(0.0, color="#999999", linewidth=0.6)
    axes.set_xlabel("data", fontsize=_SIZE)
    axes.set_ylabel("evidence for the model [nats]", fontsize=_SIZE)
    axes.set_title("model against constant", fontsize=_SIZE)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=_SIZE - 1)
    axes.legend(fontsize=_SIZE - 1, frameon=False)


def write_page(result: StudyResult, path: str | os.PathLike[str], title: str = "Optimisation") -> None:
    """Write a study as one HTML page that needs no other file.

    Args:
        result: of a study.
        path: of the page.
        title: at its top.
    """
    head = "".join(f'<th class="number">{escape(arm.name)}</th>' for arm in result.arms)
    bests = [arm.best for arm in result.arms]
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="number">{best[name]:.5g}</td>' for best in bests)
        + f"<td>{escape(pretty_unit(result.units.get(name, '')))}</td></tr>"
        for name in bests[0]
    )
    times = "; ".join(f"{arm.name}: {len(arm.values)} evaluations, {arm.seconds:.3g} s" for arm in result.arms)
    body = (
        f"<p>{escape(times)}; the first {result.start} are random.</p>"
        f"<table><tr><th>best</th>{head}<th>unit</th></tr>{rows}</table>"
        f"<pre>{escape(str(result))}</pre>"
    )
    picture = io.BytesIO()
    draw_convergence(result, picture)
    as_page(path, title, body, picture.getvalue(), "convergence with the model and without, evidence for the model")
