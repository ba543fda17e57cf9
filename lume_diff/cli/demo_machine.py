"""The part of ``lume-diff demo`` that operates a machine by its control-system names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lume_diff.cli.terminal import Column, table

if TYPE_CHECKING:
    from rich.console import Console

_AGREEMENT = 0.02  # between the size of an image, in pixels, and that of its particles


def operate(printer: Console, folder: Path) -> tuple[Path, str]:
    """Load the example machine, differentiate its screen by settings of all stages, and scan a quadrupole.

    Returns:
        The picture of the scan, and what is wrong, empty for nothing.
    """
    from lume_diff.demo import SCANNED, scan_quadrupole, slopes_of_spot, write_scan
    from lume_diff.machine import example_machine, load_model

    machine = load_model(example_machine())
    machine.set({SCANNED: -1.5})
    count = len(machine.supported_variables)
    printer.print(f"5. A machine file of {count} variables: what moves the size on a screen", style="bold")
    slopes = slopes_of_spot(machine)
    rows = []
    for name, (backward, difference) in slopes.items():
        unit = machine.supported_variables[name].unit
        rows.append(
            [name, f"{float(machine.get(name)):.4g} {unit}", f"{backward:+.5g}", f"{difference:+.5g}", f"µm/{unit}"]
        )
    columns = [
        Column("variable", style="cyan"),
        Column("setting", is_number=True),
        Column("backpropagation\nby the image", is_number=True),
        Column("difference\nby particles", is_number=True),
        Column("unit"),
    ]
    printer.print(table(printer, columns, rows))
    scan = scan_quadrupole(machine)
    waists = " and ".join(f"{float(waist):+.1f}" for waist in scan.waists)
    printer.print(f"A scan of {SCANNED} has its waists in x and y at {waists} kG.")
    printer.print()
    path = folder / "quadrupole_scan.png"
    write_scan(machine, scan, path)
    worst = max(abs(backward - difference) / abs(difference) for backward, difference in slopes.values())
    problems = [f"slopes differ by {worst:.1e}, allowed {_AGREEMENT:.0e}"] if worst > _AGREEMENT else []
    problems += [] if scan.passes_both else ["the scan has no waist in both planes"]
    return path, "; ".join(problems)
