"""Time what a facility's names and units add to the model inside, with about 1000 variables; on one torch thread.

    python benchmarks/facility.py [--seconds 3]

The line has a cavity, 250 quadrupoles in kG, 100 correctors in kG*m and 100 BPMs in mm; readbacks have noise. Every
table compares pieces of work that are timed in turns within one run.
"""

from __future__ import annotations

import argparse
import statistics
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


def native_writes(model: CheetahModel) -> dict[str, dict[str, float]]:
    """Return what the writes of ``show_writes`` amount to for the model inside."""
    quadrupoles = {f"Q{i}.k1": 1.01 * strength(i) for i in range(CELLS)}
    voltage = 1.01 * model.get("CAV.voltage").item()
    elements = [f"Q{i}" for i in range(CELLS)]
    before, after = (model.reference_energy(inputs, elements) for inputs in ({}, {"CAV.voltage": voltage}))
    follow = {f"Q{i}.k1": strength(i) * float(before[name] / after[name]) for i, name in enumerate(elements)}
    angles = {f"C{i}.angle": 0.0 for i in range(CORRECTORS)}
    return {
        "one quadrupole": {"Q200.k1": quadrupoles["Q200.k1"]},
        "250 quadrupoles": quadrupoles,
        "the cavity": {"CAV.voltage": voltage, **follow, **angles},
    }


def show_writes(facility: FacilityModel, other: CheetahModel, rounds: int = 60) -> None:
    """Print the median CPU times of a write and of a get of everything after it.

    Before every write both are at rest, so that the model does the same work alone as inside the facility.
    """
    fields = {f"QUAD:L:{i}:BCTRL": 1.01 * facility.baseline(f"QUAD:L:{i}:BCTRL").item() for i in range(CELLS)}
    writes = {
        "one quadrupole": {"QUAD:L:200:BCTRL": fields["QUAD:L:200:BCTRL"]},
        "250 quadrupoles": fields,
        "the cavity": {"ACCL:ADES": 1.01 * facility.baseline("ACCL:ADES").item()},
    }
    other.reset()
    names, natively = natives(facility), native_writes(other)
    print("\nCPU time, median: a write of ..., and the get of all after it")
    for what, values in writes.items():
        works = {"model": (other, natively[what], names), "facility": (facility, values, None)}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, (model, written, read) in works.items():
                model.reset()
                model.get(read)
                start = time.process_time()
                model.set(written)
                begun = time.process_time()
                model.get(read)
                times[name].append((begun - start, time.process_time() - begun))
        (old_set, old_get), (new_set, new_get) = (
            [1e3 * statistics.median(column) for column in zip(*found, strict=True)] for found in times.values()
        )
        print(
            f"  {what:<16} set: model {old_set:>6.2f} ms, facility {new_set - old_set:>+6.2f} ms;   "
            f"get: model {old_get:>6.2f} ms, facility {new_get - old_get:>+6.2f} ms"
        )
        case = f"1000 variables, get of all after a write of {what}"
        note(Row(case, "facility adds to the model", new_get - old_get, "ms", wanted=2.0))


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
    names = natives(facility)
    works: dict[str, Work] = {
        "model: get of all, nothing changed": lambda: other.get(names),
        "facility: get of all, nothing changed": facility.get,
    }
    with torch.no_grad():
        times = in_turns(works, CPU, seconds)
    pairs = {name: name.replace("facility", "model") for name in works if name.startswith("facility")}
    show("without a graph", times, pairs)
    with torch.no_grad():
        show_writes(facility, other)


if __name__ == "__main__":
    main()
