"""``lume-diff calibrate``: what is off between a model and a machine, from a file that says what was measured."""

from __future__ import annotations

from pathlib import Path

import typer

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
    config: Path | None = typer.Argument(None, metavar="CONFIG.yaml", help="What to fit to what.", show_default=False),
    out: Path = typer.Option(Path("calibration"), "--out", metavar="DIR", help="Where results go."),
    checkpoint: Path | None = typer.Option(
        None, "--checkpoint", metavar="FILE", help="Keep every evaluation here; a fit that was stopped goes on from it."
    ),
    example: bool = typer.Option(False, "--example", help="Print a configuration to start from."),
) -> None:
    """Fit a model's parameters to measured images and numbers."""
    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    from lume_diff.calibration.fit.configuration import CalibrationConfig
    from lume_diff.calibration.fit.report import write_report
    from lume_diff.calibration.fit.yaml_files import read_config
    from lume_diff.errors import ValidationError

    if config is None:
        raise ValidationError("name a configuration; 'lume-diff calibrate --example' prints one to start from")
    settings = read_config(config, CalibrationConfig)
    fit = settings.build(config.parent)
    out.mkdir(parents=True, exist_ok=True)
    result = fit.run(
        settings.method, steps=settings.steps, starts=settings.starts, seed=settings.seed, checkpoint=checkpoint
    )
    printer = console()
    printer.print(str(result), soft_wrap=True)
    numbers, picture, page = out / "result.yaml", out / "result.png", out / "report.html"
    result.save(numbers)
    result.plot(picture)
    write_report(result, page, f"Calibration of {config.stem}")
    for path in (numbers, picture, page):
        printer.print(f"written: {path}")
    if not result.converged:
        say(f"failed: the fit has not converged ({result.message}); see {page}", "red")
        raise typer.Exit(CHECK_FAILED)
