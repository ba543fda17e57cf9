"""Names, optics and their gradients, against Tao itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.runners.proxy import ask
from lume_diff.errors import LatticeError, SimulatorError, UnknownVariableError, ValidationError

# -- names ---------------------------------------------------------------------------------------------------


def test_variables_are_found(decks: Any) -> None:
    with BmadModel(decks.ring()) as found:
        assert {"QF.k1", "Q2.k1", "BB.angle", "HK.hkick", "OV.a", "QF.length"} <= set(found.input_names)
        assert not {"QD.k1", "QD#1.k1", "S1.k2"} & set(found.input_names)  # the overlay or the lord decides
        assert {"tune_x", "chroma_y", "END0.beta_x", "MK.beta_x", "final.eta_x", "line.beta_y"} <= set(
            found.output_names
        )
        variable = found.supported_variables["QF.k1"]
        assert (variable.unit, variable.default_value) == ("1/m^2", 0.3)
        assert found.supported_variables["HK.hkick"].unit == "rad"
        assert math.isfinite(found.get("tune_x"))
        assert found.reference_energy(None, ["QF"])["QF"].item() == 1e9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"controls": ["qf.k1"]}, "nearest: 'QF'"),
        ({"controls": ["QF.k1x"]}, "nearest: 'k1'"),
        ({"outputs": ["ENDE.beta_x"]}, "nearest: 'END"),
        ({"outputs": ["tunex"]}, "nearest: 'tune_x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unknown_name_is_refused(decks: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownVariableError, match=message):
        BmadModel(decks.ring(), **options)


def test_what_cannot_be_set_is_refused(decks: Any) -> None:
    with pytest.raises(ValidationError, match=r"'QD\.k1'.*overlay"):
        BmadModel(decks.ring(), controls=["QD.k1"])
    with pytest.raises(ValidationError, match=r"'QF\.length' and 'QF\.l' set the same number"):
        BmadModel(decks.ring(), controls=["QF.length", "QF.l"])
    with pytest.raises(ValidationError, match="give beam="):
        BmadModel(decks.ring(), outputs=["final.sigma_x"])


def test_what_is_no_deck_is_refused(decks: Any) -> None:
    broken = decks.write("broken.bmad", "this is: no lattice")
    for path, message in ((decks.folder / "none.init", "does not exist"), (broken, "Tao does not take.*bmad_parser")):
        with pytest.raises(LatticeError, match=message):
            BmadModel(path)
    with pytest.raises(LatticeError, match="a int"):
        BmadModel(3)  # type: ignore[arg-type]


# -- optics --------------------------------------------------------------------------------------------------

KNOBS = {
    "QF.k1": (0.31, "QF", "k1", 0.3),
    "Q2.length": (0.11, "Q2", "l", 0.1),
    "BB.angle": (0.11, "BB", "angle", 0.1),
    "HK.hkick": (1e-4, "HK", "kick", 0.0),
    "OV.a": (0.01, "OV", "a", 0.0),
    "Q2.tilt": (0.01, "Q2", "tilt", 0.0),
    "Q2.x_pitch": (1e-3, "Q2", "x_pitch", 0.0),
}


@pytest.mark.parametrize("name", KNOBS)
def test_optics_are_those_of_tao(model: Any, name: str) -> None:
    """Against what Tao's own text commands print after the same has been set by hand."""
    value, element, attribute, default = KNOBS[name]
    before = model.get()
    with torch.no_grad():
        found = model({"Q2.k1": 0.2, name: value})
    tao = model.simulator
    try:
        tao.cmd("set ele Q2 k1 = 0.2")
        tao.cmd(f"set ele {element} {attribute} = {value!r}")
        general = dict(line.split(";", 3)[::3] for line in ask(tao.cmd, "pipe ring_general 1@0"))
        twiss = dict(line.split(";", 3)[::3] for line in ask(tao.cmd, "pipe ele:twiss END0|model"))
        orbit = dict(line.split(";", 3)[::3] for line in ask(tao.cmd, "pipe ele:orbit END0|model"))
        rows = [line.split(";")[1:7] for line in ask(tao.cmd, "pipe matrix 0 8")]
        expected = {
            "tune_x": float(general["Q_a"]),
            "tune_y": float(general["Q_b"]),
            "chroma_x": float(general["chrom_a"]),
            "END0.beta_x": float(twiss["beta_a"]),
            "END0.eta_x": float(twiss["eta_x"]),
            "END0.x": float(orbit["x"]),
            "END0.px": float(orbit["px"]) * float(orbit["p0c"]),
            "QD.r_matrix": np.array(rows, dtype=float),
        }
        for shown, numbers in expected.items():
            tolerance = 1e-6 if shown == "chroma_x" else 1e-8
            least = {"END0.x": 1e-11, "END0.px": 1e-2}.get(shown, 1e-12)  # what Tao takes for a closed orbit
            np.testing.assert_allclose(found[shown].numpy(), numbers, rtol=tolerance, atol=least, err_msg=shown)
    finally:
        tao.cmd("set ele Q2 k1 = 0")
        tao.cmd(f"set ele {element} {attribute} = {default!r}")
    for shown, numbers in model({}).items():
        torch.testing.assert_close(numbers, before[shown], rtol=1e-9, atol=1e-9)


def test_line_starts_where_it_is_told(decks: Any, plain: Any) -> None:
    assert plain.get("initial.beta_y").item() == 2.0  # the deck's
    with torch.no_grad():
        moved = plain({"initial.alpha_x": 0.0, "Q5.k1": 0.0}, outputs=["line.beta_x"])["line.beta_x"]
    assert moved[2].item() == pytest.approx(8.0 + 0.7**2 / 8.0, rel=1e-6)  # a drift of 0.7 m from a waist
    values = plain.get()
    assert values["line.beta_x"][0].item() == 8.0
    assert values["D3.s"].item() == pytest.approx(1.5)
    beta, alpha = decks.start["beta_x"], decks.start["alpha_x"]
    matrix = values["final.r_matrix"].numpy()
    (a, b), (c, d) = matrix[0, :2], matrix[1, :2]  # around the orbit, which a sextupole bends a little
    expected = a * a * beta - 2.0 * a * b * alpha + b * b * (1.0 + alpha**2) / beta
    assert values["D3.beta_x"].item() == pytest.approx(expected, rel=1e-9)
    assert values["D3.x"].item() == pytest.approx(a * 1e-4 + b * 1e5 / 1e8, rel=1e-2)
    assert values["D3.px"].item() == pytest.approx((c * 1e-4 + d * 1e5 / 1e8) * 1e8, rel=1e-2)


def test_an_angle_stays_where_the_length_moves_in_whatever_order(decks: Any) -> None:
    longer = {"BB.angle": 0.12, "BB.length": 1.5}
    found = []
    for controls in (["BB.angle", "BB.length"], ["BB.length", "BB.angle"]):
        with BmadModel(decks.ring(), controls=controls, outputs=["tune_x"]) as box, torch.no_grad():
            before = box.get("tune_x").item()
            found.append(box(longer)["tune_x"].item())
            box.refresh()
            assert [box.get(name).item() for name in longer] == [0.1, 1.0]
            assert box.get("tune_x").item() == pytest.approx(before, rel=1e-12)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_controls_that_undo_each_other_are_an_error(decks: Any) -> None:
    with (
        BmadModel(decks.line(), controls=["Q5.k1", "Q5.b1_gradient"], outputs=["final.r_matrix"]) as box,
        pytest.raises(SimulatorError, match=r"Tao has not taken Q5\.k1 = 3\.5.*another input of the element"),
    ):
        box({"Q5.k1": 3.5, "Q5.b1_gradient": -2.0})


# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize("knob, step", [("QF.k1", 1e-3), ("OV.a", 1e-3), ("BB.angle", 1e-4)])
def test_gradient_of_ring_optics(model: Any, knob: str, step: float, richardson: Any) -> None:
    value = model.get(knob).clone().requires_grad_()
    outputs = ["END0.beta_x", "tune_x", "tune_y"]
    found = model({knob: value}, outputs=outputs)
    for name in outputs:
        (slope,) = torch.autograd.grad(found[name], value, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return model({knob: x}, outputs=[name])[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, value.item(), step), rel=1e-8), name


@pytest.mark.gradient
@pytest.mark.parametrize("value", [2.9, 3.0, 3.1])
def test_gradient_of_line_optics(plain: Any, value: float, richardson: Any) -> None:
    outputs = ["D3.beta_x", "S1.beta_y", "D3.mu_x"]
    k1 = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    values = plain({"Q5.k1": k1}, outputs=outputs)
    for name in outputs:
        (slope,) = torch.autograd.grad(values[name], k1, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return plain({"Q5.k1": x}, outputs=[name])[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, value, 1e-2), rel=1e-9), name


@pytest.mark.gradient
def test_native_gradients_with_respect_to_the_start(decks: Any) -> None:
    outputs = ["D3.beta_x", "D3.alpha_y", "D3.mu_x", "D3.eta_x", "D3.x", "D3.px"]
    controls = [f"initial.{name}" for name in ("beta_x", "alpha_y", "eta_x", "px")]
    with BmadModel(decks.line(), controls=controls, outputs=outputs, initial=decks.start, gradient="native") as found:
        for name in controls:
            value = found.get(name).clone().requires_grad_()
            before = found.runs
            values = found({name: value})
            slopes = {out: torch.autograd.grad(values[out], value, retain_graph=True)[0].item() for out in outputs}
            known = [entry for entry in found.gradient_report().entries if entry.input == name]
            native = [entry.output for entry in known if entry.kind == "native"]
            assert set(native) >= {"D3.x", "D3.px"}
            assert name == "initial.px" or set(native) == set(outputs)
            assert found.runs - before <= 1 + 4 + 16

            def at_value(x: float, name: str = name) -> list[float]:
                return [value.item() for value in found({name: x}).values()]

            step = 1e-3 * max(abs(value.item()), 1e-2)
            up, down = (np.array(at_value(value.item() + h)) for h in (step, -step))
            expected = dict(zip(found.output_names, (up - down) / (2.0 * step), strict=True))
            for out in native:
                assert slopes[out] == pytest.approx(expected[out], rel=1e-5, abs=1e-12), (name, out)
