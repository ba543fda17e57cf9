"""The report of a fit: one page of HTML with its picture inside, to be kept or sent."""

from __future__ import annotations

import base64
import io
import os
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from lume_diff.plotting.units import pretty_unit

if TYPE_CHECKING:
    from lume_diff.calibration.fit.result import CalibrationResult

_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ddd }
th { text-align: left } .number { text-align: right; font-variant-numeric: tabular-nums }
.open { color: #999 } .warning { color: #a33 } pre { overflow-x: auto } img { max-width: 100%; margin-top: 1rem }
</style></head><body>
<h1>$title</h1>
$body
<img alt="$alt" src="data:image/png;base64,$picture">
</body></html>
"""
)


_HEAD = (
    '<table><tr><th>parameter</th><th class="number">estimate</th><th class="number">standard error</th><th>unit</th>'
    "<th>prior</th><th></th></tr>"
)


def as_page(path: str | os.PathLike[str], title: str, body: str, picture: bytes, alt: str) -> None:
    """Write a page with a picture inside.

    Args:
        path: of the page.
        title: at its top.
        body: HTML of what stands above the picture.
        picture: a PNG file's content.
        alt: the picture in words.
    """
    page = _PAGE.substitute(title=escape(title), body=body, alt=escape(alt), picture=base64.b64encode(picture).decode())
    Path(path).write_text(page, encoding="utf-8")


def write_report(result: CalibrationResult, path: str | os.PathLike[str], title: str = "Calibration") -> None:
    """Write a result as one HTML page that needs no other file.

    Args:
        result: of a fit.
        path: of the page.
        title: at its top.
    """
    rows = "\n".join(_row(result, index) for index in range(len(result.parameters)))
    body = f"<p>{_summary(result)}</p>\n{_HEAD}\n{rows}\n</table>\n{_notes(result)}"
    picture = io.BytesIO()
    result.plot(picture)
    as_page(path, title, body, picture.getvalue(), "data, best fit, estimates and convergence")


def _summary(result: CalibrationResult) -> str:
    state = "converged" if result.converged else '<b class="warning">not converged</b>'
    return (
        f"{escape(result.method)}, {state} ({escape(result.message.rstrip('.'))}) after {len(result.history)} steps, "
        f"{result.evaluations} evaluations, {result.runs} simulator runs and {result.seconds:.3g} s. "
        f"χ² / degrees of freedom = {result.chi_square:.4g} / {result.degrees_of_freedom} = "
        f"{result.reduced_chi_square:.3g}."
    )


def _row(result: CalibrationResult, index: int) -> str:
    parameter = result.parameters[index]
    value, error = result.shown(parameter.name)
    known = result.resolved[parameter.name]
    cells = [
        f"<td>{escape(parameter.name)}</td>",
        f'<td class="number">{value}</td>',
        f'<td class="number">{error}</td>',
        f"<td>{escape(pretty_unit(parameter.unit))}</td>",
        f"<td>{escape(str(parameter.prior))}</td>",
        f"<td>{'' if known else 'not resolved: this is the prior'}</td>",
    ]
    return f"<tr{'' if known else ' class=open'}>{''.join(cells)}</tr>"


def _notes(result: CalibrationResult) -> str:
    return "".join(f'<p class="warning">{escape(line)}</p>' for line in result.warnings)
