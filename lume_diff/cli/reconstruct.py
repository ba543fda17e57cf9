"""``lume-diff reconstruct``: the bunch that makes measured images, from a file that says what was measured."""

from __future__ import annotations

from pathlib import Path

import typer

from lume_diff.cli.fits import Checkpoint, ConfigFile, Out, configuration, example_option
from lume_diff.cli.terminal import CHECK_FAILED, console, say

EXAMPLE = """\
model: {lattice: line.json, beam: design.h5}      # or machine: machine.yaml
data:                                             # one scan, or several: of screens, with a cavity off and on
  - {file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.1 mm}
parameters:                                       # of machine and screen, fitted with the bunch
  - {kind: blur, prior: {kind: lognormal, median: 3.0e-5, factor: 2.0}}
n_particles: 10000
generator: network                                # or flow
epochs: 1600
ensemble: 3                                       # more than one bunch gives errors
check_ambiguity: true                             # what the scan cannot decide
"""


def reconstruct(
    config: ConfigFile = None,
    out: Out = Path("reconstruction"),
    checkpoint: Checkpoint = None,
    example: bool = example_option(EXAMPLE),
) -> None:
    """Find the bunch at the entrance of a model from images of a screen."""
    from lume_diff.calibration.reconstruction.configuration import ReconstructionConfig
    from lume_diff.calibration.reconstruction.page import write_page

    settings, file = configuration(config, ReconstructionConfig, "reconstruct")
    task = settings.build(file.parent)
    out.mkdir(parents=True, exist_ok=True)
    result = task.run(**settings.options, checkpoint=checkpoint)
    printer = console()
    printer.print(str(result), soft_wrap=True)
    numbers, picture, page = out / "result.yaml", out / "result.png", out / "report.html"
    result.save(numbers)
    result.plot(picture)
    write_page(result, page, picture, f"Reconstruction of {file.stem}")
    for path in (numbers, numbers.with_suffix(".h5"), picture, page):
        printer.print(f"written: {path}")
    if not result.finished:
        say("failed: the fit was stopped before its end; with --checkpoint it goes on from there", "red")
        raise typer.Exit(CHECK_FAILED)
