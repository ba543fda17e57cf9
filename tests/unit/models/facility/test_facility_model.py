"""FacilityModel: setpoints, energies, states, screens, readbacks and what is inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import lume_diff as ld
from lume_diff.errors import OutOfRangeWarning, ReadOnlyError, ShapeError, SimulatorError, ValidationError
from lume_diff.models import CheetahModel, FacilityMapping, FacilityModel, LUMEModel, StagedModel, TorchModel
from lume_diff.models.facility import Place, QuadrupoleField
from lume_diff.variables import TorchNDVariable, TorchScalarVariable
from tests.unit.models.facility.machines import FIELD, MAPPING, VARIABLES, facility, line, quadrupole, t


def natives(model: FacilityModel) -> dict[str, Any]:
    model.get()
    return model._evaluation.state.values  # type: ignore[union-attr]


def test_starts_where_the_model_stands() -> None:
    inner = line()
    model = FacilityModel(inner, MAPPING)
    values = natives(model)
    for name in ("Q0.k1", "Q1.k1", "C0.angle", "CAV.voltage"):
        assert values[name] is inner._setpoints[name]
    expected = QuadrupoleField().inverse(-2.0, 1.2e8, Place("kG", "1/m^2", 0.1))
    assert torch.allclose(model.get("Q1:BCTRL"), expected, rtol=1e-14)
    assert model.supported_variables["Q1:BCTRL"].default_value == pytest.approx(float(expected))


def test_numbers_are_those_of_the_model_inside() -> None:
    model, inner = facility(), line()
    model.set({"Q1:BCTRL": -0.5, "C0:BCTRL": 1e-3, "CAV:ADES": 30.0})
    place, angle = Place("kG", "1/m^2", 0.1), 1e-4 / (1.3e8**2 - 510998.95069**2) ** 0.5 * 299792458.0
    q0, q1 = (QuadrupoleField().forward(field, 1.3e8, place) for field in (model.get("Q0:BCTRL"), -0.5))
    inner.set({"Q0.k1": q0, "Q1.k1": q1, "C0.angle": angle, "CAV.voltage": 3e7})
    inner.set({"S0.is_active": False, "S1.is_active": True})
    assert torch.allclose(model.get("B1:X"), inner.get("B1.x") * 1e3, rtol=1e-9)
    assert torch.allclose(model.get("S1:IMAGE"), inner.get("S1.image"), atol=1e-25)
    assert torch.allclose(model.get("S1:XRMS"), inner.get("S1.sigma_x") * 1e6, rtol=1e-10)


def test_round_trip_after_the_energy_changed_upstream() -> None:
    field = {"kind": "reading", "native": "Q1.k1", "unit": "kG", "conversion": FIELD}
    model = FacilityModel(line(), {**MAPPING, "variables": {**VARIABLES, "Q1:B": field}})
    for voltage in (0.0, 20.0, 47.0):
        for setpoint in torch.linspace(-5.0, 5.0, 7, dtype=torch.float64):
            model.set({"CAV:ADES": voltage, "Q1:BCTRL": setpoint})
            assert abs(float(model.get("Q1:B") - setpoint)) <= 1e-12 * 10.0


def test_a_cavity_upstream_changes_strengths_at_constant_field() -> None:
    model = facility()
    before, field = natives(model)["Q1.k1"], model.get("Q1:BCTRL")
    model.set({"CAV:ADES": 50.0})
    ratio = ((1.2e8**2 - 510998.95069**2) / (1.5e8**2 - 510998.95069**2)) ** 0.5
    assert torch.allclose(natives(model)["Q1.k1"], before * ratio, rtol=1e-13)
    assert torch.equal(model.get("Q1:BCTRL"), field)
    model.set({"CAV:STATE": "OFF"})
    assert float(natives(model)["CAV.voltage"]) == 0.0
    assert torch.allclose(model.reference_energy(None, ["Q1"])["Q1"], t(1e8))


def test_a_trim_adds_and_off_is_no_field() -> None:
    model = facility()
    main, k1 = model.get("Q0:BCTRL"), natives(model)["Q0.k1"]
    model.set({"Q0:TRIM": 0.1 * main})
    assert torch.allclose(natives(model)["Q0.k1"], 1.1 * k1, rtol=1e-13)
    model.set({"Q0:CTRL": "OFF"})
    assert float(natives(model)["Q0.k1"]) == 0.0
    assert torch.equal(model.get("Q0:BCTRL"), main)


def test_one_setpoint_drives_several_elements() -> None:
    both = {"acts_on": [{"native": "Q0.k1", "conversion": FIELD}, {"native": "Q1.k1", "conversion": FIELD}]}
    entry = {"kind": "setpoint", "unit": "kG", "default": 1.0, **both}
    model = FacilityModel(line(), {"variables": {"QUADS:BCTRL": entry, "B1:X": VARIABLES["B1:X"]}})
    assert torch.allclose(natives(model)["Q0.k1"], natives(model)["Q1.k1"])
    with pytest.raises(ValidationError, match="do not stand at one setting"):
        FacilityModel(line(), {"variables": {"QUADS:BCTRL": {**entry, "default": None}}})


def test_an_inserted_screen_stops_the_beam() -> None:
    model = facility()
    assert not bool(model.get("S0:IMAGE").any())
    assert bool(model.get("S0:XRMS").isnan())
    assert bool(model.get("B1:X").isfinite())
    model.set({"S0:POS": "IN"})
    assert float(model.get("S0:IMAGE").sum()) == pytest.approx(1e-10)
    assert bool(model.get("S0:XRMS").isfinite())
    for name in ("B1:X", "S1:XRMS", "final.sigma_x", "S1:AREA", "D1.beta_y"):
        assert bool(model.get(name).isnan()), name
    assert float(model.get("B1:TMIT")) == 0.0
    assert not bool(model.get("S1:IMAGE").any())
    assert not bool(model.get("final_particles").alive.any())
    batch = model({"Q0:BCTRL": torch.ones(3)}, outputs=["B1:X", "S1:IMAGE"])
    assert batch["B1:X"].shape == (3,)
    assert batch["S1:IMAGE"].shape == (3, 30, 40)


def test_what_stands_for_a_reading_without_beam_is_not_judged() -> None:
    limits = {"value_range": [-1.0, 1.0]}
    area = {**VARIABLES["S1:AREA"], "value_range": [0.0, 1e9]}
    model = facility(**{"B1:X": {**VARIABLES["B1:X"], **limits}, "S1:AREA": area})
    model.set({"S0:POS": "IN"})
    assert bool(model.get("B1:X").isnan())
    assert bool(model.get("S1:AREA").isnan())
    model.set({"S0:POS": "OUT", "C0:BCTRL": 0.05})
    with pytest.warns(OutOfRangeWarning, match="B1:X"):
        model.get("B1:X")


def test_region_of_interest() -> None:
    model = facility()
    whole = model.get("S1:IMAGE").clone()
    runs = model.runs
    model.set({"S1:MINX": 15, "S1:SIZEX": 12})
    assert model.runs == runs
    image = model.get("S1:IMAGE")
    assert torch.equal(image[:, :12], whole[:, 15:27])
    assert not bool(image[:, 12:].any())
    assert (int(model.get("S1:NX")), int(model.get("S1:NY"))) == (12, 30)
    model.set({"S1:MINX": 35})
    assert int(model.get("S1:NX")) == 5
    assert float(model.get("S1:RESOLUTION")) == pytest.approx(100.0)
    with pytest.raises(ShapeError, match="one for the whole batch"):
        model({"S1:MINX": torch.tensor([1, 2])}, outputs=["S1:IMAGE"])
    with pytest.raises(ValidationError, match="value_range"):
        model.set({"S1:MINX": 40})


def test_readbacks_follow_with_noise_of_the_shot() -> None:
    model = facility()
    model.get("B1:X")
    first = model.get("Q0:BACT")
    runs = model.runs
    assert float(first - model.get("Q0:BCTRL")) == pytest.approx(0.5, abs=0.01)
    model.set({"SHOT": 1})
    second = model.get("Q0:BACT")
    assert model.runs == runs
    assert first != second
    model.set({"SHOT": 0})
    assert torch.equal(model.get("Q0:BACT"), first)
    assert torch.equal(facility().get("Q0:BACT"), first)
    many = model({"SHOT": torch.arange(4000)}, outputs=["Q0:BACT"])["Q0:BACT"]
    assert float(many.std()) == pytest.approx(1e-4, rel=0.1)
    leaf = t(1.0).requires_grad_()
    model.set({"Q0:BCTRL": leaf})
    model.get("Q0:BACT").backward()
    assert leaf.grad == 1.0
    assert torch.equal(model.get("Q1:BACT"), model.get("Q1:BCTRL"))


def test_limits_are_enforced_and_shown() -> None:
    model = facility()
    with pytest.raises(ValidationError, match="Q0:BCTRL"):
        model.set({"Q0:BCTRL": 5.1})
    assert float(model.get("Q0:BMAX")) == 5.0
    with pytest.raises(ReadOnlyError):
        model.set({"Q0:BMAX": 6.0})
    assert model.get("MODE") == "simulation"


def test_a_limit_is_shown_in_the_unit_of_its_variable() -> None:
    assert facility().supported_variables["Q0:BMAX"].unit == "kG"
    with pytest.raises(ValidationError, match=r"its unit is 'T' and that of 'Q0:BCTRL' is 'kG': drop the unit"):
        facility(**{"Q0:BMAX": {**VARIABLES["Q0:BMAX"], "unit": "T"}})


def test_a_limit_that_is_described_anew_is_shown_anew() -> None:
    model = facility()
    assert float(model.get("Q0:BMAX")) == 5.0
    model.describe([model.supported_variables["Q0:BCTRL"].replace(value_range=(-5.0, 4.0))])
    for each in (model, copy.deepcopy(model)):
        each.refresh()
        assert float(each.get("Q0:BMAX")) == each.supported_variables["Q0:BMAX"].default_value == 4.0
    with pytest.raises(ValidationError, match="'Q0:BCTRL' has no high limit, which another variable shows"):
        model.describe([model.supported_variables["Q0:BCTRL"].replace(value_range=(-5.0, None))])
    assert model.supported_variables["Q0:BCTRL"].value_range == (-5.0, 4.0)


def test_a_first_look_inside_a_transform_leaves_nothing_behind() -> None:
    cubic = {"kind": "polynomial", "coefficients": [0.0, 1.0, 0.0, 0.1], "range": [-2.0, 2.0]}
    inner = TorchModel(
        lambda x: x**2, [TorchScalarVariable(name="a", default_value=1.0)], [TorchScalarVariable(name="b")]
    )
    reading = {"kind": "reading", "native": "b", "conversion": cubic, "noise": 1e-3}
    model = FacilityModel(
        inner, {"variables": {"A": {"kind": "setpoint", "native": "a", "conversion": cubic}, "B": reading}}
    )

    def read(a: torch.Tensor) -> torch.Tensor:
        return model({"A": a}, outputs=["B"])["B"]

    second, again = torch.func.hessian(read)(t(0.7)), torch.func.hessian(read)(t(0.7))
    assert torch.equal(again, second)
    at = t([0.7 - 1e-4, 0.7, 0.7 + 1e-4])
    low, middle, high = read(at)
    assert float(second) == pytest.approx(float(high - 2.0 * middle + low) / 1e-8, rel=1e-4)
    torch.testing.assert_close(torch.func.vmap(read)(at), read(at))


def test_gradients_after_a_look_in_inference_mode() -> None:
    model = facility()
    with torch.inference_mode():
        model({"CAV:ADES": 10.0}, outputs=["S1:XRMS"])
    voltage = t(10.0).requires_grad_()
    model({"CAV:ADES": voltage}, outputs=["S1:XRMS"])["S1:XRMS"].backward()
    assert voltage.grad != 0.0


def test_equal_set_points_at_other_objects_rest() -> None:
    machine = ld.load_model(ld.example_machine())
    size = "OTRS:DIAG0:420:XRMS"
    machine.get(size)
    start = {name: value for name, value in machine.snapshot().items() if name in machine.input_names}
    runs = {name: stage.runs for name, stage in machine.model.stages.items()}
    moved = machine({**start, "QUAD:DIAG0:190:BCTRL": 1.1}, outputs=[size])[size]
    assert {name: stage.runs for name, stage in machine.model.stages.items()} == {**runs, "diag0": runs["diag0"] + 1}
    assert float(moved) == float(machine({"QUAD:DIAG0:190:BCTRL": 1.1}, outputs=[size])[size])


def test_only_what_changed_runs_again() -> None:
    first, second = line(200), line(200)
    behind = CheetahModel(second.simulator, first.get("final_particles"))
    chain = StagedModel({"gun": first, "linac": behind})
    names = {f"{stage}:BCTRL": quadrupole(f"{stage}/Q1") for stage in ("gun", "linac")}
    reading = {"kind": "reading", "native": "linac/B1.x", "unit": "mm"}
    model = FacilityModel(chain, {"variables": {**names, "X": reading}})
    model.get()
    counts = first.runs, behind.runs
    model.set({"linac:BCTRL": -0.1})
    model.get()
    assert (first.runs, behind.runs) == (counts[0], counts[1] + 1)
    leaf = t(0.2).requires_grad_()
    model.set({"gun:BCTRL": leaf})
    counts = first.runs, behind.runs
    model.set({"linac:BCTRL": -0.2})
    model.get("X")
    assert first.runs == counts[0]


def box() -> LUMEModel:
    from lume_diff.blackbox import BlackBoxModel

    inputs = [TorchScalarVariable(name=f"Q{i}.k1", unit="1/m^2", default_value=1.0) for i in range(3)]
    return BlackBoxModel.from_function(
        lambda **k: {"B.x": k["Q0.k1"] * k["Q1.k1"] + k["Q2.k1"]}, inputs, [TorchScalarVariable(name="B.x", unit="m")]
    )


@pytest.mark.filterwarnings("ignore::lume_diff.errors.PhysicsWarning")
def test_a_black_box_differentiates_only_what_is_asked_for() -> None:
    names = {f"Q{i}:B": quadrupole(f"Q{i}", length=0.1) for i in range(3)}
    mapping = {
        "energy": {"kind": "constant", "value": 1e8},
        "variables": {**names, "X": {"kind": "reading", "native": "B.x", "unit": "mm"}},
    }
    model, plain = FacilityModel(box(), mapping), box()
    leaf = model.get("Q1:B").clone().requires_grad_()
    model.set({"Q1:B": leaf})
    model.get("X").backward()
    k1 = plain.get("Q1.k1").clone().requires_grad_()
    plain.set({"Q1.k1": k1})
    plain.get("B.x").backward()
    assert model.runs == plain.runs
    factor = QuadrupoleField().forward(1.0, 1e8, Place("kG", "1/m^2", 0.1))
    assert torch.allclose(leaf.grad, k1.grad * factor * 1e3, rtol=1e-8)
    table = model.jacobian(["X"], ["Q0:B", "Q1:B"])
    assert torch.allclose(table["X"]["Q1:B"], leaf.grad, rtol=1e-8)
    assert model.gradient_report().jacobian is not None


def test_an_energy_from_a_variable() -> None:
    model = FacilityModel(
        line(),
        {
            "energy": {"kind": "variable", "name": "REF:EDES"},
            "variables": {
                "REF:EDES": {"kind": "value", "value": 0.1, "unit": "GeV"},
                "Q0:BCTRL": quadrupole("Q0"),
                "B1:X": VARIABLES["B1:X"],
            },
        },
    )
    before = natives(model)["Q0.k1"]
    model.set({"REF:EDES": 0.2})
    assert torch.allclose(natives(model)["Q0.k1"], before / 2, rtol=1e-4)
    of_line = quadrupole("Q0", energy={"kind": "variable", "name": "reference_energy"})
    native = FacilityModel(line(), {"variables": {"Q": of_line}})
    expected = QuadrupoleField().inverse(3.0, 1e8, Place("kG", "1/m^2", 0.1))
    assert torch.allclose(native.get("Q"), expected)


def test_an_array_is_converted_by_each_energy_of_a_batch() -> None:
    strengths = TorchNDVariable(name="K.k1", unit="1/m^2", shape=(2,), default_value=[1.0, 2.0])
    energy = TorchScalarVariable(name="energy", unit="eV", default_value=1e9)
    first = TorchScalarVariable(name="first", unit="1/m^2")
    inner = TorchModel(lambda columns: columns[..., :1], [strengths, energy], [first])
    entry = {"kind": "setpoint", "native": "K.k1", "unit": "T/m", "conversion": FIELD}
    mapping = {"variables": {"K:B": entry}, "keep": ["energy", "first"]}
    model = FacilityModel(inner, {**mapping, "energy": {"kind": "variable", "name": "energy"}})
    energies = t([1e9, 2e9])
    found = model({"energy": energies, "K:B": [1.0, 2.0]}, outputs=["first"])["first"]
    expected = QuadrupoleField().forward(1.0, energies, Place("T/m", "1/m^2"))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0)


def test_a_failing_run_is_told_in_the_names_of_the_model_and_changes_nothing() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        if bool((x > 1).any()):
            raise RuntimeError("no beam today")
        return x

    inner = TorchModel(broken, [TorchScalarVariable(name="a", default_value=0.0)], [TorchScalarVariable(name="b")])
    model = FacilityModel(inner, {"variables": {"A": {"kind": "setpoint", "native": "a"}}, "keep": ["b"]})
    with pytest.raises(SimulatorError, match=r"no beam today.*a=2\.0"):
        model.set({"A": 2.0})
    assert float(model.get("A")) == 0.0


def test_a_native_limit_names_the_setpoint() -> None:
    inner = TorchModel(
        lambda x: x,
        [TorchScalarVariable(name="a", unit="m", default_value=0.0, value_range=(-1.0, 1.0))],
        [TorchScalarVariable(name="b")],
    )
    model = FacilityModel(inner, {"variables": {"A": {"kind": "setpoint", "native": "a", "unit": "mm"}}})
    with pytest.raises(ValidationError, match="'A' amounts to"):
        model.set({"A": 2000.0})


def test_refresh_follows_the_model_inside() -> None:
    model = facility()
    model.set({"C0:BCTRL": 1e-3})
    model.model.set({"Q1.k1": -1.0})
    model.refresh()
    expected = QuadrupoleField().inverse(-1.0, 1.2e8, Place("kG", "1/m^2", 0.1))
    assert torch.allclose(model.get("Q1:BCTRL"), expected, rtol=1e-13)
    assert float(model.get("C0:BCTRL")) == 1e-3


def test_a_facility_is_a_stage() -> None:
    model = facility()
    with pytest.raises(ValidationError, match="hands nothing over"):
        StagedModel({"machine": model, "again": FacilityModel(line(), {"variables": {"Q": quadrupole("Q0")}})})
    chain = StagedModel({"machine": model, "again": facility()})
    leaf = t(0.5).requires_grad_()
    chain.set({"machine/Q1:BCTRL": leaf, "machine/S1:POS": "OUT"})
    chain.get("again/B1:X").backward()
    assert bool(leaf.grad.isfinite())


def test_mappings_survive_a_dump() -> None:
    mapping = FacilityMapping.model_validate(MAPPING)
    again = FacilityMapping.model_validate(mapping.model_dump(exclude_unset=True))
    assert again == mapping
    assert FacilityMapping.model_validate_json(mapping.model_dump_json(exclude_unset=True)) == mapping
    assert "quadrupole_field" in str(FacilityMapping.model_json_schema())
