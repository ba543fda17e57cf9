"""``lume-diff gradient``: what moves an output, and how much."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lume_diff.cli.loading import (
    BEAM_HELP,
    CHANGES,
    LATTICE_HELP,
    LINE,
    MACHINE_HELP,
    TRUST,
    check_picture,
    load,
    load_machine,
    matching,
    settings,
    split_commas,
)
from lume_diff.cli.terminal import Column, console, say, table
from lume_diff.errors import GradientError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from torch import Tensor

    from lume_diff.models import LUMEModel
    from lume_diff.plotting import LineElement, Sensitivity

#: Attributes that an operator turns: strengths, voltages, phases. Lengths, tilts and misalignments must be asked for.
STRENGTHS = ("k1", "k2", "k", "angle", "horizontal_angle", "vertical_angle", "voltage", "phase")
_ROUND_OFF = 1e-13  # of the output: what a knob that has nothing to do with it may seem to change
_SIZES = ("line.s", "line.sigma_x", "line.sigma_y")


class Sort(StrEnum):
    """What sensitivities are sorted by."""

    effect = "effect"
    derivative = "derivative"


class Reduce(StrEnum):
    """How an array becomes one number."""

    sum = "sum"
    max = "max"
    mean = "mean"


class Losses(StrEnum):
    """How apertures act."""

    hard = "hard"
    soft = "soft"


def gradient(
    machine: Path | None = typer.Argument(None, metavar="[MACHINE.yaml]", help=MACHINE_HELP, show_default=False),
    lattice: Path | None = typer.Option(None, "--lattice", help=LATTICE_HELP, show_default=False),
    beam: Path | None = typer.Option(None, "--beam", help=BEAM_HELP, show_default=False),
    of: str = typer.Option(..., "--of", metavar="OUTPUT", help="What moves, such as SCR1.sigma_x.", show_default=False),
    wrt: list[str] = typer.Option(
        [],
        "--wrt",
        metavar="NAMES",
        help="Knobs, separated by commas or repeated; Q*.k1 works. Default: all strengths.",
    ),
    at: list[str] = typer.Option([], "--at", metavar="NAME=VALUE", help="Set an input first; may be repeated."),
    reduce: Reduce | None = typer.Option(None, "--reduce", help="Make one number of an array, such as an image."),
    sort: Sort = typer.Option(Sort.effect, "--sort", help="By the effect of a typical change, or the raw derivative."),
    top: int = typer.Option(20, "--top", min=0, help="How many rows; 0 for all."),
    plot: Path | None = typer.Option(None, "--plot", metavar="FILE.png", help="Draw the line with all sensitivities."),
    losses: Losses = typer.Option(Losses.hard, "--losses", help="Edge of apertures; a transmission needs soft."),
    line: str | None = LINE,
    trust: bool = TRUST,
    change: list[str] = CHANGES,
) -> None:
    """Rank knobs by how much they move an output: one run, one backward pass."""
    if plot is not None:
        check_picture(plot, "--plot")
    outputs = [of, *(name for name in _SIZES if name != of)] if plot is not None else [of]
    model: LUMEModel
    if machine is not None and lattice is None and beam is None:
        model = load_machine(machine, change, trust or None)
        model._variable(of)
    elif machine is None and lattice is not None and beam is not None:
        model = load(lattice, beam, line, trust, outputs, losses.value)
    else:
        raise ValidationError("give a machine file, or --lattice and --beam")
    _check_output(model, of, reduce)
    values = settings(model, at)
    values.update(_switched_on(model, of, values))
    if values:
        model.set(values)
    knobs = _knobs(model, split_commas(wrt))
    runs = model.runs
    value, derivatives = differentiate(model, of, knobs, reduce.value if reduce else None)
    runs = model.runs - runs

    from lume_diff.plotting import elements_along

    try:
        elements = elements_along(model)
    except ValidationError:  # no line, such as a network
        if plot is not None:
            raise
        elements = []
    found = [_sensitivity(model, elements, knob, derivatives[knob]) for knob in knobs]
    found.sort(key=lambda item: -_rank(item.effect if sort is Sort.effect else item.derivative))
    title = f"{reduce.value}({of})" if reduce else of
    unit = model.supported_variables[of].unit
    _print(console(), title, unit, value, found, top, runs)
    if plot is not None:
        _write_picture(model, elements, found, title, of, unit, value, plot)
        console().print(f"picture: {plot}")


def _check_output(model: LUMEModel, of: str, reduce: Reduce | None) -> None:
    from lume_diff.variables import TorchNDVariable, TorchScalarVariable

    variable = model.supported_variables[of]
    if isinstance(variable, TorchNDVariable) and reduce is None:
        shape = " x ".join(map(str, variable.shape))
        raise ValidationError(
            f"--of {of!r} is an array of {shape} values and has no single sensitivity: add --reduce sum, --reduce max "
            "or --reduce mean to make one number of it"
        )
    if isinstance(variable, TorchScalarVariable) and reduce is not None:
        raise ValidationError(f"--of {of!r} is one number already: leave --reduce {reduce.value} out")
    if not isinstance(variable, (TorchNDVariable, TorchScalarVariable)):
        raise GradientError(
            f"--of {of!r} is a {type(variable).__name__}, not a number: choose one of its statistics, such as "
            f"'final.sigma_x'"
        )


def _switched_on(model: LUMEModel, of: str, given: dict[str, Any]) -> dict[str, bool]:
    """Return the switch of the diagnostic that is read, if it is off and nobody said that it should be."""
    place, _, quantity = of.rpartition(".")
    switch = f"{place}.is_active"
    if quantity not in ("x", "y", "image") or switch not in model.input_names or switch in given:
        return {}
    if bool(model.get(switch)):
        return {}
    say(f"note: {place} is off in the lattice; switched on ({switch}=true) to be read")
    return {switch: True}


def _knobs(model: LUMEModel, wanted: Sequence[str]) -> list[str]:
    """Return the inputs to differentiate by; of those that a pattern matches, the ones that are numbers."""
    from lume_diff.variables import TorchScalarVariable

    numbers = [n for n in model.input_names if isinstance(model.supported_variables[n], TorchScalarVariable)]
    if not wanted:
        found = [n for n in numbers if n.rpartition(".")[2] in STRENGTHS and not _is_plain_bend(model, n)]
        if not found and model.origin is not None:
            found = numbers  # a control system's names do not end with what they are
        if not found:
            raise ValidationError("the lattice has no strengths to differentiate by: name inputs with --wrt")
    else:
        found = matching(wanted, model.input_names, "--wrt")
        for name in found:
            if name in wanted and name not in numbers:
                kind = type(model.supported_variables[name]).__name__
                raise GradientError(
                    f"--wrt {name!r} is a {kind}, which has no derivative; name inputs that are numbers"
                )
        found = [name for name in found if name in numbers]
    known = [name for name in found if model.get(name) is not None]
    if not known:
        raise ValidationError(f"--wrt {', '.join(wanted)}: no input that it matches has a value to differentiate at")
    return known


def _is_plain_bend(model: LUMEModel, knob: str) -> bool:
    """Tell whether a knob is the gradient of a bend that has none: no power supply turns it."""
    element, _, attribute = knob.rpartition(".")
    is_bend = f"{element}.fringe_integral" in model.input_names
    return is_bend and attribute == "k1" and bool((model.get(knob) == 0.0).all())


def differentiate(
    model: LUMEModel, output: str, knobs: Sequence[str], reduce: str | None = None
) -> tuple[float, dict[str, float]]:
    """Return an output and its derivatives at the set-points, by one backward pass.

    Args:
        model: where.
        output: a number, or an array that ``reduce`` makes one of.
        knobs: numbers.
        reduce: ``"sum"``, ``"max"``, ``"mean"`` or None.

    Returns:
        The value [output unit] and the derivatives [output unit / knob unit].

    Raises:
        GradientError: where the model says that there is none.
    """
    import torch

    reductions: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "max": torch.amax, "mean": torch.mean}
    with torch.enable_grad():
        leaves = {name: model.get(name).detach().clone().requires_grad_() for name in knobs}
        value: Tensor = model(leaves, outputs=[output])[output]
        if reduce is not None:
            value = reductions[reduce](value)
    if not value.requires_grad:  # nothing upstream of it
        return float(value), dict.fromkeys(knobs, 0.0)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    pairs = zip(knobs, found, strict=True)
    return float(value.detach()), {name: 0.0 if g is None else float(g) for name, g in pairs}


def _sensitivity(model: LUMEModel, elements: Sequence[LineElement], knob: str, derivative: float) -> Sensitivity:
    from lume_diff.plotting import Sensitivity

    variable: Any = model.supported_variables[knob]
    element = next((e for e in elements if e.name == knob.rpartition(".")[0]), None)
    return Sensitivity(
        knob=knob,
        unit=variable.unit,
        value=float(model.get(knob)),
        derivative=derivative,
        scale=variable.scale,
        s=None if element is None else element.centre,
        kind="" if element is None else element.kind,
    )


def _rank(value: float) -> float:
    """Return the size to sort by; what is not finite comes first, because it needs a look."""
    return abs(value) if abs(value) < float("inf") else float("inf")


def _print(
    printer: Console, title: str, unit: str, value: float, found: Sequence[Sensitivity], top: int, runs: int
) -> None:
    from lume_diff.plotting import prefixed, quantity
    from lume_diff.plotting.units import per

    largest = max([abs(value), *(abs(item.effect) for item in found if abs(item.effect) < float("inf"))])
    acting = [item for item in found if not abs(item.effect) <= _ROUND_OFF * largest]
    shown = acting[:top] if top else acting
    strongest = max((abs(item.effect) for item in shown if abs(item.effect) < float("inf")), default=0.0)
    factor, effect_unit = prefixed(strongest, unit)
    printer.print(f"{title} = {quantity(value, unit, 6)}")
    printer.print(f"{len(found)} knobs, {runs} run{'s' if runs != 1 else ''} and 1 backward pass")
    printer.print()
    columns = [
        Column("knob", style="cyan"),
        Column("class", dispensable=3),
        Column("s [m]", is_number=True, dispensable=1),
        Column("setting", is_number=True, dispensable=2),
        Column("derivative", is_number=True),
        Column("unit"),
        Column("typical\nchange", is_number=True),
        Column(f"effect\n[{effect_unit or '1'}]", is_number=True, style="bold"),
    ]
    rows = [
        [
            item.knob,
            item.kind,
            "" if item.s is None else f"{item.s:.3f}",
            f"{quantity(item.value, item.unit)}",
            f"{item.derivative:+.6e}",
            per(unit, item.unit),
            quantity(item.scale, item.unit),
            f"{item.effect * factor:+.4g}",
        ]
        for item in shown
    ]
    if printer.is_terminal:
        columns.append(Column("", dispensable=4))
        for row, item in zip(rows, shown, strict=True):
            row.append("█" * round(12 * abs(item.effect) / strongest) if strongest else "")
    if rows:
        printer.print(table(printer, columns, rows))
    if len(acting) > len(shown):
        printer.print(f"and {len(acting) - len(shown)} more that act (--top 0 shows all)")
    if len(found) > len(acting):
        printer.print(f"{len(found) - len(acting)} of the knobs do not act on it to first order")


def _write_picture(
    model: LUMEModel,
    elements: Sequence[LineElement],
    found: Sequence[Sensitivity],
    title: str,
    of: str,
    unit: str,
    value: float,
    path: Path,
) -> None:
    import torch

    from lume_diff.plotting import Envelope, plot_sensitivities

    with torch.no_grad():
        along = model({}, outputs=list(_SIZES))
    s, sigma_x, sigma_y = (along[name].numpy() for name in _SIZES)
    place = of.rpartition(".")[0]
    ends = {element.name: element.s + element.length for element in elements}
    figure = plot_sensitivities(
        elements,
        found,
        title,
        unit,
        envelope=Envelope(s, sigma_x, sigma_y),
        at=ends.get(place, float(s[-1]) if place == "final" else None),
        value=value,
    )
    figure.savefig(path)
