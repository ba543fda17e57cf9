"""What models tell of their lines agrees with what they are and with what they compute."""

from __future__ import annotations

import copy

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.models import BunchFromMoments, CheetahModel, LUMEModel, StagedModel, TorchModel
from lume_diff.models.survey import BOX, QUANTITIES, Survey, survey_at, survey_of
from lume_diff.particles import TorchMoments
from lume_diff.variables import TorchScalarVariable

MOVED = {
    "QUAD:IN20:121:BCTRL": 2.2,
    "XCOR:IN20:221:BCTRL": 1e-3,
    "YCOR:DIAG0:216:BCTRL": -5e-4,
    "ACCL:IN20:400:L0B_PDES": 4.0,
    "SOLN:IN20:121:BCTRL": 0.245,
}


@pytest.fixture(scope="module")
def machine():
    return ld.load_model(ld.example_machine())


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def line(moments: bool = False, **options) -> CheetahModel:
    """Return two quadrupoles, a bend, a corrector and a monitor in a line."""
    elements = [
        cheetah.Quadrupole(number(0.2), number(4.0), name="Q1"),
        cheetah.Drift(number(2.0), name="D1"),
        cheetah.HorizontalCorrector(number(0.1), number(1e-4), name="HC"),
        cheetah.Dipole(number(0.3), number(0.05), name="B1"),
        cheetah.Quadrupole(number(0.2), number(-3.0), name="Q2"),
        cheetah.BPM(is_active=True, name="BPM1"),
        cheetah.Drift(number(1.0), name="D2"),
    ]
    kind = cheetah.ParameterBeam if moments else cheetah.ParticleBeam
    counted = {} if moments else {"num_particles": 2000}
    beam = kind.from_parameters(
        sigma_x=number(2e-4), sigma_px=number(2e-5), sigma_y=number(1e-4), sigma_py=number(1e-5),
        sigma_p=number(1e-4), energy=number(1e8), dtype=torch.float64, **counted,
    )  # fmt: skip
    return CheetahModel(cheetah.Segment(elements, name="line1"), beam, **options)


def assert_agrees(survey: Survey, model: LUMEModel) -> None:
    """Compare the beam behind every element with the model's own outputs."""
    along = survey.along()
    compared = 0
    for element in survey.elements:
        for key in QUANTITIES:
            name = f"{element.native}.{key}"
            if element.kind != BOX and name in model.output_names:
                expected = float(model.get(name))
                # A centroid on the axis is round-off, and so is a dispersion far below a micrometre.
                kinds = (key, key.replace("mean", "sigma"))
                scale = max(*(np.abs(along.values[kind]).max() for kind in kinds), 1e-6 * key.startswith("eta"))
                assert along.values[key][along.behind[element.name]] == pytest.approx(expected, abs=1e-9 * scale), name
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("options", [{}, {"moments": True}, {"engine": "cheetah"}], ids=str)
def test_the_beam_along_a_line_is_that_behind_its_elements(options):
    model = line(**options)
    model.set({"Q1.k1": 5.5, "HC.angle": 3e-4})
    survey = survey_of(model)
    assert_agrees(survey, model)
    assert [round(element.s, 9) for element in survey.elements] == [0.0, 0.2, 2.2, 2.3, 2.6, 2.8, 2.8]
    assert survey.end == pytest.approx(3.8)
    assert survey.find("Q1").strength == 5.5
    assert (survey.find("Q2").attribute, survey.find("Q2").unit) == ("k1", "1/m^2")
    assert "Q2.k1" in survey.find("Q2").knobs


def test_between_elements_it_is_that_of_a_line_cut_there():
    model = line()
    along = survey_of(model).along(["sigma_x", "beta_y", "mean_energy"])
    place = int(np.argmin(abs(along.s - 1.0)))
    cut = [*model.simulator.elements]
    first = float(along.s[place]) - 0.2
    cut[1:2] = [
        cheetah.Drift(number(first), name="D1a"),
        cheetah.Drift(number(2.0 - first), name="D1b"),
    ]
    reference = CheetahModel(cheetah.Segment(cut, name="line2"), model.get("initial_particles"))
    assert 0.2 < along.s[place] < 2.2
    for key in along.values:
        assert along.values[key][place] == pytest.approx(float(reference.get(f"D1a.{key}")), rel=1e-12)


def test_what_is_asked_at_other_settings_is_not_written():
    model = line()
    before = model.snapshot()
    at = {"Q1.k1": -2.0, "D1.length": 1.5}
    survey = survey_of(model, at)
    along = survey.along(["sigma_x"])
    assert model.snapshot() == before
    model.set(at)
    assert along.values["sigma_x"][-1] == pytest.approx(float(model.get("final.sigma_x")), rel=1e-12)
    assert survey.end == pytest.approx(3.3)


def test_the_beam_at_an_element_is_the_models():
    model = line()
    found = survey_of(model).beam("Q2")
    assert torch.equal(found.x, model.get("Q2.particles").x)
    assert isinstance(survey_of(line(moments=True)).beam("Q2"), TorchMoments)
    assert survey_of(model).beam("Q7") is None


def test_a_batch_of_settings_is_not_known():
    survey = survey_of(line(), {"Q1.k1": torch.tensor([1.0, 2.0], dtype=torch.float64)})
    assert survey.along() is None
    assert survey.beam("Q2") is None
    assert np.isnan(survey.find("Q1").strength)


def test_a_facility_tells_by_its_own_names(machine):
    survey = survey_of(machine)
    screen = survey.find("OTRS:DIAG0:420")
    assert (screen.kind, screen.native, screen.stage) == ("Screen", "OTRDG02", "diag0")
    assert survey.find("QDG01").knobs == ("QUAD:DIAG0:190:BCTRL",)
    cavity = survey.find("ACCL:IN20:400")
    assert set(cavity.knobs) == {f"ACCL:IN20:400:L0B_{name}" for name in ("ADES", "PDES", "STATE")}
    box = survey.elements[0]
    assert (box.name, box.kind, box.length) == ("injector", BOX, 0.0)
    assert "SOLN:IN20:121:BCTRL" in box.knobs
    assert all(knob in machine.input_names for element in survey.elements for knob in element.knobs)
    assert survey.beam("injector").x.shape == (10_000,)


def test_a_facility_at_moved_settings_agrees_with_its_outputs(machine):
    survey = survey_of(machine, MOVED)
    along = survey.along()
    told = machine(MOVED, outputs=["OTRS:DIAG0:420:XRMS", "OTRS:DIAG0:420:YRMS", "REFS:DIAG0:1:EACT"])
    behind = along.behind["OTRS:DIAG0:420"]
    assert 1e6 * along.values["sigma_x"][behind] == pytest.approx(float(told["OTRS:DIAG0:420:XRMS"]), rel=1e-9)
    assert 1e6 * along.values["sigma_y"][behind] == pytest.approx(float(told["OTRS:DIAG0:420:YRMS"]), rel=1e-9)
    assert float(survey.beam("OTRS:DIAG0:420")["sigma_x"]) == pytest.approx(along.values["sigma_x"][behind], rel=1e-9)


def test_what_earlier_looks_have_left_is_used_only_where_it_holds(machine):
    start = {name: value for name, value in machine.get(list(machine.input_names)).items() if value is not None}
    steps = [{}, {"QUAD:DIAG0:190:BCTRL": 1.2}, MOVED, {"ACCL:IN20:400:L0B_PDES": 4.0}, {}]
    for step in steps:
        at = {**start, **step}
        seen, fresh = (survey_of(model, at) for model in (machine, copy.deepcopy(machine)))
        assert [element.strength for element in seen.elements] == [element.strength for element in fresh.elements]
        for key, values in seen.along().values.items():
            np.testing.assert_allclose(values, fresh.along().values[key], rtol=1e-12, atol=0.0, err_msg=key)


def test_a_parameter_that_is_trained_is_seen():
    k1 = torch.nn.Parameter(number(4.0))
    elements = [cheetah.Quadrupole(number(0.2), k1, name="Q1"), cheetah.Drift(number(2.0), name="D1")]
    beam = cheetah.ParticleBeam.from_parameters(num_particles=100, energy=number(1e8), dtype=torch.float64)
    model = CheetahModel(cheetah.Segment(elements, name="line1"), beam)
    before = survey_of(model).along().values["sigma_x"][-1]
    with torch.no_grad():
        k1 += 1.0
    fresh = survey_of(copy.deepcopy(model)).along().values["sigma_x"][-1]
    assert survey_of(model).along().values["sigma_x"][-1] == pytest.approx(fresh, rel=1e-12) != before


def test_a_chain_agrees_with_its_outputs(machine):
    assert_agrees(survey_of(machine.model), machine.model)


def test_an_inserted_screen_ends_the_beam(machine):
    stop = survey_of(machine).stop
    assert (stop.variable, round(stop.s, 6)) == ("OTRS:DIAG0:420:PNEUMATIC", 9.3)
    assert survey_of(machine, {"OTRS:DIAG0:420:PNEUMATIC": "OUT"}).stop is None


def test_stages_that_share_a_name_are_told_apart():
    first, second = line(), line()
    survey = survey_of(StagedModel({"a": first, "b": second}))
    assert survey.find("b/Q1").s == pytest.approx(3.8)
    assert "b/Q1.k1" in survey.find("b/Q1").knobs
    along = survey.along(["sigma_x"])
    assert along.s.size == along.values["sigma_x"].size
    assert (np.diff(along.s) >= 0.0).all()


def test_a_model_without_a_line_is_not_known():
    x = TorchScalarVariable(name="x", default_value=1.0)
    y = TorchScalarVariable(name="y")
    network = TorchModel(lambda value: 2.0 * value, [x], [y])
    twiss = {"beta_x": 10.0, "norm_emit_x": 1e-6, "beta_y": 5.0, "norm_emit_y": 1e-6}
    bunch = BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss)
    assert survey_of(network) is None
    assert survey_of(StagedModel({"bunch": bunch})) is None


def test_other_classes_can_tell_too():
    class Ours(TorchModel):
        pass

    class Told(Survey):
        elements = ()

        def along(self, quantities=QUANTITIES):
            return None

        def beam(self, element):
            return None

    survey_at.register(Ours, lambda model, inputs: Told())
    x = TorchScalarVariable(name="x", default_value=1.0)
    y = TorchScalarVariable(name="y")
    assert isinstance(survey_of(Ours(lambda value: 2.0 * value, [x], [y])), Told)


def test_what_was_changed_by_hand_upstream_is_seen_after_refresh():
    first = line(controls=["Q1.k1"])
    drift = cheetah.Segment([cheetah.Drift(number(1.0), name="D9")], name="line2")
    chain = StagedModel([first, CheetahModel(drift, first.get("final_particles"), controls=[])])
    survey_of(chain).along(["sigma_x"])
    first.simulator.Q2.k1 = number(9.0)
    chain.refresh()
    along = survey_of(chain).along(["sigma_x"])
    assert along.values["sigma_x"][-1] == pytest.approx(float(chain.get("final.sigma_x")), rel=1e-12)


def test_the_knobs_of_a_facility_follow_its_energy_after_refresh():
    cavity = cheetah.Cavity(number(1.0), voltage=number(1e6), frequency=number(2.856e9), name="C1")
    segment = cheetah.Segment([cavity, cheetah.Quadrupole(number(0.2), number(4.0), name="Q1")], name="line")
    model = CheetahModel(segment, line().get("initial_particles"), controls=["Q1.k1"])
    field = {
        "kind": "setpoint",
        "native": "Q1.k1",
        "unit": "kG",
        "length": 0.2,
        "conversion": {"kind": "quadrupole_field"},
    }
    facility = ld.FacilityModel(model, {"variables": {"Q1:BCTRL": field}})
    facility.set({"Q1:BCTRL": 0.3})
    before = survey_of(facility).find("Q1").strength
    segment.C1.voltage = number(1e8)
    facility.refresh()
    assert survey_of(facility).find("Q1").strength == pytest.approx(before * 101.0 / 200.0, rel=1e-3)
