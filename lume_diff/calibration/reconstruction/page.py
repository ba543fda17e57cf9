"""The page of a reconstruction: HTML with its picture inside, to be kept or sent."""

from __future__ import annotations

import math
import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from lume_diff.calibration.fit.report import as_page
from lume_diff.plotting.units import prefixed, pretty_unit

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.result import Reconstruction


def write_page(
    result: Reconstruction,
    path: str | os.PathLike[str],
    picture: str | os.PathLike[str],
    title: str = "Reconstruction",
) -> None:
    """Write a reconstruction as one HTML page that needs no other file.

    Args:
        result: of a fit.
        path: of the page.
        picture: the PNG file that ``Reconstruction.plot`` has drawn.
        title: at its top.
    """
    task = result.task
    units = {**result.reported, **{parameter.name: parameter.unit for parameter in task.parameters}}
    jitter = ", ".join(f"{escape(name)} {1e3 * value:.3g} mm" for name, value in result.jitter.items())
    state = "finished" if result.finished else '<b class="warning">stopped before its end</b>'
    body = [
        f"<p>{_measured(result)}; {state} "
        f"after {len(result.history)} epochs, {result.runs} model runs and {result.seconds:.3g} s; {task.n_particles} "
        f"particles, {len(result.members)} bunch{'es' if len(result.members) > 1 else ''}, seed {task.seed}.</p>",
        f"<p>Fit: {escape(str(result.fit))}. Pointing, rms: {jitter}.</p>",
        '<table><tr><th></th><th class="number">value</th><th class="number">standard error</th><th>unit</th></tr>',
        *(_row(result, name, unit) for name, unit in units.items()),
        "</table>",
    ]
    if result.conditional_on:
        conditions = escape(" and ".join(result.conditional_on))
        body.append(f'<p class="warning">Emittances and Twiss parameters hold if one trusts {conditions}.</p>')
    if len(result.members) < 2:
        body.append('<p class="warning">No standard errors: they take an ensemble.</p>')
    if result.ambiguity is not None:
        body.append(f"<p>What else explains the images, by short fits:</p><pre>{escape(str(result.ambiguity))}</pre>")
    shown = Path(picture).read_bytes()
    as_page(path, title, "\n".join(body), shown, "images, bunch, pointing and course of the fit")


def _measured(result: Reconstruction) -> str:
    """Return in words what was measured."""
    sets = [screen.data for screen in result.task.screens]
    parts = [f"{data.screen}, {len(data)} settings of {', '.join(data.scanned) or 'nothing'}" for data in sets]
    return escape("; ".join(parts))


def _row(result: Reconstruction, name: str, unit: str) -> str:
    value, error = result.statistic(name)
    factor, shown = prefixed(value, unit)
    cells = [
        f"<td>{escape(name)}</td>",
        f'<td class="number">{value * factor:.4g}</td>',
        f'<td class="number">{"" if math.isnan(error) else f"{error * factor:.2g}"}</td>',
        f"<td>{escape(pretty_unit(shown))}</td>",
    ]
    return f"<tr>{''.join(cells)}</tr>"
