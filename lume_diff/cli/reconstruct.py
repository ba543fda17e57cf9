"""``lume-diff reconstruct``: the bunch that makes measured images, from a file that says what was measured."""

from __future__ import annotations

from pathlib import Path

import typer

from lume_diff.cli.terminal import CHECK_FAILED, console, say

EXAMPLE = """\
model: {lattice: line.json, beam: design.h5}      # or machine: machine.yaml
data: {file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.1 mm}
parameters:                                       # of machine and screen, fitted with the bunch
  - {kind: blur, prior: {kind: lognormal, median: 3.0e-5, factor: 2.0}}
n_particles: 10000
epochs: 800
ensemble: 3                                       # more than one bunch gives errors
check_ambiguity: true                             # what the scan cannot decide
"""


def reconstruct(
    config: Path | None = typer.Argument(
        None, metavar="CONFIG.yaml", help="Which images, and how to fit.", show_default=False
    ),
    out: Path = typer.Option(Path("reconstruction"), "--out", metavar="DIR", help="Where results go."),
    checkpoint: Path | None = typer.Option(
        None, "--checkpoint", metavar="FILE", help="Keep the state here; a fit that was stopped goes on from it."
    ),
    example: bool = typer.Option(False, "--example", help="Print a configuration to start from."),
) -> None:
    """Find the bunch at the entrance of a model from images of a screen."""
    if example:
        typer.echo(EXAMPLE, nl=False)
        return
    from lume_diff.calibration.fit.yaml_files import read_config
    from lume_diff.calibration.reconstruction.configuration import ReconstructionConfig
    from lume_diff.calibration.reconstruction.page import write_page
    from lume_diff.errors import ValidationError

    if config is None:
        raise ValidationError("name a configuration; 'lume-diff reconstruct --example' prints one to start from")
    settings = read_config(config, ReconstructionConfig)
    task = settings.build(config.parent)
    out.mkdir(parents=True, exist_ok=True)
    result = task.run(**settings.options, checkpoint=checkpoint)
    printer = console()
    printer.print(str(result), soft_wrap=True)
    numbers, picture, page = out / "result.yaml", out / "result.png", out / "report.html"
    result.save(numbers)
    result.plot(picture)
    write_page(result, page, picture, f"Reconstruction of {config.stem}")
    for path in (numbers, numbers.with_suffix(".h5"), picture, page):
        printer.print(f"written: {path}")
    if not result.finished:
        say("failed: the fit was stopped before its end; with --checkpoint it goes on from there", "red")
        raise typer.Exit(CHECK_FAILED)
