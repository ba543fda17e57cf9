"""Report: a reconstruction as a table for people, and as plain values for files."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lume_diff.plotting.units import prefixed, pretty_unit

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.result import Reconstruction


def as_text(result: Reconstruction) -> str:
    """Return a table of bunch, machine, pointing and images."""
    task = result.task
    units = {**result.reported, **{parameter.name: parameter.unit for parameter in task.parameters}}
    width = max(map(len, units))
    conditions = result.conditional_on
    note = f"   if {' and '.join(conditions)}" if conditions else ""
    lines = [f"{'':{width}}  {'value':>10} {'error':>9}"]
    for name, unit in units.items():
        value, error = result.statistic(name)
        factor, shown = prefixed(value, unit)
        spread = "-" if math.isnan(error) else f"{error * factor:.2g}"
        open_ = note if name.startswith(("norm_emit", "twiss")) else ""
        lines.append(f"{name:{width}}  {value * factor:10.4g} {spread:>9} {pretty_unit(shown):6}{open_}".rstrip())
    if len(result.members) < 2:
        lines.append("no errors: they take an ensemble, run(ensemble=5)")
    jitter = {name: f"{1e3 * value:.3g} mm" for name, value in result.jitter.items()}
    lines.append(f"pointing from setting to setting, rms: x {jitter['x']}, y {jitter['y']}")
    if "shot x" in jitter:
        lines.append(f"pointing from shot to shot, rms: x {jitter['shot x']}, y {jitter['shot y']}")
    lines.append(f"fit: {result.fit}")
    if result.ambiguity is not None:
        lines += ["what else explains the images, by short fits:", str(result.ambiguity)]
    state = "finished" if result.finished else "STOPPED before its end"
    lines.append(
        f"{state}: {len(result.history)} epochs, {task.n_particles} particles, {len(result.members)} "
        f"bunch{'es' if len(result.members) > 1 else ''}, {result.runs} model runs, {result.seconds:.3g} s "
        f"({result.cpu_seconds:.3g} CPU-s), seed {task.seed}"
    )
    return "\n".join(lines)


def as_plain(result: Reconstruction) -> dict[str, Any]:
    """Return everything but data and bunch as plain values."""
    task = result.task
    parameters = {parameter.name: parameter.unit for parameter in task.parameters}
    numbers = {
        name: dict(zip(("value", "standard_error"), result.statistic(name), strict=True)) | {"unit": unit}
        for name, unit in {**result.reported, **parameters}.items()
    }
    return {
        "statistics": {name: numbers[name] for name in result.reported},
        "parameters": {name: numbers[name] for name in parameters},
        "conditional_on": result.conditional_on,
        "ambiguity": None if result.ambiguity is None else result.ambiguity.plain(),
        "pointing_rms": result.jitter,
        "fit": {name: value.tolist() for name, value in result.fit._asdict().items()},
        "data": [
            {
                "screen": screen.data.screen,
                "settings": {name: value.tolist() for name, value in screen.data.settings.items()},
            }
            for screen in task.screens
        ],
        "scale": task.entrance.scale.tolist(),
        "n_particles": task.n_particles,
        "ensemble": len(result.members),
        "seed": task.seed,
        "finished": result.finished,
        "runs": result.runs,
        "seconds": result.seconds,
        "history": [[row.member, row.part, row.loss, row.aligned, row.image] for row in result.history],
    }
