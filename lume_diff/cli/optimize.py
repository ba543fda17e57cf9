"""``lume-diff optimize``: Bayesian optimisation of a machine that a model knows roughly, from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lume_diff.cli.fits import ConfigFile, Out, configuration, example_option
from lume_diff.cli.terminal import console, say
from lume_diff.errors import MissingExtraError

EXAMPLE = """\
model: {lattice: design.json, beam: beam.h5}      # what is known of the machine; or entry: my_machine.py:make_model
machine: {entry: my_machine.py:as_built}          # a model in its place, or the machine itself:
# pvs:
#   setpoints: {Q1.k1: "QUAD:1:BCTRL", Q2.k1: "QUAD:2:BCTRL"}
#   outputs: {final.sigma_x: "SCREEN:1:XRMS"}
#   settle: 0.5                                   # s
#   protocol: pva                                 # or ca
variables: {Q1.k1: [-8, 8], Q2.k1: [-8, 8]}
objective: {name: log_size, output: final.sigma_x, transform: log10, goal: minimize}
trainable:                                        # learned on the way
  - {kind: scale, inputs: Q1.k1, prior: {kind: normal, mean: 1.0, std: 0.1}}
generator: upper_confidence_bound                 # or expected_improvement
start: 3                                          # random points
steps: 20
compare: true                                     # the same without the model; on a machine that is a model
"""


def optimize(
    config: ConfigFile = None, out: Out = Path("optimisation"), example: bool = example_option(EXAMPLE)
) -> None:
    """Optimise a machine by Xopt with a model as the prior mean."""
    try:
        from lume_diff.calibration.optimisation.configuration import OptimisationConfig
        from lume_diff.calibration.optimisation.pictures import draw_convergence, write_page
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("xopt", "botorch", "gpytorch"):
            raise
        raise MissingExtraError(f"lume-diff optimize needs {error.name}: pip install lume-diff[xopt]") from error

    settings, file = configuration(config, OptimisationConfig, "optimize")
    study = settings.build(file.parent)
    out.mkdir(parents=True, exist_ok=True)
    with _bar() as show:
        result = study.run(show)
    printer = console()
    printer.print(str(result), soft_wrap=True)
    picture, page = out / "convergence.png", out / "report.html"
    written = result.save(out)
    draw_convergence(result, picture)
    write_page(result, page, f"Optimisation of {file.stem}")
    for path in (*written, picture, page):
        printer.print(f"written: {path}")
    printer.print(f"to go on: cd {out}; python -c 'from xopt import Xopt; X = Xopt.from_file(\"xopt.yaml\"); X.step()'")


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int, float], None]]:
    """Show evaluations as a bar on a terminal, as lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    terminal = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal) as bar:
        tasks = {}

        def show(arm: str, made: int, total: int, best: float) -> None:
            if not terminal.is_terminal:
                say(f"{arm}: {made} of {total} evaluations, best {best:.6g}")
                return
            if arm not in tasks:
                tasks[arm] = bar.add_task("", total=total)
            bar.update(tasks[arm], completed=made, description=f"{arm}: best {best:.6g}")

        yield show
