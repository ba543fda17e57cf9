"""Time what a facility's names and units add to the model inside, with about 1000 variables; on one torch thread.

    python benchmarks/facility.py [--seconds 3]

The line has a cavity, 250 quadrupoles in kG, 100 correctors in kG*m and 100 BPMs in mm; readbacks have noise. Every
table compares pieces of work that are timed in turns within one run.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import cheetah
import torch
from _fodo import Work, bunch, in_turns, machine, number, strength
from _rows import Row, note

from lume_diff.models import CheetahModel, FacilityMapping, FacilityModel

CELLS, CORRECTORS, MONITORS = 250, 100, 100
CPU = torch.device("cpu")

MAPPING: dict[str, Any] = {
    "variables": {"ACCL:ADES": {"kind": "setpoint", "native": "CAV.voltage", "unit": "MV", "value_range": [0, 100]}},
    "templates": {
        "QUAD": {
            "BCTRL": {
                "kind": "setpoint",
                "native": "{element}.k1",
                "unit": "kG",
                "conversion": {"kind": "quadrupole_field"},
                "value_range": ["{low}", "{high}"],
            },
            "BACT": {"kind": "readback", "of": "{name}:BCTRL", "noise": 1e-4},
        },
        "XCOR": {
            "BCTRL": {
                "kind": "setpoint",
                "native": "{element}.angle",
                "unit": "kG*m",
                "conversion": {"kind": "corrector_field"},
            },
            "BACT": {"kind": "readback", "of": "{name}:BCTRL", "noise": 1e-5},
        },
        "BPMS": {
            "X": {"kind": "reading", "native": "{element}.x", "unit": "mm", "noise": 1e-3},
            "Y": {"kind": "reading", "native": "{element}.y", "unit": "mm", "noise": 1e-3},
            "TMIT": {"kind": "reading", "native": "{element}.charge", "unit": "pC"},
        },
    },
}


def line() -> cheetah.Segment:
    """Return the line."""
    elements: list[cheetah.Element] = [
        cheetah.Cavity(number(1.0), number(2e7), number(0.0), number(2.856e9), name="CAV", dtype=torch.float64)
    ]
    for cell in range(CELLS):
        elements.append(cheetah.Quadrupole(number(0.1), number(strength(cell)), name=f"Q{cell}", dtype=torch.float64))
        if cell < CORRECTORS:
            elements.append(cheetah.HorizontalCorrector(number(0.1), number(0.0), name=f"C{cell}", dtype=torch.float64))
        elements.append(cheetah.Drift(number(0.4), name=f"D{cell}", dtype=torch.float64))
        if cell < MONITORS:
            elements.append(cheetah.BPM(is_active=True, name=f"B{cell}"))
    return cheetah.Segment(elements, name="line").to(torch.float64)


def table() -> list[dict[str, Any]]:
    """Return the elements as a facility keeps them."""
    quadrupoles = [
        {"element": f"Q{i}", "name": f"QUAD:L:{i}", "class": "QUAD", "low": -50.0, "high": 50.0} for i in range(CELLS)
    ]
    correctors = [{"element": f"C{i}", "name": f"XCOR:L:{i}", "class": "XCOR"} for i in range(CORRECTORS)]
    monitors = [{"element": f"B{i}", "name": f"BPMS:L:{i}", "class": "BPMS"} for i in range(MONITORS)]
    return [*quadrupoles, *correctors, *monitors]


def natives(facility: FacilityModel) -> list[str]:
    """Return the native names behind all variables of a facility."""
    knobs = ["CAV.voltage", *(f"Q{i}.k1" for i in range(CELLS)), *(f"C{i}.angle" for i in range(CORRECTORS))]
    readings = [f"B{i}.{key}" for i in range(MONITORS) for key in ("x", "y", "charge")]
    return [*knobs, *readings]


def show(title: str, times: dict[str, float], pairs: dict[str, str]) -> None:
    """Print times, and what each adds to the one that it is compared with."""
    print(f"\n{title}")
    for name, seconds in times.items():
        added = f"{(seconds - times[pairs[name]]) * 1e3:>+9.2f} ms" if name in pairs else ""
        if name in pairs:
            note(Row(f"1000 variables, {title}", name, 1e3 * seconds, "ms", pairs[name], 1e3 * times[pairs[name]]))
        print(f"  {name:<54}{seconds * 1e3:>9.2f} ms {added}")


def show_reads(facility: FacilityModel, other: CheetahModel, rounds: int = 100) -> None:
    """Print the shortest CPU time of a get of everything after a write, the write itself not counted."""
    names, k1 = natives(facility), other.get("Q200.k1").item()
    here = facility.get("QUAD:L:200:BCTRL").item()
    works = {
        "model": (lambda factor: other.set({"Q200.k1": k1 * factor}), lambda: other.get(names)),
        "facility": (lambda factor: facility.set({"QUAD:L:200:BCTRL": here * factor}), facility.get),
    }
    best = dict.fromkeys(works, float("inf"))
    for index in range(rounds):
        for name, (write, read) in works.items():
            write(1.0 + 0.01 * (index % 2))
            begun = time.process_time()
            read()
            best[name] = min(best[name], time.process_time() - begun)
    added = 1e3 * (best["facility"] - best["model"])
    note(Row("1000 variables, get of all after a write", "facility adds to the model", added, "ms", wanted=2.0))
    print(f"\nget of all after a write: model {1e3 * best['model']:.2f} ms, facility {added:+.2f} ms")


def main() -> None:
    """Time everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to time")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    print(machine(CPU))
    inner, other = (CheetahModel(line(), bunch(1000)) for _ in range(2))
    FacilityMapping()  # The first one builds the validators.
    start = time.perf_counter()
    mapping = FacilityMapping.model_validate({**MAPPING, "elements": {"rows": table()}})
    facility = FacilityModel(inner, mapping)
    print(f"\n{len(facility.supported_variables)} variables, built in {time.perf_counter() - start:.2f} s")
    names, k1 = natives(facility), other.get("Q200.k1").item()
    here, voltage = facility.get("QUAD:L:200:BCTRL").item(), itertools.cycle((20.0, 21.0))
    factors = itertools.cycle((1.0, 1.01))

    def shown(values: dict[str, Any]) -> None:
        facility.set(values)
        facility.get()

    def native(values: dict[str, Any]) -> None:
        other.set(values)
        other.get(names)

    quadrupoles = {f"QUAD:L:{i}:BCTRL": facility.get(f"QUAD:L:{i}:BCTRL").item() for i in range(CELLS)}
    strengths = {f"Q{i}.k1": strength(i) for i in range(CELLS)}

    def scaled(values: dict[str, float]) -> dict[str, float]:
        factor = next(factors)
        return {name: value * factor for name, value in values.items()}

    def cavity() -> None:
        shown({"ACCL:ADES": next(voltage)})

    works: dict[str, Work] = {
        "model: get of all, nothing changed": lambda: other.get(names),
        "facility: get of all, nothing changed": facility.get,
        "model: set one quadrupole, get of all": lambda: native({"Q200.k1": k1 * next(factors)}),
        "facility: set one quadrupole, get of all": lambda: shown({"QUAD:L:200:BCTRL": here * next(factors)}),
        "model: set 250 quadrupoles, get of all": lambda: native(scaled(strengths)),
        "facility: set 250 quadrupoles, get of all": lambda: shown(scaled(quadrupoles)),
        "facility: set the cavity upstream, get of all": cavity,
    }
    with torch.no_grad():
        times = in_turns(works, CPU, seconds)
    pairs = {name: name.replace("facility", "model") for name in works if name.startswith("facility")}
    pairs["facility: set the cavity upstream, get of all"] = "model: set 250 quadrupoles, get of all"
    show("without a graph", times, pairs)
    with torch.no_grad():
        show_reads(facility, other)


if __name__ == "__main__":
    main()
