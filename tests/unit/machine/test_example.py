"""The example machine that comes with the package."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import lume_diff as ld
from lume_diff.machine import check
from lume_diff.models import FacilityModel
from lume_diff.testing import check_model

F64 = torch.float64
SCREENS = "OTRS:DIAG0:420", "OTRS:DIAG0:525"
BEHIND = ["WIRE:DIAG0:424:XRMS", "BPMS:DIAG0:470:X", "OTRS:DIAG0:525:XRMS"]


@pytest.fixture(scope="module")
def loaded() -> FacilityModel:
    return load()


@pytest.fixture
def machine(loaded: FacilityModel) -> FacilityModel:
    loaded.reset()
    return loaded


def load(**changes: Any) -> FacilityModel:
    model = ld.load_model(ld.example_machine(), changes=changes)
    assert isinstance(model, FacilityModel)
    return model


def test_it_is_right(machine: FacilityModel) -> None:
    assert check(ld.example_machine()) == []
    assert check(ld.example_machine(), changes={"stages.injector": "injector_moments.yaml"}) == []
    assert len(machine.supported_variables) == 74
    assert all(variable.unit for name, variable in machine.supported_variables.items() if name.endswith("BCTRL"))


def test_positions_in_the_table_are_those_of_the_lattices() -> None:
    folder, start, centres = ld.example_machine().parent, 0.0, {}
    for name in ("linac", "diag0"):
        lattice = json.loads((folder / f"{name}.json").read_text())
        for element in lattice["lattices"][name]:
            length = lattice["elements"][element][1].get("length", 0.0)
            centres[element] = start + 0.5 * length
            start += length
    with (folder / "elements.csv").open(newline="") as file:
        table = {row["element"]: float(row["s"]) for row in csv.DictReader(file)}
    assert table == pytest.approx({element: centres[element] for element in table})
    assert {e for e in centres if not e.startswith("D")} == set(table)


def test_the_design(machine: FacilityModel) -> None:
    """A round beam of some ten pixels, all of it on the screen, and the same size on the second one."""
    sizes = [machine.get(f"{SCREENS[0]}:{plane}RMS") / machine.get(f"{SCREENS[0]}:RESOLUTION") for plane in "XY"]
    assert all(8.0 < float(size) < 15.0 for size in sizes)
    assert float(sizes[0]) == pytest.approx(float(sizes[1]), rel=0.05)
    assert float(machine.get(f"{SCREENS[0]}:IMAGE").sum()) == pytest.approx(250e-12)
    machine.set({f"{SCREENS[0]}:PNEUMATIC": "OUT", f"{SCREENS[1]}:PNEUMATIC": "IN"})
    assert float(machine.get("OTRS:DIAG0:525:XRMS")) == pytest.approx(110.0, rel=0.1)
    assert float(machine.get("REFS:DIAG0:1:EACT")) == pytest.approx(135.0, abs=1.0)


def test_a_scan_passes_a_waist_in_both_planes(machine: FacilityModel) -> None:
    field = torch.linspace(-6.0, 6.0, 25, dtype=F64)
    names = [f"{SCREENS[0]}:{plane}RMS" for plane in "XY"]
    for sizes in machine({"QUAD:DIAG0:260:BCTRL": field}, outputs=names).values():
        assert 5 < int(sizes.argmin()) < 20
        assert 20.0 < float(sizes.min()) < 40.0
        assert float(sizes.max()) < 0.25 * 360 * 10.0


def test_an_inserted_screen_stops_the_beam(machine: FacilityModel) -> None:
    assert all(bool(value.isnan()) for value in machine.get(BEHIND).values())
    assert float(machine.get("BPMS:DIAG0:470:TMIT")) == 0.0
    assert float(machine.get("BPMS:DIAG0:270:TMIT")) == pytest.approx(250e-12 / 1.602176634e-19)
    machine.set({f"{SCREENS[0]}:PNEUMATIC": "OUT", f"{SCREENS[1]}:PNEUMATIC": "IN"})
    assert all(bool(value.isfinite()) for value in machine.get(BEHIND).values())
    assert float(machine.get(f"{SCREENS[0]}:IMAGE").abs().sum()) == 0.0
    assert float(machine.get(f"{SCREENS[1]}:IMAGE").sum()) == pytest.approx(250e-12)


@pytest.mark.parametrize("amplitude", [71.0, 35.0])
def test_setpoint_to_native_and_back(amplitude: float) -> None:
    """A reading of a native input shows the inverse of the setpoint's conversion."""
    back: dict[str, Any] = {}
    for kind, native, unit, conversion in (
        ("quadrupole", "k1", "kG", "quadrupole_field"),
        ("corrector", "angle", "kG*m", "corrector_field"),
    ):
        reading = {
            "kind": "reading",
            "native": f"{{element}}.{native}",
            "unit": unit,
            "conversion": {"kind": conversion},
        }
        back[f"mapping.templates.{kind}.BACK"] = reading
    machine = load(**back)
    names = [name for name in machine.input_names if name.endswith("BCTRL") and not name.startswith("SOLN")]
    widths, values = {}, {"ACCL:IN20:400:L0B_ADES": torch.tensor(amplitude, dtype=F64)}
    for name in names:
        low, high = machine.supported_variables[name].value_range
        widths[name] = high - low
        values[name] = low + widths[name] * torch.rand((), dtype=F64)
    machine.set(values)
    assert len(names) == 10
    for name in names:
        found = machine.get(name.replace("BCTRL", "BACK"))
        assert abs(float(found - values[name])) <= 1e-12 * widths[name]


def test_saved_and_loaded(machine: FacilityModel, tmp_path: Path) -> None:
    machine.set({"QUAD:DIAG0:190:BCTRL": 1.1, "ACCL:IN20:400:L0B_ADES": 70.0, f"{SCREENS[0]}:PNEUMATIC": "OUT"})
    ld.save_model(machine, tmp_path / "copy.yaml")
    assert check(tmp_path / "copy.yaml") == []
    copy = ld.load_model(tmp_path / "copy.yaml")
    for name, value in machine.get().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(copy.get(name), value, rtol=1e-12, atol=0.0, equal_nan=True)
        else:
            assert copy.get(name) == value


def test_another_injector_by_one_line(machine: FacilityModel) -> None:
    """With its constant moments nothing depends on the solenoid, and the charge is still what it is set to."""
    names = [f"{SCREENS[0]}:XRMS", "BPMS:IN20:221:TMIT"]
    other = load(**{"stages.injector": "injector_moments.yaml"})
    assert list(other.supported_variables) == list(machine.supported_variables)
    before, charge = other.get(names).values()
    assert float(before) == pytest.approx(float(machine.get(names[0])), rel=0.02)
    settings = {"SOLN:IN20:121:BCTRL": 0.24, "FBCK:BCI0:1:CHRG_S": 125.0}
    for model in (machine, other):
        model.set(settings)
    after, half = other.get(names).values()
    assert float(after) == pytest.approx(float(before))
    assert float(half) == pytest.approx(0.5 * float(charge))
    assert abs(float(machine.get(names[0]) / before) - 1.0) > 0.1


@pytest.mark.slow
def test_it_keeps_the_laws_of_models() -> None:
    check_model(load())
