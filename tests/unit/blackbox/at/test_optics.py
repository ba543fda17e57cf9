"""Optics of a pyAT lattice and their gradients, against pyAT itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.at.model import ATModel
from lume_diff.errors import ValidationError
from lume_diff.testing import check_model

at = pytest.importorskip("at")

Make = Callable[..., Any]


def richardson(function: Callable[[float], float], x: float, step: float) -> float:
    """Return a derivative, of sixth order in the step."""
    slopes = [(function(x + h) - function(x - h)) / (2.0 * h) for h in (step, step / 2, step / 4)]
    first, second = (4.0 * slopes[1] - slopes[0]) / 3.0, (4.0 * slopes[2] - slopes[1]) / 3.0
    return (16.0 * second - first) / 15.0


@pytest.mark.parametrize("lattice", ["fodo", "ring_with_cavity"], ids=["4d", "6d"])
def test_ring_optics_are_those_of_pyat(lattice: str, request: pytest.FixtureRequest, optics_of: Make) -> None:
    own = request.getfixturevalue(lattice)()
    own["C"][0].KickAngle = [1e-4, 0.0]
    expected = optics_of(own)
    names = {name: name if name in ("tune_x", "chroma_x") else f"final.{name}" for name in expected}
    found = ATModel(own, controls=["QF.k1"], outputs=list(names.values())).get()
    for name, shown in names.items():
        assert found[shown].item() == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def test_matrix_and_arrays_along_the_line(fodo: Make) -> None:
    own = fodo()
    model = ATModel(own, controls=["QF.k1"], outputs=["END.r_matrix", "QD.r_matrix", "line.beta_x", "line.s", "QD.s"])
    found = {name: value.numpy() for name, value in model.get().items()}
    np.testing.assert_allclose(found["END.r_matrix"], at.find_m66(own)[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found["QD.r_matrix"], at.find_m66(own, refpts=[6])[1][0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found["line.beta_x"], at.linopt6(own, refpts=range(12))[2].beta[:, 0], rtol=1e-8)
    np.testing.assert_allclose(found["line.s"], own.get_s_pos(range(12)))
    assert found["QD.s"] == pytest.approx(own.get_s_pos([6])[0])


def test_line_optics_are_those_of_pyat(fodo: Make) -> None:
    own = fodo()
    start = {"beta_x": 8.0, "alpha_x": -0.5, "beta_y": 3.0, "alpha_y": 0.4, "eta_x": 0.2, "etap_x": -0.1, "x": 1e-4}
    shown = [f"END.{name}" for name in ("beta_x", "alpha_x", "mu_x", "beta_y", "mu_y", "eta_x", "etap_x", "x", "px")]
    found = ATModel(own, controls=[], outputs=shown, initial=start).get(shown)
    given = {
        "beta": np.array([8.0, 3.0]),
        "alpha": np.array([-0.5, 0.4]),
        "dispersion": np.array([0.2, -0.1, 0.0, 0.0]),
        "closed_orbit": np.array([1e-4, 0.0, 0.0, 0.0, 0.0, 0.0]),
    }
    last = at.linopt6(own, refpts=range(12), twiss_in=given)[2][-1]
    p0 = own.energy
    expected = [last.beta[0], last.alpha[0], last.mu[0], last.beta[1], last.mu[1], *last.dispersion[:2]]
    expected += [last.closed_orbit[0], last.closed_orbit[1] * p0]
    np.testing.assert_allclose([value.item() for value in found.values()], expected, rtol=1e-6)


def test_line_without_a_start_asks_for_it(fodo: Make) -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["END.beta_x"], periodic=False)
    with pytest.raises(ValidationError, match=r"initial\.beta_x"):
        model.get("END.beta_x")
    model.set({"initial.beta_x": 5.0, "initial.beta_y": 5.0})
    assert model.get("END.beta_x") > 0
    with pytest.raises(ValidationError, match="a ring has no start"):
        ATModel(fodo(), initial={"beta_x": 1.0}, periodic=True)


@pytest.mark.gradient
@pytest.mark.parametrize("lattice", ["fodo", "ring_with_cavity"], ids=["4d", "6d"])
@pytest.mark.parametrize("knob", ["QF.k1", "QD.k1"])
def test_gradient_of_optics(lattice: str, knob: str, request: pytest.FixtureRequest) -> None:
    model = ATModel(request.getfixturevalue(lattice)(), controls=["QF.k1", "QD.k1"], outputs=["tune_x", "END.beta_x"])
    k1 = model.get(knob).clone().requires_grad_()
    found = model({knob: k1})
    for name, value in found.items():
        (slope,) = torch.autograd.grad(value, k1, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return model({knob: x})[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, k1.item(), 1e-3), rel=1e-8), name
    entries = [entry for entry in model.gradient_report().entries if entry.input == knob]
    assert {entry.output for entry in entries} == {"tune_x", "END.beta_x"}


def test_ring_keeps_every_law(fodo: Make) -> None:
    check_model(ATModel(fodo(), controls=["QF.k1", "QD.k1"], outputs=["tune_x", "END.beta_x", "END.eta_x"]))


def test_line_keeps_every_law(fodo: Make, bunch: Make) -> None:
    model = ATModel(fodo(1e8), controls=["QF.k1", "QD.k1"], outputs=["final.sigma_x", "END.beta_x"], beam=bunch(n=50))
    check_model(model, inputs=["QF.k1", "reference_energy"], outputs=["final.sigma_x", "END.beta_x"])
