"""BmadModel against Bmad's Tao itself."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.bmad.session import check_installed
from lume_diff.blackbox.runners.proxy import ask
from lume_diff.errors import LatticeError, MissingExtraError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup
from lume_diff.testing import check_model

try:
    check_installed()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

RING = """
parameter[geometry] = closed
parameter[particle] = PARTICLE
beginning[e_tot] = ENERGY
qf: quadrupole, l = 0.5, k1 = 0.3
qd: quadrupole, l = 0.5, k1 = -0.6
q2: quadrupole, l = 0.1
bb: sbend, l = 1.0, angle = 0.1
hk: hkicker, l = 0.1
d: drift, l = 1
s1: sextupole, l = 0.1, k2 = 1
mk: marker, superimpose, ref = qd, offset = 0.1
ov: overlay = {qd[k1]: 2*a - 0.6, s1[k2]: a}, var = {a}, a = 0
end0: marker
cell: line = (qf, d, bb, hk, d, qd, q2, d, bb, d, qf, s1, end0)
use, cell
"""
LINE = """
parameter[geometry] = open
parameter[particle] = electron
beginning[p0c] = 1e8
beginning[beta_a] = 3
beginning[beta_b] = 2
q5: quadrupole, l = 0.2, k1 = 3
d1: drift, l = 0.5, aperture = APERTURE
s1: sextupole, l = 0.1, k2 = 100
d2: drift, l = 0.3
q6: quadrupole, l = 0.2, k1 = -3
d3: drift, l = 0.2
sect: line = (q5, d1, s1, d2, q6, d3)
use, sect
"""
CAVITY = """
parameter[geometry] = open
parameter[particle] = electron
beginning[p0c] = 1e7
beginning[beta_a] = 3
beginning[beta_b] = 2
q5: quadrupole, l = 0.2, k1 = 3
d1: drift, l = 0.5
b1: sbend, l = 0.3, angle = 0.1
c1: lcavity, l = 0.5, voltage = 2e6, rf_frequency = 1.3e9, phi0 = 0.05
q6: quadrupole, l = 0.2, k1 = -3
mk: marker, superimpose, ref = q6
sect: line = (q5, d1, b1, c1, q6)
use, sect
"""
INIT = """
&tao_design_lattice
 design_lattice(1)%file = "line.bmad"
/
&tao_beam_init
 beam_init%n_particle = 500
 beam_init%bunch_charge = 1e-10
 beam_init%a_norm_emit = 1e-6
 beam_init%b_norm_emit = 1e-6
 beam_init%sig_z = 1e-4
 beam_init%sig_pz = 1e-3
/
"""


def ring(folder: Path, particle: str = "electron", energy: float = 1e9) -> Path:
    path = folder / f"ring_{particle}.bmad"
    path.write_text(RING.replace("PARTICLE", particle).replace("ENERGY", repr(energy)))
    return path


def line(folder: Path, aperture: float = 0.0) -> Path:
    path = folder / ("line.bmad" if not aperture else f"line_{aperture}.bmad")
    path.write_text(LINE.replace("APERTURE", repr(aperture)))
    return path


def deck(folder: Path) -> Path:
    line(folder)
    path = folder / "tao.init"
    path.write_text(INIT)
    return path


def bunch(n: int) -> TorchParticleGroup:
    moments = {"beta_x": 3.0, "norm_emit_x": 1e-6, "beta_y": 2.0, "norm_emit_y": 1e-6, "sigma_t": 1e-12}
    return BunchFromMoments(n, mean_energy=1e8, charge=1e-10, sigma_energy=1e5, **moments).get("final_particles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decks")


RING_OUTPUTS = ["tune_x", "tune_y", "chroma_x", "END0.beta_x", "END0.eta_x", "END0.x", "END0.px", "QD.r_matrix"]


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Any]:
    controls = ["QF.k1", "Q2.k1", "Q2.length", "BB.angle", "HK.hkick", "OV.a", "Q2.tilt", "Q2.x_pitch"]
    with BmadModel(ring(folder), controls=controls, outputs=[*RING_OUTPUTS, "line.beta_y"]) as found:
        yield found


START = {"beta_x": 8.0, "alpha_x": -0.5, "eta_x": 0.2, "x": 1e-4, "px": 1e5}


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[Any]:
    """A line without a bunch."""
    places = [f"D3.{name}" for name in ("beta_x", "mu_x", "eta_x", "x", "px", "s")]
    outputs = [*places, "S1.beta_y", "line.beta_x", "final.r_matrix"]
    with BmadModel(line(folder), controls=["Q5.k1"], outputs=outputs, initial=START) as found:
        yield found


@pytest.fixture(scope="module")
def tracked(folder: Path) -> Iterator[Any]:
    """A line through which a bunch of 10 000 particles passes, in mixed order and with one dead."""
    beam = bunch(10_000).replace(id=torch.randperm(10_000) + 5)
    beam = beam.replace(alive=torch.where(torch.arange(10_000) == 3, 0.0, 1.0).to(torch.float64))
    outputs = ["S1.particles", "final.sigma_x", "D3.beta_x"]
    with BmadModel(line(folder), controls=["Q5.k1", "Q6.k1"], beam=beam, outputs=outputs) as found:
        yield found


def richardson(function: Callable[[float], float], x: float, step: float) -> float:
    """Return a derivative, of sixth order in the step."""
    slopes = [(function(x + h) - function(x - h)) / (2.0 * h) for h in (step, step / 2, step / 4)]
    first, second = (4.0 * slopes[1] - slopes[0]) / 3.0, (4.0 * slopes[2] - slopes[1]) / 3.0
    return (16.0 * second - first) / 15.0


# -- names ---------------------------------------------------------------------------------------------------


def test_variables_are_found(folder: Path) -> None:
    with BmadModel(ring(folder)) as found:
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
def test_unknown_name_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownVariableError, match=message):
        BmadModel(ring(folder), **options)


def test_what_cannot_be_set_is_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"'QD\.k1'.*overlay"):
        BmadModel(ring(folder), controls=["QD.k1"])
    with pytest.raises(ValidationError, match="give beam="):
        BmadModel(ring(folder), outputs=["final.sigma_x"])


def test_what_is_no_deck_is_refused(folder: Path) -> None:
    broken = folder / "broken.bmad"
    broken.write_text("this is: no lattice")
    for path, message in ((folder / "none.init", "does not exist"), (broken, "Tao does not take.*bmad_parser")):
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


def test_line_starts_where_it_is_told(plain: Any) -> None:
    assert plain.get("initial.beta_y").item() == 2.0  # the deck's
    with torch.no_grad():
        moved = plain({"initial.alpha_x": 0.0, "Q5.k1": 0.0}, outputs=["line.beta_x"])["line.beta_x"]
    assert moved[2].item() == pytest.approx(8.0 + 0.7**2 / 8.0, rel=1e-6)  # a drift of 0.7 m from a waist
    values = plain.get()
    assert values["line.beta_x"][0].item() == 8.0
    assert values["D3.s"].item() == pytest.approx(1.5)
    beta, alpha = START["beta_x"], START["alpha_x"]
    matrix = values["final.r_matrix"].numpy()
    (a, b), (c, d) = matrix[0, :2], matrix[1, :2]  # around the orbit, which a sextupole bends a little
    expected = a * a * beta - 2.0 * a * b * alpha + b * b * (1.0 + alpha**2) / beta
    assert values["D3.beta_x"].item() == pytest.approx(expected, rel=1e-9)
    assert values["D3.x"].item() == pytest.approx(a * 1e-4 + b * 1e5 / 1e8, rel=1e-2)
    assert values["D3.px"].item() == pytest.approx((c * 1e-4 + d * 1e5 / 1e8) * 1e8, rel=1e-2)


# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize("knob, step", [("QF.k1", 1e-3), ("OV.a", 1e-3), ("BB.angle", 1e-4)])
def test_gradient_of_ring_optics(model: Any, knob: str, step: float) -> None:
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
def test_gradient_of_line_optics(plain: Any, value: float) -> None:
    outputs = ["D3.beta_x", "S1.beta_y", "D3.mu_x"]
    k1 = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    values = plain({"Q5.k1": k1}, outputs=outputs)
    for name in outputs:
        (slope,) = torch.autograd.grad(values[name], k1, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return plain({"Q5.k1": x}, outputs=[name])[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, value, 1e-2), rel=1e-9), name


@pytest.mark.gradient
def test_native_gradients_with_respect_to_the_start(folder: Path) -> None:
    outputs = ["D3.beta_x", "D3.alpha_y", "D3.mu_x", "D3.eta_x", "D3.x", "D3.px"]
    controls = [f"initial.{name}" for name in ("beta_x", "alpha_y", "eta_x", "px")]
    with BmadModel(line(folder), controls=controls, outputs=outputs, initial=START, gradient="native") as found:
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


@pytest.mark.gradient
def test_energy_rises_in_a_cavity(folder: Path) -> None:
    path = folder / "cavity.bmad"
    path.write_text(CAVITY)
    moments = {"beta_x": 3.0, "norm_emit_x": 1e-12, "beta_y": 2.0, "norm_emit_y": 1e-12, "sigma_t": 1e-16}
    beam = BunchFromMoments(20, mean_energy=1.001e7, charge=1e-10, sigma_energy=0.1, **moments).get("final_particles")
    beam = beam.replace(x=beam.x + 1e-4)
    start = math.hypot(1e7, 510998.95069)
    gain = 2e6 * math.cos(0.1 * math.pi)
    with BmadModel(path, controls=["C1.voltage"], beam=beam, outputs=["final.mean_energy"], gradient="native") as found:
        energy = found.reference_energy({}, ["Q5", "C1", "Q6", "MK"])
        expected = [start, start, start + gain, start + gain]
        np.testing.assert_allclose([value.item() for value in energy.values()], expected, rtol=1e-9)
        doubled = found.reference_energy({"C1.voltage": 4e6}, ["Q6"])["Q6"].item()
        assert doubled == pytest.approx(start + 2.0 * gain, rel=1e-9)
        with pytest.raises(ValidationError, match="batch"):
            found.reference_energy({"C1.voltage": torch.tensor([1e6, 2e6], dtype=torch.float64)}, ["Q6"])
        x = beam.x.clone().requires_grad_()
        pz = beam.pz.clone().requires_grad_()
        out = found({"initial_particles": beam.replace(x=x, pz=pz)})["final_particles"]
        slopes = torch.autograd.grad(out.px.sum() + out.x.sum() * 1e6, (x, pz))

        def moved(dx: float, dpz: float) -> float:
            given = {"initial_particles": beam.replace(x=beam.x + dx, pz=beam.pz + dpz)}
            bunch = found(given)["final_particles"]
            return (bunch.px.sum() + bunch.x.sum() * 1e6).item()

        assert slopes[0].sum().item() == pytest.approx((moved(1e-5, 0) - moved(-1e-5, 0)) / 2e-5, rel=1e-4)
        assert slopes[1].sum().item() == pytest.approx((moved(0, 1e3) - moved(0, -1e3)) / 2e3, rel=1e-3)


@pytest.mark.slow
def test_model_keeps_every_law(folder: Path) -> None:
    with BmadModel(ring(folder), controls=["QF.k1", "OV.a"], outputs=["tune_x", "END0.beta_x"]) as found:
        check_model(found)


@pytest.mark.slow
def test_model_with_a_bunch_keeps_every_law(folder: Path) -> None:
    with BmadModel(deck(folder), controls=["Q5.k1"], outputs=["D3.beta_x", "final.sigma_x"]) as found:
        check_model(found)


# -- life ----------------------------------------------------------------------------------------------------


def test_unstable_lattice_is_an_error_and_no_end(model: Any) -> None:
    before = model.get("tune_x")
    with pytest.raises(SimulatorError, match=r"(?s)UNSTABLE.*QF\.k1=20"):
        model.set({"QF.k1": 20.0})
    assert model({})["tune_x"].item() == pytest.approx(before.item(), rel=1e-12)


def test_number_that_is_huge_is_an_error(model: Any) -> None:
    with pytest.raises(SimulatorError, match=r"Tao .*QF\.k1=1"):
        model({"QF.k1": 1e300})
    assert math.isfinite(model({"QF.k1": 0.3000001})["tune_x"])


def test_value_that_is_not_finite_is_refused(model: Any) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match=r"QF\.k1"):
            model({"QF.k1": value})


def test_killed_worker_is_replaced(model: Any) -> None:
    expected = model({"HK.hkick": 1e-6})["END0.x"].item()
    before = model._runner.pids()
    os.kill(before[0], signal.SIGKILL)
    assert model({"HK.hkick": 2e-6})["END0.x"].item() == pytest.approx(2.0 * expected, rel=1e-3)
    assert model._runner.pids() != before


def test_refresh_reads_what_was_changed_by_hand(folder: Path) -> None:
    with BmadModel(ring(folder), controls=["QF.k1", "Q2.k1"], outputs=["tune_x"]) as found:
        identity = found._runner.identity()
        found.set({"Q2.k1": 0.01})
        found.simulator.cmd("change ele QF k1 0.01")  # by so much, so that twice is another thing
        found.refresh()
        assert [round(found.get(name).item(), 12) for name in ("QF.k1", "Q2.k1")] == [0.31, 0.01]
        assert found._runner.identity() != identity
        tune = found.get("tune_x").item()
        os.kill(found._runner.pids()[0], signal.SIGKILL)
        assert found({})["tune_x"].item() == pytest.approx(tune, rel=1e-12)
        with pytest.raises(SimulatorError, match="UNSTABLE"):
            found({"QF.k1": 20.0})  # starts Tao anew
        assert found({"Q2.k1": 0.02})["tune_x"].item() != pytest.approx(tune, rel=1e-6)
        np.testing.assert_allclose(ask(found.simulator.lat_list, "QF", "ele.k1"), [0.31, 0.31], rtol=1e-12)


def test_one_tao_in_this_process(folder: Path) -> None:
    with BmadModel(ring(folder), controls=["QF.k1"], outputs=["tune_x"], workers=0) as found:
        tune = found.get("tune_x").item()
        with pytest.raises(ValidationError, match=r"a Tao already.*workers=1"):
            BmadModel(ring(folder), controls=["QF.k1"], outputs=["tune_x"], workers=0)
        found.simulator.cmd("set ele QF k1 = 0.31")
        found.refresh()
        assert found.get("QF.k1").item() == 0.31
        moved = found.get("tune_x").item()
        assert moved != tune
        with pytest.raises(SimulatorError, match="UNSTABLE"):
            found({"QF.k1": 20.0})  # starts Tao anew, which is brought to the same state
        assert found({})["tune_x"].item() == pytest.approx(moved, rel=1e-12)
        assert found.simulator.lat_list("QF", "ele.k1")[0] == 0.31
    with BmadModel(ring(folder), controls=["QF.k1"], outputs=["tune_x"], workers=0) as again:
        assert again.get("tune_x").item() == pytest.approx(tune, rel=1e-12)


def test_identity_tells_version_and_deck(model: Any, tracked: Any) -> None:
    identities = [found._runner.identity() for found in (model, tracked)]
    assert all(identity.startswith("Bmad 2") for identity in identities)
    assert identities[0] != identities[1]


# -- bunches -------------------------------------------------------------------------------------------------


def test_ten_thousand_particles_pass_as_in_pyat(tracked: Any) -> None:
    at = pytest.importorskip("at")
    from lume_diff.blackbox.at.model import ATModel

    beam = tracked.get("initial_particles")
    elements = [at.Quadrupole("Q5", 0.2, 3.0), at.Drift("D1", 0.5), at.Sextupole("S1", 0.1, 50.0), at.Drift("D2", 0.3)]
    lattice = at.Lattice([*elements, at.Quadrupole("Q6", 0.2, -3.0), at.Drift("D3", 0.2)], energy=1e8)
    start = {"beta_x": 3.0, "beta_y": 2.0, "alpha_x": 0.0, "alpha_y": 0.0}
    outputs = ["S1.particles", "final.sigma_x", "D3.beta_x"]
    ours = tracked.get()
    theirs = ATModel(lattice, controls=[], beam=beam, outputs=outputs, initial=start).get()
    for name in ("S1.particles", "final_particles"):
        one, two = ours[name], theirs[name]
        assert len(one) == 10_000
        assert torch.equal(one.id, beam.id)
        assert torch.equal(one.alive, beam.alive)
        through = beam.alive > 0.0
        for field in ("x", "px", "y", "py", "pz", "t", "z"):
            a, b = getattr(one, field)[through], getattr(two, field)[through]
            spread = (b - b.mean()).abs().max() if field != "z" else 1.0
            assert ((a - b).abs().max() / spread).item() < 1e-4, (name, field)
    for name in ("final.sigma_x", "D3.beta_x"):
        assert ours[name].item() == pytest.approx(theirs[name].item(), rel=1e-4)


@pytest.mark.gradient
def test_gradient_through_a_bunch(folder: Path) -> None:
    beam = bunch(200)
    with BmadModel(line(folder), controls=["Q5.k1"], beam=beam, outputs=["final.sigma_x"]) as found:
        runs = []
        for value in (3.0, 3.01):  # the first measures noise, and how far particles act on each other, once
            before = found.runs
            k1 = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            x = beam.x.clone().requires_grad_()
            found({"Q5.k1": k1, "initial_particles": beam.replace(x=x)})["final.sigma_x"].backward()
            runs.append(found.runs - before)
        assert runs[1] == 1 + 12 + 2
        assert k1.grad is not None
        assert x.grad is not None
        direction = torch.linspace(-1.0, 1.0, 200, dtype=torch.float64) * 1e-4

        def sigma(step: float, share: float) -> float:
            moved = beam.replace(x=beam.x + share * direction)
            return found({"Q5.k1": 3.01 + step, "initial_particles": moved})["final.sigma_x"].item()

        assert k1.grad.item() == pytest.approx(richardson(lambda h: sigma(h, 0.0), 0.0, 1e-2), rel=1e-8)
        along = (x.grad * direction).sum().item()
        assert along == pytest.approx(richardson(lambda h: sigma(0.0, h), 0.0, 1e-2), rel=1e-8)


def test_apertures_cut_and_the_lost_keep_their_row(folder: Path) -> None:
    zero = np.zeros(4)
    x = np.array([0.0, 2e-3, 0.0, 0.0])
    px = np.array([0.0, 0.0, 2e5, 1e2])
    rest = {"y": zero, "z": zero, "py": zero, "pz": np.sqrt(1e16 - px**2), "t": np.array([0.0, 0.0, 0.0, 1e-8])}
    beam = TorchParticleGroup(x=x, px=px, weight=1e-12, **rest)
    with BmadModel(line(folder, 1e-3), controls=["Q5.k1"], beam=beam, outputs=["final_particles"]) as found:
        particles = found.get("final_particles")
        assert particles.alive.tolist() == [1.0, 0.0, 0.0, 1.0]
        assert bool(torch.isfinite(particles.t).all())
        assert (particles.t[3] - particles.t[0]).item() == pytest.approx(1e-8, rel=1e-6)
        # all lost, where Tao itself would keep the bunch of the run before at the end
        away = found({"initial_particles": beam.replace(x=torch.full((4,), 0.5, dtype=torch.float64))})
        assert away["final_particles"].alive.tolist() == [0.0] * 4


def test_energy_error_acts_and_time_passes_through(folder: Path, tracked: Any) -> None:
    plain = tracked.get("final.sigma_x").item()
    stiff = tracked({"reference_energy": 1.01e8})["final.sigma_x"].item()
    assert abs(stiff / plain - 1.0) > 1e-3
    assert tracked({})["final.sigma_x"].item() == plain
    start = tracked.get("reference_time").item()
    later, sooner = tracked({"reference_time": start + 1e-12})["final_particles"], tracked.get("final_particles")
    assert torch.allclose((later.t - sooner.t)[sooner.alive > 0.0], torch.zeros((), dtype=torch.float64), atol=1e-22)
    with pytest.raises(ValidationError, match=r"'Proton'"):
        BmadModel(ring(folder, "proton", 1.2e9), beam=bunch(10))


def test_own_beam_of_the_deck_is_always_the_same(folder: Path) -> None:
    beams = []
    for options in ({}, {}, {"seed": 2}):
        with BmadModel(deck(folder), controls=["Q5.k1"], outputs=["final.sigma_x"], **options) as found:
            beams.append(found.get("initial_particles"))
            assert found.get("reference_energy").item() == pytest.approx(1e8, rel=1e-4)
    assert len(beams[0]) == 500
    assert beams[0]["norm_emit_x"].item() == pytest.approx(1e-6, rel=1e-2)
    assert torch.equal(beams[0].x, beams[1].x)
    assert not torch.equal(beams[0].x, beams[2].x)
