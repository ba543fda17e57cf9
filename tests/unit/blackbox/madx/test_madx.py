"""MADXModel against MAD-X itself."""

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

from lume_diff.blackbox.madx.knobs import KnobFinder
from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.errors import LatticeError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup
from lume_diff.testing import check_model

cpymad = pytest.importorskip("cpymad.madx")

FODO = """
kqf = 0.3;
kboth := kqf;
qf: quadrupole, l = 0.5, k1 := kboth;
qd: quadrupole, l = 0.5, k1 = -0.6;
bb: sbend, l = 1.0, angle = 0.1;
hk: hkicker, l = 0.1;
mm: multipole, knl = {0, 0.01};
end: marker;
cell: sequence, l = 10, refer = centre;
qf, at = 0.25; bb, at = 2; hk, at = 3; mm, at = 4; qd, at = 5.25; bb2: bb, at = 7; qf, at = 9.25; end, at = 10;
endsequence;
beam, particle = PARTICLE, energy = ENERGY;
"""
LINE = """
q5: quadrupole, l = 0.2, k1 = 3.0;
s1: sextupole, l = 0.1, k2 = 100;
aper: collimator, l = 0.1, apertype = circle, aperture = {APERTURE};
q6: quadrupole, l = 0.2, k1 = -3.0;
end: marker;
sect: sequence, l = 1.5, refer = entry;
q5, at = 0; s1, at = 0.7; aper, at = 0.9; q6, at = 1.1; end, at = 1.5;
endsequence;
beam, particle = electron, energy = 0.1;
use, sequence = sect;
"""


def fodo(folder: Path, particle: str = "electron", energy: float = 1.0) -> Path:
    path = folder / f"fodo_{particle}.madx"
    path.write_text(FODO.replace("PARTICLE", particle).replace("ENERGY", repr(energy)))
    return path


def line(folder: Path, aperture: float = 0.5) -> Path:
    path = folder / f"line_{aperture}.madx"
    path.write_text(LINE.replace("APERTURE", repr(aperture)))
    return path


def bunch(n: int) -> TorchParticleGroup:
    moments = {"beta_x": 3.0, "norm_emit_x": 1e-6, "beta_y": 2.0, "norm_emit_y": 1e-6, "sigma_t": 1e-12}
    return BunchFromMoments(n, mean_energy=1e8, charge=1e-10, sigma_energy=1e5, **moments).get("final_particles")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decks")


@pytest.fixture(scope="module")
def own(folder: Path) -> Iterator[Any]:
    """MAD-X itself, with the deck loaded."""
    with open(folder / "own.log", "wb") as log, cpymad.Madx(stdout=log, stderr=log) as madx:
        madx.call(str(fodo(folder)))
        madx.use("cell")
        yield madx


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Any]:
    controls = ["qf.k1", "qd.k1", "qd.length", "bb.angle", "hk.hkick", "mm.k1l", "mm.k2sl", "qd.tilt"]
    outputs = [
        "tune_x",
        "tune_y",
        "chroma_x",
        "end.beta_x",
        "end.eta_x",
        "end.x",
        "end.px",
        "qd.r_matrix",
        "line.beta_y",
    ]
    with MADXModel(fodo(folder), sequence="cell", controls=controls, outputs=outputs) as found:
        yield found


def richardson(function: Callable[[float], float], x: float, step: float) -> float:
    """Return a derivative, of sixth order in the step."""
    slopes = [(function(x + h) - function(x - h)) / (2.0 * h) for h in (step, step / 2, step / 4)]
    first, second = (4.0 * slopes[1] - slopes[0]) / 3.0, (4.0 * slopes[2] - slopes[1]) / 3.0
    return (16.0 * second - first) / 15.0


# -- names ---------------------------------------------------------------------------------------------------


def test_variables_are_found(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with MADXModel(fodo(folder)) as found:
        assert {"kqf", "qd.k1", "bb.angle", "bb2.angle", "hk.hkick", "mm.k1l", "qf.length"} <= set(found.input_names)
        assert not {"qf.k1", "kboth"} & set(found.input_names)  # bound to kqf
        assert {"tune_x", "chroma_y", "end.beta_x", "final.eta_x", "line.beta_y"} <= set(found.output_names)
        assert found.supported_variables["qd.k1"].unit == "1/m^2"
        assert math.isfinite(found.get("tune_x"))
        assert found.reference_energy(None, ["qf"])["qf"].item() == 1e9
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"controls": ["QF.k1"]}, "nearest: 'qf.k1'"),
        ({"controls": ["qf.k1x"]}, "nearest: 'k1'"),
        ({"controls": ["kqg"]}, "nearest: 'kqf'"),
        ({"outputs": ["ende.beta_x"]}, "nearest: 'end'"),
        ({"outputs": ["tunex"]}, "nearest: 'tune_x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unknown_name_is_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownVariableError, match=message):
        MADXModel(fodo(folder), **options)


def test_bound_controls_are_refused(folder: Path) -> None:
    with pytest.raises(ValidationError, match=r"'qf\.k1' and 'kqf'.*choose one"):
        MADXModel(fodo(folder), controls=["qf.k1", "kqf"])


def test_what_is_no_deck_is_refused(folder: Path) -> None:
    broken, nothing = folder / "broken.madx", folder / "nothing.madx"
    broken.write_text('call, file = "is_not_there.madx";')
    nothing.write_text("a = 1;")
    for deck, sequence, message in (
        (folder / "none.madx", None, "does not exist"),
        (broken, None, "MAD-X does not take"),
        (nothing, None, "the deck has 0"),
        (fodo(folder), "cel", "nearest: 'cell'"),
    ):
        with pytest.raises(LatticeError, match=message):
            MADXModel(deck, sequence=sequence)


# -- optics --------------------------------------------------------------------------------------------------

KNOBS = [
    ("qf.k1", 0.31, "qf, k1 = 0.31", "qf, k1 := kboth"),
    ("qd.length", 0.52, "qd, l = 0.52; use, sequence = cell", "qd, l = 0.5; use, sequence = cell"),
    ("bb.angle", 0.11, "bb, angle = 0.11", "bb, angle = 0.1"),
    ("hk.hkick", 1e-4, "hk, kick = 1e-4", "hk, kick = 0"),
    ("mm.k1l", 0.02, "mm, knl = {0, 0.02}", "mm, knl = {0, 0.01}"),
    ("mm.k2sl", 0.5, "mm, ksl = {0, 0, 0.5}", "mm, ksl = {0, 0, 0}"),
    ("qd.tilt", 0.01, "qd, tilt = 0.01", "qd, tilt = 0"),
]


@pytest.mark.parametrize("name, value, there, back", KNOBS, ids=[knob[0] for knob in KNOBS])
def test_optics_are_those_of_madx(model: Any, own: Any, name: str, value: float, there: str, back: str) -> None:
    before = model.get()
    found = model({name: value})
    own.input(there)
    try:
        own.input("twiss, sequence = cell, rmatrix, chrom, table = own;")
        table = own.table.own
        node = table.row_names().index("qd")
        pc = 1e9 * own.sequence.cell.beam.pc
        expected = {
            "tune_x": table.mux[-1],
            "tune_y": table.muy[-1],
            "chroma_x": table.dmux[-1],
            "end.beta_x": table.betx[-1],
            "end.eta_x": table.dx[-1],
            "end.x": table.x[-1],
            "end.px": table.px[-1] * pc,
            "qd.r_matrix": [[table[f"re{i}{j}"][node] for j in range(1, 7)] for i in range(1, 7)],
            "line.beta_y": table.bety,
        }
        for shown, numbers in expected.items():
            np.testing.assert_allclose(found[shown].numpy(), numbers, rtol=1e-6, atol=1e-9, err_msg=shown)
        assert found["tune_x"].item() == pytest.approx(table.summary.q1, abs=1e-9)
    finally:
        own.input(back)
    assert all(torch.equal(value, before[shown]) for shown, value in model({}).items())
    assert model.simulator.elements.qf.cmdpar.k1.definition == "kboth"


def test_dispersion_and_chromaticity_are_by_the_momentum(folder: Path) -> None:
    outputs = ["end.eta_x", "end.etap_x", "chroma_x"]
    with MADXModel(fodo(folder, "proton", 1.2), controls=[], outputs=outputs) as found:
        values = found.get()
        ends = []
        for deviation in (1e-4, -1e-4):
            found.simulator.input(f"twiss, sequence = cell, deltap = {deviation}, table = off;")
            table = found.simulator.table.off
            ends.append(np.array([table.x[-1], table.px[-1], table.mux[-1]]))
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose([values[name].item() for name in outputs], slope, rtol=1e-5)


def test_line_starts_where_it_is_told(folder: Path, own: Any) -> None:
    start = {"beta_x": 8.0, "alpha_x": -0.5, "beta_y": 3.0, "eta_x": 0.2, "x": 1e-4, "px": 1e5}
    outputs = ["end.beta_x", "end.mu_x", "end.eta_x", "end.x", "end.px"]
    with MADXModel(fodo(folder), controls=["kqf"], outputs=outputs, initial=start) as found:
        values = [value.item() for value in found({"kqf": 0.31}, outputs=outputs).values()]
    beam = own.sequence.cell.beam
    own.globals.kqf = 0.31
    px = 1e5 / (1e9 * beam.pc)
    given = f"betx = 8, alfx = -0.5, bety = 3, dx = {0.2 / beam.beta}, x = 1e-4, px = {px}"
    own.input(f"twiss, sequence = cell, {given}, table = own;")
    own.globals.kqf = 0.3
    table = own.table.own
    factors = (1.0, 2.0 * math.pi, beam.beta, 1.0, 1e9 * beam.pc)
    expected = [
        table[name][-1] * factor for name, factor in zip(("betx", "mux", "dx", "x", "px"), factors, strict=True)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-9)


# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize("knob", ["qf.k1", "qd.k1"])
def test_gradient_of_optics(model: Any, knob: str) -> None:
    k1 = model.get(knob).clone().requires_grad_()
    outputs = {"end.beta_x": 1e-8, "tune_x": 3e-6, "tune_y": 3e-6}
    found = model({knob: k1}, outputs=list(outputs))
    for name, tolerance in outputs.items():
        (slope,) = torch.autograd.grad(found[name], k1, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return model({knob: x}, outputs=[name])[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, k1.item(), 1e-3), rel=tolerance), name


def test_variable_of_the_deck_has_a_gradient(folder: Path) -> None:
    with MADXModel(fodo(folder), controls=["kqf"], outputs=["tune_x"]) as found:
        kqf = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        found({"kqf": kqf})["tune_x"].backward()
        expected = richardson(lambda x: found({"kqf": x})["tune_x"].item(), 0.3, 1e-3)
        assert kqf.grad is not None
        assert kqf.grad.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
def test_model_keeps_every_law(folder: Path) -> None:
    outputs = ["tune_x", "end.beta_x"]
    with MADXModel(fodo(folder), sequence="cell", controls=["qf.k1", "qd.k1"], outputs=outputs) as found:
        check_model(found)


# -- life ----------------------------------------------------------------------------------------------------


def test_unstable_lattice_is_an_error_and_no_end(model: Any) -> None:
    before = model.get("tune_x")
    with pytest.raises(SimulatorError, match=r"TWISS failed.*qf\.k1=20"):
        model.set({"qf.k1": 20.0})
    assert torch.equal(model({})["tune_x"], before)


def test_overlap_kills_the_child_and_no_more(model: Any) -> None:
    before = model.get("tune_x")
    with pytest.raises(SimulatorError, match=r"MAD-X died with exit code.*negative drift.*qd\.length=30"):
        model({"qd.length": 30.0})
    assert torch.equal(model({})["tune_x"], before)


def test_dead_child_is_replaced(model: Any) -> None:
    before = model.get("end.beta_x")
    process = model.simulator._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert model.simulator._process.pid != process.pid
    os.kill(model.simulator._process.pid, signal.SIGKILL)
    runs = model.runs
    assert model({"hk.hkick": 1e-9})["end.beta_x"].item() == pytest.approx(before.item(), rel=1e-9)
    assert model.runs == runs + 1


def test_close_ends_the_child(folder: Path) -> None:
    found = MADXModel(fodo(folder), controls=[], outputs=["tune_x"])
    process = found.simulator._process
    found.close()
    assert process.poll() is not None


def test_value_that_is_not_finite_is_refused(model: Any) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match=r"qf\.k1"):
            model({"qf.k1": value})


def test_value_that_madx_left_out_is_noticed(folder: Path) -> None:
    session = MADXSession([fodo(folder)], "cell")
    try:
        (knob,) = KnobFinder(session).choose(["qd.k1"])
        knob.check(session, -0.6)
        session.command(knob.commands(session, math.nan)[0])  # MAD-X takes it for zero, without a word
        with pytest.raises(SimulatorError, match=r"has not taken qd\.k1 = -0\.7"):
            knob.check(session, -0.7)
    finally:
        session.close()


def test_refresh_reads_what_was_changed_by_hand(folder: Path) -> None:
    with MADXModel(fodo(folder), controls=["qf.k1", "qd.k1"], outputs=["tune_x"]) as found:
        identity = found._runner.identity()
        found.set({"qd.k1": -0.61})
        found.simulator.globals.kqf = 0.32
        found.simulator.elements.qd.k1 = -0.62
        found.refresh()
        assert [found.get(name).item() for name in ("qf.k1", "qd.k1")] == [0.32, -0.61]
        assert found._runner.identity() != identity
        tune = found.get("tune_x")
        with pytest.raises(SimulatorError):
            found({"qf.k1": 20.0})  # starts a fresh process, which is brought to the same state
        assert torch.equal(found({})["tune_x"], tune)
        assert found.simulator.elements.qf.k1 == 0.32
        found.reset()
        assert found.get("qd.k1").item() == -0.62


def test_identity_follows_files_that_the_deck_calls(folder: Path) -> None:
    inner, outer = folder / "inner.madx", folder / "outer.madx"
    outer.write_text('call, file = "inner.madx";')
    identities = []
    for extra in ("", "! a note"):
        inner.write_text(FODO.replace("PARTICLE", "electron").replace("ENERGY", "1.0") + extra)
        with MADXModel(outer, controls=[], outputs=["tune_x"]) as found:
            assert math.isfinite(found.get("tune_x"))
            identities.append(found._runner.identity())
    assert identities[0] != identities[1]
    assert identities[0].startswith("MAD-X 5.")


# -- bunches -------------------------------------------------------------------------------------------------


def test_ten_thousand_particles_pass_as_in_pyat(folder: Path) -> None:
    at = pytest.importorskip("at")
    from lume_diff.blackbox.at.model import ATModel

    beam = bunch(10_000).replace(id=torch.randperm(10_000) + 5)
    elements = [at.Quadrupole("Q5", 0.2, 3.0), at.Drift("D1", 0.5), at.Sextupole("S1", 0.1, 50.0), at.Drift("D2", 0.3)]
    lattice = at.Lattice([*elements, at.Quadrupole("Q6", 0.2, -3.0), at.Drift("D3", 0.2)], energy=1e8)
    outputs = ["s1.particles", "final.sigma_x", "end.beta_x"]
    with MADXModel(line(folder), controls=[], beam=beam, outputs=outputs) as found:
        ours = found.get()
    theirs = ATModel(lattice, controls=[], beam=beam, outputs=["S1.particles", "final.sigma_x", "D3.beta_x"]).get()
    for name, other in (("s1.particles", "S1.particles"), ("final_particles", "final_particles")):
        one, two = ours[name], theirs[other]
        assert torch.equal(one.id, beam.id)
        assert one.alive.min() == 1.0
        for field in ("x", "px", "y", "py", "pz", "t", "z"):
            a, b = getattr(one, field), getattr(two, field)
            spread = (b - b.mean()).abs().max() if field != "z" else 1.0
            assert ((a - b).abs().max() / spread).item() < 1e-5, (name, field)
    for name, other in (("final.sigma_x", "final.sigma_x"), ("end.beta_x", "D3.beta_x")):
        assert ours[name].item() == pytest.approx(theirs[other].item(), rel=1e-5)


@pytest.mark.gradient
def test_gradient_through_a_bunch(folder: Path) -> None:
    beam = bunch(200)
    with MADXModel(line(folder), controls=["q5.k1"], beam=beam, outputs=["final.sigma_x"]) as found:
        runs = []
        for value in (3.0, 3.01):  # the first measures noise, and how far particles act on each other, once
            before = found.runs
            k1 = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            x = beam.x.clone().requires_grad_()
            found({"q5.k1": k1, "initial_particles": beam.replace(x=x)})["final.sigma_x"].backward()
            runs.append(found.runs - before)
        assert runs[1] == 1 + 12 + 2
        assert k1.grad is not None
        assert x.grad is not None
        direction = torch.linspace(-1.0, 1.0, 200, dtype=torch.float64) * 1e-4

        def sigma(step: float, share: float) -> float:
            moved = beam.replace(x=beam.x + share * direction)
            return found({"q5.k1": 3.01 + step, "initial_particles": moved})["final.sigma_x"].item()

        assert k1.grad.item() == pytest.approx(richardson(lambda h: sigma(h, 0.0), 0.0, 1e-2), rel=1e-7)
        along = (x.grad * direction).sum().item()
        assert along == pytest.approx(richardson(lambda h: sigma(0.0, h), 0.0, 1e-2), rel=1e-7)


def test_wide_bunches_pass_and_apertures_cut(folder: Path) -> None:
    zero = np.zeros(4)
    x = np.array([0.0, 2e-3, 0.0, 0.0])
    px = np.array([0.0, 0.0, 2e6, 1e2])  # 0.02 rad is more than PTC lets pass if it is not told
    rest = {"y": zero, "z": zero, "py": zero, "pz": np.sqrt(1e16 - px**2), "t": np.array([0.0, 0.0, 0.0, 1e-8])}
    beam = TorchParticleGroup(x=x, px=px, weight=1e-12, **rest)
    start = {"beta_x": 1.0, "beta_y": 1.0}
    for aperture, alive in ((0.5, [1.0] * 4), (1e-3, [1.0, 0.0, 0.0, 1.0])):
        options = {"beam": beam, "initial": start, "outputs": ["final_particles"]}
        with MADXModel(line(folder, aperture), controls=[], **options) as found:
            particles = found.get("final_particles")
        assert particles.alive.tolist() == alive
        assert bool(torch.isfinite(particles.t).all())


def test_energy_error_acts(folder: Path) -> None:
    beam = bunch(50)
    outputs = ["final.sigma_x"]
    with MADXModel(line(folder), controls=["q5.k1", "q6.k1"], beam=beam, outputs=outputs) as found:
        plain = found.get("final.sigma_x").item()
        stiff = found({"reference_energy": 1.01e8})["final.sigma_x"].item()
        assert abs(stiff / plain - 1.0) > 1e-3
        assert found.simulator.sequence.sect.beam.energy == 0.1
    protons = fodo(folder, "proton", 1.2)
    with pytest.raises(ValidationError, match="'proton'"):
        MADXModel(protons, beam=beam)
