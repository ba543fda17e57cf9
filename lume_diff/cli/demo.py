"""``lume-diff demo``: the whole story in a minute."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lume_diff.cli.demo_machine import operate
from lume_diff.cli.terminal import CHECK_FAILED, Column, console, installed_version, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from lume_diff.calibration import CalibrationResult
    from lume_diff.demo import GradientCheck, Matching
    from lume_diff.models import StagedModel

_AGREEMENT = 1e-6
_ERRORS_OFF = 4.0


def demo(
    out: Path = typer.Option(Path("demo_output"), "--out", metavar="DIR", help="Where pictures and the summary go."),
    seed: int = typer.Option(1, "--seed", help="Of the errors that the quadrupoles start with."),
    target: float = typer.Option(200.0, "--target", min=100.0, max=500.0, help="Requested rms beam size [µm]."),
) -> None:
    """Backpropagate through three stages, make the beam round, find hidden errors, and operate a machine by its PVs."""
    import torch

    from lume_diff.demo import (
        as_found,
        build_line,
        check_gradient,
        find_errors,
        hidden_errors,
        match_round,
        measure_screens,
        worst_pull,
        write_pictures,
    )

    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a bunch this small is done before further threads have woken up
    started = time.perf_counter()
    printer = console(record=True)
    try:
        line = build_line()
        _print_line(printer, line)
        settings = as_found(line, seed)
        with _progress(printer, "differences", len(settings)) as step:
            check = check_gradient(line, settings, target * 1e-6, lambda knob: step(knob))
        _print_check(printer, check)
        with _progress(printer, "matching", None) as step:
            matching = match_round(
                line,
                settings,
                target * 1e-6,
                lambda n, i: step(f"iteration {n}: {i.sigma_x * 1e6:.1f} x {i.sigma_y * 1e6:.1f} µm"),
            )
        _print_matching(printer, line, matching)
        pictures = write_pictures(line, settings, matching.after, matching.target, out)
        errors = hidden_errors(seed)
        data = measure_screens(line, matching.after, errors, seed)
        with _progress(printer, "calibration", None) as step:
            fit = find_errors(line, data, lambda n, cost, values: step(f"step {n}: cost {cost:.1f}"))
        _print_calibration(printer, fit, errors)
        pictures.append(out / "calibration.png")
        fit.plot(pictures[-1], errors)
        picture, problem = operate(printer, out)
        pictures.append(picture)
    finally:
        torch.set_num_threads(threads)
    seconds = time.perf_counter() - started
    off = worst_pull(fit, errors)
    passed = {
        "gradient": check.worst <= _AGREEMENT,
        "matching": matching.is_round,
        "calibration": fit.converged and off <= _ERRORS_OFF,
        "machine": not problem,
    }
    summary = out / "summary.json"
    summary.write_text(
        json.dumps(_summary(seed, check, matching, fit, errors, passed, pictures, seconds), indent=2) + "\n",
        encoding="utf-8",
    )
    for path in (*pictures, summary, out / "summary.txt"):
        printer.print(f"written: {path}")
    printer.print(f"{seconds:.1f} s, {line.runs} runs of a stage in all")
    lines = "\n".join(text.rstrip() for text in printer.export_text().splitlines())
    (out / "summary.txt").write_text(lines + "\n", encoding="utf-8")
    _judge(check, matching, off, problem, passed)


def _judge(check: GradientCheck, matching: Matching, off: float, problem: str, passed: dict[str, bool]) -> None:
    if not passed["gradient"]:
        say(f"failed: backpropagation and differences differ by {check.worst:.1e}; allowed {_AGREEMENT:.0e}", "red")
    if not passed["matching"]:
        last = matching.history[-1]
        say(
            f"failed: the beam is {last.sigma_x * 1e6:.1f} x {last.sigma_y * 1e6:.1f} µm with {last.charge:.1%} of it "
            f"on the screen; wanted {matching.target * 1e6:.1f} µm in both planes",
            "red",
        )
    if not passed["calibration"]:
        say(f"failed: an estimate is {off:.1f} of its standard errors off; allowed {_ERRORS_OFF:.0f}", "red")
    if not passed["machine"]:
        say(f"failed: of the machine, {problem}", "red")
    if not all(passed.values()):
        raise typer.Exit(CHECK_FAILED)


@contextmanager
def _progress(printer: Console, what: str, total: int | None) -> Iterator[Callable[[str], None]]:
    """Show a bar on a terminal that goes away when the work is done."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=printer, transient=True, disable=not printer.is_terminal) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda note: bar.update(task, advance=1 if total else 0, note=note)


def _print_line(printer: Console, line: StagedModel) -> None:
    from lume_diff.demo import KNOBS, stage_of
    from lume_diff.plotting import elements_along, quantity

    printer.print("1. A line of three stages, from files that come with lume_diff", style="bold")
    elements = elements_along(line)
    rows = []
    for name, stage in line.stages.items():
        own = [element for element in elements if element.stage == name]
        energies = stage({}, outputs=["line.reference_energy"])["line.reference_energy"].reshape(-1)
        begin, end = (quantity(float(energies[i]), "eV") for i in (0, -1))
        quadrupoles = ", ".join(knob.partition(".")[0] for knob in KNOBS if stage_of(line, knob) == name)
        length = sum(element.length for element in own)
        rows.append([name, str(len(own)), f"{length:.2f}", begin if begin == end else f"{begin} -> {end}", quadrupoles])
    columns = [
        Column("stage", style="cyan"),
        Column("elements", is_number=True),
        Column("length [m]", is_number=True),
        Column("energy"),
        Column("quadrupoles"),
    ]
    printer.print(table(printer, columns, rows))
    printer.print()


def _print_check(printer: Console, check: GradientCheck) -> None:
    printer.print("2. Gradient of a loss on the screen image, back through all stages", style="bold")
    rows = [
        [
            k.knob,
            k.stage,
            f"{k.setting:+.4f}",
            f"{k.backward:+.10e}",
            f"{k.difference:+.10e}",
            f"{k.relative:.1e}",
        ]
        for k in check.knobs
    ]
    columns = [
        Column("knob", style="cyan"),
        Column("stage", dispensable=1),
        Column("k1\n[1/m^2]", is_number=True),
        Column("backpropagation", is_number=True),
        Column("central\ndifference", is_number=True),
        Column("relative\ndifference", is_number=True),
    ]
    printer.print(table(printer, columns, rows))
    verdict = "agree" if check.worst <= _AGREEMENT else "DO NOT AGREE"
    printer.print(
        f"They {verdict}: largest relative difference {check.worst:.1e}, allowed {_AGREEMENT:.0e}. "
        f"Backpropagation took {check.runs_backward} runs of a stage, differences {check.runs_difference}."
    )
    printer.print()


def _print_matching(printer: Console, line: StagedModel, matching: Matching) -> None:
    from lume_diff.demo import stage_of

    goal, first, last = matching.target * 1e6, matching.history[0], matching.history[-1]
    printer.print(f"3. Quadrupoles for a round beam of {goal:.0f} µm on the screen", style="bold")
    rows = [
        ["sigma_x [µm]", "screen", f"{first.sigma_x * 1e6:.2f}", f"{last.sigma_x * 1e6:.2f}", f"{goal:.2f}"],
        ["sigma_y [µm]", "screen", f"{first.sigma_y * 1e6:.2f}", f"{last.sigma_y * 1e6:.2f}", f"{goal:.2f}"],
        ["charge seen [%]", "screen", f"{first.charge * 100:.2f}", f"{last.charge * 100:.2f}", "100"],
    ]
    rows += [
        [f"{knob} [1/m^2]", stage_of(line, knob), f"{before:+.4f}", f"{matching.after[knob]:+.4f}", ""]
        for knob, before in matching.before.items()
    ]
    columns = [
        Column("quantity", style="cyan"),
        Column("where"),
        Column("before", is_number=True),
        Column("after", is_number=True),
        Column("wanted", is_number=True),
    ]
    printer.print(table(printer, columns, rows))
    printer.print(
        f"{'Round' if matching.is_round else 'NOT round'} after {len(matching.history) - 1} iterations of L-BFGS and "
        f"{matching.runs} runs of a stage: off by {last.error(matching.target):.1e} of the size."
    )
    printer.print()


def _print_calibration(printer: Console, fit: CalibrationResult, errors: dict[str, float]) -> None:
    settings = len(fit.calibration.data[0])
    printer.print(f"4. Hidden errors of the quadrupoles, from noisy images at {settings} settings", style="bold")
    rows = []
    for name, value in fit.values.items():
        error, truth = fit.errors[name], errors[name]
        off = f"{(value - truth) / error:+.1f}"
        rows.append([name, f"{value - 1.0:+.3%}", f"{error:.3%}", f"{truth - 1.0:+.3%}", off])
    columns = [
        Column("quadrupole", style="cyan"),
        Column("error found", is_number=True),
        Column("standard\nerror", is_number=True),
        Column("truth", is_number=True),
        Column("off by\n[standard errors]", is_number=True),
    ]
    printer.print(table(printer, columns, rows))
    printer.print(
        f"{'Converged' if fit.converged else 'NOT converged'} after {len(fit.history)} steps of {fit.method} and "
        f"{fit.runs} runs of a stage: chi^2 / degrees of freedom = {fit.chi_square:.1f} / {fit.degrees_of_freedom}."
    )
    printer.print()


def _summary(
    seed: int,
    check: GradientCheck,
    matching: Matching,
    fit: CalibrationResult,
    errors: dict[str, float],
    passed: dict[str, bool],
    pictures: list[Path],
    seconds: float,
) -> dict[str, Any]:
    packages = ("lume-diff", "torch", "cheetah-accelerator", "openpmd-beamphysics")
    return {
        "passed": passed,
        "seed": seed,
        "gradient": {
            "loss": check.loss,
            "worst_relative_difference": check.worst,
            "allowed": _AGREEMENT,
            "runs_backward": check.runs_backward,
            "runs_difference": check.runs_difference,
            "knobs": [{**asdict(knob), "relative": knob.relative} for knob in check.knobs],
        },
        "matching": asdict(matching),
        "calibration": {
            "truth": errors,
            "found": fit.values,
            "standard_errors": fit.errors,
            "chi_square": fit.chi_square,
            "degrees_of_freedom": fit.degrees_of_freedom,
            "runs": fit.runs,
        },
        "pictures": [path.name for path in pictures],
        "seconds": seconds,
        "versions": {name: installed_version(name) for name in packages},
    }
