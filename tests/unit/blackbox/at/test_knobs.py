"""What can be set on a pyAT lattice, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lume_diff.blackbox.at.model import ATModel
from lume_diff.blackbox.codes.missing import require
from lume_diff.errors import MissingExtraError, UnknownVariableError, ValidationError

at = pytest.importorskip("at")

Make = Callable[..., Any]


def test_variables_are_found(fodo: Make) -> None:
    model = ATModel(fodo())
    assert {"QF.k1", "QD.k1", "S.k2", "B.angle", "B.k1", "C.hkick", "C.vkick", "D.length"} <= set(model.input_names)
    assert {"tune_x", "chroma_y", "END.beta_x", "final.eta_x", "line.beta_y"} <= set(model.output_names)
    units = {
        name: model.supported_variables[name].unit for name in ("QF.k1", "S.k2", "B.angle", "END.beta_x", "END.px")
    }
    assert units == {"QF.k1": "1/m^2", "S.k2": "1/m^3", "B.angle": "rad", "END.beta_x": "m", "END.px": "eV/c"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"controls": ["QF.k2x"]}, "nearest: 'k2'"),
        ({"controls": ["QG.k1"]}, "no element 'QG' in the lattice; nearest: "),
        ({"outputs": ["QG.beta_x"]}, "no element 'QG' in the lattice; nearest: "),
        ({"outputs": ["tunex"]}, "nearest: 'tune_x'"),
        ({"outputs": ["final.sigma_x"]}, "give beam="),
        ({"outputs": ["tune_x"], "periodic": False}, "periodic=True"),
        ({"initial": {"betax": 1.0}}, "nearest: 'beta_x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unknown_name_is_refused(options: dict[str, Any], message: str, fodo: Make) -> None:
    with pytest.raises(UnknownVariableError, match=message):
        ATModel(fodo(), **options)


def test_string_for_a_list_is_refused(fodo: Make) -> None:
    with pytest.raises(ValidationError, match=r"write \['QF.k1'\]"):
        ATModel(fodo(), controls="QF.k1")


def test_elements_that_differ_do_not_act_as_one() -> None:
    cell = at.Lattice([at.Quadrupole("Q", 0.5, 0.5), at.Drift("D", 1.0), at.Quadrupole("Q", 0.5, -0.5)], energy=1e9)
    with pytest.raises(ValidationError, match=r"different values \(-0.5, 0.5\)"):
        ATModel(cell, controls=["Q.k1"])
    assert ATModel(cell, periodic=False).input_names[:2] == ["Q.length", "D.length"]


def test_elements_of_one_name_act_as_one(fodo: Make, optics_of: Make) -> None:
    model = ATModel(fodo(), controls=["B.angle"], outputs=["END.eta_x"])
    own = fodo()
    for bend in own["B"]:
        bend.BendingAngle = 0.12
    assert model({"B.angle": 0.12})["END.eta_x"].item() == pytest.approx(optics_of(own)["eta_x"], rel=1e-9)


def test_missing_code_names_the_line_that_installs_it() -> None:
    with pytest.raises(MissingExtraError, match="pip install lume_diff"):
        require("a_code_that_is_not_there", "The Code", "pip install lume_diff[code]")


def _set(name: str, value: float) -> Callable[[Any], None]:
    return lambda element: setattr(element, name, value)


def _skew(element: Any) -> None:
    element.PolynomA = [0.0, 0.01]


def _octupole(element: Any) -> None:
    element.PolynomA, element.PolynomB = [0.0] * 4, [0.0, 0.0, 10.0, 0.0]
    element.MaxOrder = 3
    element.PolynomB[3] = 50.0


KNOBS: list[tuple[str, float, Callable[[Any], None]]] = [
    ("QF.k1", 0.51, _set("K", 0.51)),
    ("QF.k1s", 0.01, _skew),
    ("S.k2", 30.0, _set("H", 15.0)),
    ("S.k3", 300.0, _octupole),
    ("QF.length", 0.52, _set("Length", 0.52)),
    ("B.angle", 0.11, _set("BendingAngle", 0.11)),
    ("B.e1", 0.05, _set("EntranceAngle", 0.05)),
    ("C.hkick", 1e-4, _set("KickAngle", [1e-4, 0.0])),
    ("C.vkick", 1e-4, _set("KickAngle", [0.0, 1e-4])),
    ("QF.misalignment_x", 1e-4, lambda element: at.shift_elem(element, dx=1e-4)),
    ("QF.misalignment_y", 1e-4, lambda element: at.shift_elem(element, dy=1e-4)),
    ("QF.tilt", 0.01, lambda element: at.tilt_elem(element, 0.01)),
]


@pytest.mark.parametrize("name, value, change", KNOBS, ids=[knob[0] for knob in KNOBS])
def test_input_does_what_it_says_and_leaves_no_trace(
    name: str, value: float, change: Callable[[Any], None], fodo: Make, state_of: Make, same_state: Make
) -> None:
    given = fodo()
    given["S"][0].KickAngle = [0.0, 1e-5]  # an orbit, on which every element acts
    own = given.deepcopy()
    for element in {id(e): e for e in own[name.partition(".")[0]]}.values():
        change(element)
    model = ATModel(given, controls=[name], outputs=["final.r_matrix", "final.x", "final.y"])
    before, user = state_of(model.simulator), state_of(given)
    found = model({name: value})
    orbit, _ = at.find_orbit(own)
    matrix = at.find_m66(own, orbit=orbit)[0]
    np.testing.assert_allclose(found["final.r_matrix"].numpy(), matrix, rtol=1e-5, atol=1e-7)
    assert found["final.x"].item() == pytest.approx(orbit[0], abs=1e-10)
    assert found["final.y"].item() == pytest.approx(orbit[2], abs=1e-10)
    assert same_state(state_of(model.simulator), before)
    assert same_state(state_of(given), user)


def test_cavities_are_inputs_where_they_are_on(ring_with_cavity: Make) -> None:
    ring = ring_with_cavity()
    model = ATModel(ring, outputs=["tune_x", "END.x"])
    assert {"RF.voltage", "RF.frequency", "RF.time_lag"} <= set(model.input_names)
    frequency = ring["RF"][0].Frequency * (1.0 + 1e-6)
    ring["RF"][0].Frequency = frequency
    expected = at.linopt6(ring, refpts=[11])[2].closed_orbit[0, 0]
    assert model({"RF.frequency": frequency})["END.x"].item() == pytest.approx(expected, rel=1e-6)
    assert "RF.voltage" not in ATModel(ring.disable_6d(copy=True), outputs=["tune_x"]).input_names
