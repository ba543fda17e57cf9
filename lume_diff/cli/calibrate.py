"""``lume-diff calibrate``: what is off between a model and a machine, from a file that says what was measured."""

from __future__ import annotations

from pathlib import Path

import typer

from lume_diff.cli.fits import Checkpoint, ConfigFile, Out, configuration, example_option
from lume_diff.cli.terminal import CHECK_FAILED, console, say

EXAMPLE = """\
model: {lattice: line.json, beam: beam.h5}        # or machine: machine.yaml
data:
  - {file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.1 mm}
parameters:
  - {kind: scale, inputs: Q1.k1, prior: {kind: normal, mean: 1.0, std: 0.02}}
  - {kind: offset, inputs: SCR1.misalignment_x, unit: m, prior: {kind: normal, mean: 0.0, std: 1.0e-3}}
likelihood: moments
method: levenberg-marquardt
"""


def calibrate(
    config: ConfigFile = None,
    out: Out = Path("calibration"),
    checkpoint: Checkpoint = None,
    example: bool = example_option(EXAMPLE),
) -> None:
    """Fit a model's parameters to measured images and numbers."""
    from lume_diff.calibration.fit.configuration import CalibrationConfig
    from lume_diff.calibration.fit.report import write_report

    settings, file = configuration(config, CalibrationConfig, "calibrate")
    fit = settings.build(file.parent)
    out.mkdir(parents=True, exist_ok=True)
    result = fit.run(
        settings.method, steps=settings.steps, starts=settings.starts, seed=settings.seed, checkpoint=checkpoint
    )
    printer = console()
    printer.print(str(result), soft_wrap=True)
    numbers, arrays, picture, page = (out / name for name in ("result.yaml", "result.h5", "result.png", "report.html"))
    result.save(numbers)
    result.save(arrays)
    result.plot(picture)
    write_report(result, page, f"Calibration of {file.stem}")
    for path in (numbers, arrays, picture, page):
        printer.print(f"written: {path}")
    if not result.converged:
        say(f"failed: the fit has not converged ({result.message}); see {page}", "red")
        raise typer.Exit(CHECK_FAILED)
