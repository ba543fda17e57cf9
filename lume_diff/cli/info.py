"""``lume-diff info``: what is in a lattice, and what can be set and read."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lume_diff.cli.loading import (
    BEAM_HELP,
    CHANGES,
    LATTICE_HELP,
    LINE,
    MACHINES,
    TRUST,
    load,
    load_machine,
    reference_particle,
)
from lume_diff.cli.terminal import Column, console, table
from lume_diff.errors import LatticeError, ValidationError, nearest_names

if TYPE_CHECKING:
    from rich.console import Console

    from lume_diff.models import CheetahModel, LUMEModel
    from lume_diff.plotting import LineElement
    from lume_diff.variables import Variable


def info(
    lattice: Path = typer.Argument(
        metavar="LATTICE", help=f"{LATTICE_HELP[:-1]}; or a machine file (.yaml).", show_default=False
    ),
    beam: Path | None = typer.Option(None, "--beam", help=BEAM_HELP),
    inputs: bool = typer.Option(False, "--inputs", help="List the inputs: unit, default, limits."),
    outputs: bool = typer.Option(False, "--outputs", help="List the outputs."),
    element: str | None = typer.Option(None, "--element", metavar="NAME", help="Only what belongs to this element."),
    line: str | None = LINE,
    trust: bool = TRUST,
    change: list[str] = CHANGES,
) -> None:
    """Show the elements of a lattice, what can be set and what can be read."""
    if lattice.suffix.lower() in MACHINES:
        _machine_info(lattice, change, trust, inputs, outputs, element)
        return
    if change:
        raise ValidationError("--set changes machine files (.yaml); a lattice file has no places to change")
    model = load(lattice, beam if beam is not None else reference_particle(), line, trust)
    from lume_diff.plotting import elements_along

    printer = console()
    elements = elements_along(model)
    if element is not None and element not in (known := [e.name for e in elements]):
        raise LatticeError(f"--element {element!r} is not in {str(lattice)!r}{nearest_names(element, known)}")
    if element is not None:
        elements = [e for e in elements if e.name == element]
    elif not (inputs or outputs):
        _print_summary(printer, model, lattice, elements, beam)
    if not (inputs or outputs):
        _print_elements(printer, model, elements)
    if inputs or element is not None:
        names = [n for n in model.input_names if element is None or n.startswith(f"{element}.")]
        _print_inputs(printer, model, names)
    if outputs or element is not None:
        names = [n for n in model.output_names if element is None or n.startswith(f"{element}.")]
        _print_outputs(printer, model, names)


def _machine_info(path: Path, change: list[str], trust: bool, inputs: bool, outputs: bool, element: str | None) -> None:
    """Show what a machine file describes."""
    model = load_machine(path, change, trust or None)
    printer = console()
    shown = [n for n in model.supported_variables if element is None or n.rpartition(".")[0] == element]
    if not shown:
        places = sorted({name.rpartition(".")[0] for name in model.supported_variables})
        raise LatticeError(f"--element {element!r} is not in {str(path)!r}{nearest_names(str(element), places)}")
    machine = model.origin
    printer.print(f"{path}: {len(model.input_names)} inputs, {len(model.output_names)} outputs")
    if machine.description:
        printer.print(machine.description)
    for name, stage in getattr(machine.model, "stages", {"model": machine.model}).items():
        printer.print(f"  {name}: {stage.backend}")
    everything = not (inputs or outputs)
    if inputs or everything:
        _print_inputs(printer, model, [name for name in shown if name in model.input_names])
    if outputs or everything:
        _print_outputs(printer, model, [name for name in shown if name in model.output_names])


def _print_summary(
    printer: Console, model: CheetahModel, lattice: Path, elements: list[LineElement], beam: Path | None
) -> None:
    from lume_diff.plotting import quantity

    end = elements[-1].s + elements[-1].length
    counted = f"{len(model.input_names)} inputs, {len(model.output_names)} outputs"
    printer.print(f"{lattice}: {len(elements)} elements, {end:.6g} m, {counted}")
    if beam is None:
        printer.print("Beam: none given (--beam), energies and sizes are not known")
    else:
        bunch = model.get("initial_particles")
        sizes = ("sigma_x", "sigma_y", "sigma_t", "norm_emit_x", "norm_emit_y")
        shown = ", ".join(f"{key} {quantity(float(bunch[key]), bunch.units(key))}" for key in sizes)
        charge, energy = (quantity(float(bunch[key]), bunch.units(key)) for key in ("charge", "mean_energy"))
        end_energy = float(model({}, outputs=["final.reference_energy"])["final.reference_energy"])
        printer.print(
            f"Beam: {beam}, {len(bunch)} {bunch.species}s, {charge}, {energy} at the start, "
            f"{quantity(end_energy, 'eV')} at the end"
        )
        printer.print(f"      {shown}")
    printer.print()
    lengths: defaultdict[str, float] = defaultdict(float)
    for element in elements:
        lengths[element.kind] += element.length
    counts = Counter(element.kind for element in elements)
    rows = [[kind, str(count), f"{lengths[kind]:.6g}"] for kind, count in counts.most_common()]
    rows.append(["all", str(len(elements)), f"{end:.6g}"])
    columns = [Column("class"), Column("count", is_number=True), Column("length [m]", is_number=True)]
    printer.print(table(printer, columns, rows))
    printer.print()


def _print_elements(printer: Console, model: CheetahModel, elements: list[LineElement]) -> None:
    rows = [
        [
            f"{element.s:.4f}",
            element.name,
            element.kind,
            f"{element.length:.4f}",
            _strength(model, element),
            ", ".join(n.rpartition(".")[2] for n in _inputs_of(model, element.name)),
        ]
        for element in elements
    ]
    columns = [
        Column("s [m]", is_number=True),
        Column("element", style="cyan"),
        Column("class"),
        Column("length [m]", is_number=True),
        Column("strength", wraps=True),
        Column("inputs", style="dim", wraps=True),
    ]
    printer.print(table(printer, columns, rows))


def _inputs_of(model: CheetahModel, element: str) -> list[str]:
    return [name for name in model.input_names if name.rpartition(".")[0] == element]


def _strength(model: CheetahModel, element: LineElement) -> str:
    """Return what an element does, in a few words."""
    from lume_diff.plotting import quantity

    found = []
    if element.strength is not None:
        found.append(f"{element.attribute} {quantity(element.strength, element.unit)}")
    if element.kind == "Cavity":
        found.append(f"phase {float(model.get(f'{element.name}.phase')):g} deg")
    image = model.supported_variables.get(f"{element.name}.image")
    if image is not None:
        (ny, nx), size = image.shape, image.pixel_size  # type: ignore[attr-defined]
        found.append(f"{nx} x {ny} pixels" + ("" if size is None else f" of {quantity(size[0], 'm')}"))
    if f"{element.name}.is_active" in model.input_names:
        found.append("on" if model.get(f"{element.name}.is_active") else "off")
    return ", ".join(found)


def _print_inputs(printer: Console, model: LUMEModel, names: list[str]) -> None:
    variables = [model.supported_variables[name] for name in names]
    rows = [
        [
            variable.name,
            _type(variable),
            variable.unit,
            _value(model, variable),
            _limits(variable),
            _number(getattr(variable, "scale", None)),
            variable.description,
        ]
        for variable in variables
    ]
    columns = [
        Column("input", style="cyan"),
        Column("type"),
        Column("unit"),
        Column("default", is_number=True),
        Column("limits"),
        Column("typical\nchange", is_number=True),
        Column("description", style="dim", wraps=True),
    ]
    printer.print(table(printer, columns, rows, f"{len(rows)} inputs"))


def _print_outputs(printer: Console, model: LUMEModel, names: list[str]) -> None:
    variables = [model.supported_variables[name] for name in names]
    rows = [[v.name, _type(v), v.unit, _shape(v), v.description] for v in variables]
    columns = [
        Column("output", style="cyan"),
        Column("type"),
        Column("unit"),
        Column("shape"),
        Column("description", style="dim", wraps=True),
    ]
    printer.print(table(printer, columns, rows, f"{len(rows)} outputs"))


def _type(variable: Variable) -> str:
    words = {
        "TorchScalarVariable": "number",
        "TorchNDVariable": "array",
        "BoolVariable": "switch",
        "EnumVariable": "choice",
        "IntVariable": "integer",
        "StrVariable": "text",
        "ParticleGroupVariable": "bunch",
        "MomentsVariable": "moments",
    }
    return words.get(type(variable).__name__, type(variable).__name__)


def _shape(variable: Variable) -> str:
    return " x ".join(map(str, getattr(variable, "shape", None) or ()))


def _value(model: LUMEModel, variable: Variable) -> str:
    if _type(variable) in ("bunch", "moments"):
        return "the beam"
    value: Any = model.get(variable.name)
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if value.dim():
        return "array"
    return str(bool(value)).lower() if _type(variable) == "switch" else _number(float(value))


def _limits(variable: Variable) -> str:
    limits = getattr(variable, "value_range", None)
    if limits is None:
        return "none"
    return f"{_number(limits[0])} to {_number(limits[1])}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
