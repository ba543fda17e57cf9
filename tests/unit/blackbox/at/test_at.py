"""ATModel against pyAT itself."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.at.model import ATModel
from lume_diff.blackbox.codes.missing import require
from lume_diff.errors import (
    LatticeError,
    MissingExtraError,
    SimulatorError,
    UnknownVariableError,
    ValidationError,
)
from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup
from lume_diff.testing import check_model

at = pytest.importorskip("at")

C = 299792458.0
MASS = 0.51099895069e6


def fodo(energy: float = 1e9) -> Any:
    d = at.Drift("D", 2.0)
    b = at.Dipole("B", 1.0, 0.1)
    elements = [at.Quadrupole("QF", 0.5, 0.5), d, at.Sextupole("S", 0.1, 10.0), b, d]
    elements += [at.Quadrupole("QD", 0.5, -0.5), d, b, at.Corrector("C", 0.0, [0.0, 0.0]), d, at.Marker("END")]
    return at.Lattice(elements, energy=energy, name="cell")


def ring_with_cavity() -> Any:
    ring = at.Lattice([*fodo()] * 16, energy=1e9).deepcopy()
    for bend in ring["B"]:
        bend.BendingAngle = math.pi / 16
    for quadrupole in ring["QF"]:
        quadrupole.K = 0.52
    ring.append(at.RFCavity("RF", 0.0, 1e6, 300 * C / ring.get_s_pos(len(ring))[0], 300, 1e9))
    return at.Lattice(ring, energy=1e9, harmonic_number=300)


def bunch(energy: float = 1e8, n: int = 500, **changes: float) -> TorchParticleGroup:
    moments = {"beta_x": 10.0, "norm_emit_x": 1e-7, "beta_y": 5.0, "norm_emit_y": 1e-7, "sigma_t": 1e-12}
    model = BunchFromMoments(n, mean_energy=energy, charge=1e-10, sigma_energy=1e-3 * energy, **{**moments, **changes})
    return model.get("final_particles")


def rays(energy: float, **columns: Any) -> TorchParticleGroup:
    """Return particles of one energy [eV] on z = 0 with given coordinates; momenta in units of the total one."""
    n = max(np.size(value) for value in columns.values())
    p = np.sqrt(energy**2 - MASS**2) * (1.0 + np.asarray(columns.pop("delta", 0.0)) * np.ones(n))
    px, py = (np.asarray(columns.pop(name, 0.0)) * p for name in ("xp", "yp"))
    rest = {name: np.broadcast_to(columns.get(name, 0.0), n).copy() for name in ("x", "y", "t")}
    return TorchParticleGroup(**rest, z=np.zeros(n), px=px, py=py, pz=np.sqrt(p**2 - px**2 - py**2), weight=1e-12)


def richardson(function: Callable[[float], float], x: float, step: float) -> float:
    """Return a derivative, of sixth order in the step."""
    slopes = [(function(x + h) - function(x - h)) / (2.0 * h) for h in (step, step / 2, step / 4)]
    first, second = (4.0 * slopes[1] - slopes[0]) / 3.0, (4.0 * slopes[2] - slopes[1]) / 3.0
    return (16.0 * second - first) / 15.0


# -- names ---------------------------------------------------------------------------------------------------


def test_variables_are_found() -> None:
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
def test_unknown_name_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownVariableError, match=message):
        ATModel(fodo(), **options)


def test_string_for_a_list_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"write \['QF.k1'\]"):
        ATModel(fodo(), controls="QF.k1")


def test_elements_that_differ_do_not_act_as_one() -> None:
    cell = at.Lattice([at.Quadrupole("Q", 0.5, 0.5), at.Drift("D", 1.0), at.Quadrupole("Q", 0.5, -0.5)], energy=1e9)
    with pytest.raises(ValidationError, match=r"different values \(-0.5, 0.5\)"):
        ATModel(cell, controls=["Q.k1"])
    assert ATModel(cell, periodic=False).input_names[:2] == ["Q.length", "D.length"]


def test_elements_of_one_name_act_as_one() -> None:
    model = ATModel(fodo(), controls=["B.angle"], outputs=["END.eta_x"])
    own = fodo()
    for bend in own["B"]:
        bend.BendingAngle = 0.12
    assert model({"B.angle": 0.12})["END.eta_x"].item() == pytest.approx(_optics(own)["eta_x"], rel=1e-9)


def test_missing_code_names_the_line_that_installs_it() -> None:
    with pytest.raises(MissingExtraError, match="pip install lume_diff"):
        require("a_code_that_is_not_there", "The Code", "pip install lume_diff[code]")


# -- optics --------------------------------------------------------------------------------------------------


def _optics(lattice: Any) -> dict[str, float]:
    _, ring, found = at.linopt6(lattice, refpts=range(len(lattice) + 1), get_chrom=True)
    last = found[-1]
    return {
        "tune_x": ring.tune[0],
        "chroma_x": ring.chromaticity[0],
        "beta_x": last.beta[0],
        "alpha_y": last.alpha[1],
        "mu_y": last.mu[1],
        "eta_x": last.dispersion[0],
        "etap_x": last.dispersion[1],
        "x": last.closed_orbit[0],
        "px": last.closed_orbit[1] * lattice.energy,
    }


@pytest.mark.parametrize("lattice", [fodo, ring_with_cavity], ids=["4d", "6d"])
def test_ring_optics_are_those_of_pyat(lattice: Callable[[], Any]) -> None:
    own = lattice()
    own["C"][0].KickAngle = [1e-4, 0.0]
    expected = _optics(own)
    names = {name: name if name in ("tune_x", "chroma_x") else f"final.{name}" for name in expected}
    found = ATModel(own, controls=["QF.k1"], outputs=list(names.values())).get()
    for name, shown in names.items():
        assert found[shown].item() == pytest.approx(expected[name], rel=1e-6, abs=1e-9), name


def test_matrix_and_arrays_along_the_line() -> None:
    own = fodo()
    model = ATModel(own, controls=["QF.k1"], outputs=["END.r_matrix", "QD.r_matrix", "line.beta_x", "line.s", "QD.s"])
    found = {name: value.numpy() for name, value in model.get().items()}
    np.testing.assert_allclose(found["END.r_matrix"], at.find_m66(own)[0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found["QD.r_matrix"], at.find_m66(own, refpts=[6])[1][0], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found["line.beta_x"], at.linopt6(own, refpts=range(12))[2].beta[:, 0], rtol=1e-8)
    np.testing.assert_allclose(found["line.s"], own.get_s_pos(range(12)))
    assert found["QD.s"] == pytest.approx(own.get_s_pos([6])[0])


def test_line_optics_are_those_of_pyat() -> None:
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


def test_line_without_a_start_asks_for_it() -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["END.beta_x"], periodic=False)
    with pytest.raises(ValidationError, match=r"initial\.beta_x"):
        model.get("END.beta_x")
    model.set({"initial.beta_x": 5.0, "initial.beta_y": 5.0})
    assert model.get("END.beta_x") > 0
    with pytest.raises(ValidationError, match="a ring has no start"):
        ATModel(fodo(), initial={"beta_x": 1.0}, periodic=True)


# -- inputs --------------------------------------------------------------------------------------------------


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


def _state(lattice: Any) -> list[dict[str, Any]]:
    return [{name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in vars(e).items()} for e in lattice]


def _same_state(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("name, value, change", KNOBS, ids=[knob[0] for knob in KNOBS])
def test_input_does_what_it_says_and_leaves_no_trace(name: str, value: float, change: Callable[[Any], None]) -> None:
    given = fodo()
    given["S"][0].KickAngle = [0.0, 1e-5]  # an orbit, on which every element acts
    own = given.deepcopy()
    for element in {id(e): e for e in own[name.partition(".")[0]]}.values():
        change(element)
    model = ATModel(given, controls=[name], outputs=["final.r_matrix", "final.x", "final.y"])
    before, user = _state(model.simulator), _state(given)
    found = model({name: value})
    orbit, _ = at.find_orbit(own)
    matrix = at.find_m66(own, orbit=orbit)[0]
    np.testing.assert_allclose(found["final.r_matrix"].numpy(), matrix, rtol=1e-5, atol=1e-7)
    assert found["final.x"].item() == pytest.approx(orbit[0], abs=1e-10)
    assert found["final.y"].item() == pytest.approx(orbit[2], abs=1e-10)
    assert _same_state(_state(model.simulator), before)
    assert _same_state(_state(given), user)


def test_cavities_are_inputs_where_they_are_on() -> None:
    ring = ring_with_cavity()
    model = ATModel(ring, outputs=["tune_x", "END.x"])
    assert {"RF.voltage", "RF.frequency", "RF.time_lag"} <= set(model.input_names)
    frequency = ring["RF"][0].Frequency * (1.0 + 1e-6)
    ring["RF"][0].Frequency = frequency
    expected = at.linopt6(ring, refpts=[11])[2].closed_orbit[0, 0]
    assert model({"RF.frequency": frequency})["END.x"].item() == pytest.approx(expected, rel=1e-6)
    assert "RF.voltage" not in ATModel(ring.disable_6d(copy=True), outputs=["tune_x"]).input_names


# -- gradients -----------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize("lattice", [fodo, ring_with_cavity], ids=["4d", "6d"])
@pytest.mark.parametrize("knob", ["QF.k1", "QD.k1"])
def test_gradient_of_optics(lattice: Callable[[], Any], knob: str) -> None:
    model = ATModel(lattice(), controls=["QF.k1", "QD.k1"], outputs=["tune_x", "END.beta_x"])
    k1 = model.get(knob).clone().requires_grad_()
    found = model({knob: k1})
    for name, value in found.items():
        (slope,) = torch.autograd.grad(value, k1, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return model({knob: x})[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, k1.item(), 1e-3), rel=1e-8), name
    entries = [entry for entry in model.gradient_report().entries if entry.input == knob]
    assert {entry.output for entry in entries} == {"tune_x", "END.beta_x"}


def test_ring_keeps_every_law() -> None:
    check_model(ATModel(fodo(), controls=["QF.k1", "QD.k1"], outputs=["tune_x", "END.beta_x", "END.eta_x"]))


def test_line_keeps_every_law() -> None:
    model = ATModel(fodo(1e8), controls=["QF.k1", "QD.k1"], outputs=["final.sigma_x", "END.beta_x"], beam=bunch(n=50))
    check_model(model, inputs=["QF.k1", "reference_energy"], outputs=["final.sigma_x", "END.beta_x"])


# -- life ----------------------------------------------------------------------------------------------------


def test_unstable_lattice_is_an_error_and_no_end() -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["tune_x"])
    before, state = model.get("tune_x"), _state(model.simulator)
    with pytest.raises(SimulatorError, match=r"Unstable ring.*QF\.k1=9"):
        model.set({"QF.k1": 9.0})
    assert model.get("QF.k1").item() == 0.5
    assert torch.equal(model.get("tune_x"), before)
    assert torch.equal(model({"QF.k1": 0.5})["tune_x"], before)
    assert _same_state(_state(model.simulator), state)


def test_value_that_is_not_finite_is_refused() -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["tune_x"])
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match=r"QF\.k1"):
            model({"QF.k1": value})
    assert model.runs == 0


def test_refresh_reads_what_was_changed_by_hand() -> None:
    own = fodo()
    model = ATModel(own, controls=["QF.k1", "QD.k1"], outputs=["tune_x"])
    model.set({"QD.k1": -0.51})
    model.simulator["QF"][0].K = 0.52
    model.simulator["QD"][0].K = -0.53
    identity = model._runner.identity()
    model.refresh()
    assert [model.get(name).item() for name in ("QF.k1", "QD.k1")] == [0.52, -0.51]
    own["QF"][0].K, own["QD"][0].K = 0.52, -0.51
    assert model.get("tune_x").item() == pytest.approx(_optics(own)["tune_x"], rel=1e-10)
    model.reset()
    assert model.get("QD.k1").item() == -0.53
    with pytest.raises(SimulatorError):
        model({"QF.k1": 9.0})  # makes a fresh simulator, which keeps what was changed
    assert model.simulator["QF"][0].K == 0.52
    assert model._runner.identity() == identity
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other.get("tune_x"), model.get("tune_x"))
    assert other.simulator["QF"][0].K == 0.52


def test_identity_tells_lattices_apart() -> None:
    one, other = fodo(), fodo()
    other["D"][0].Length = 2.0 + 1e-12
    identities = {ATModel(lattice, controls=[], outputs=["tune_x"])._runner.identity() for lattice in (one, one, other)}
    assert len(identities) == 2
    assert all(identity.startswith(f"pyAT {at.__version__}:") for identity in identities)


@pytest.mark.parametrize("suffix", [".json", ".m", ".mat", ".repr"])
def test_lattice_is_read_from_a_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cell{suffix}"
    at.save_lattice(fodo(), str(path))
    model = ATModel(path, controls=["QF.k1"], outputs=["tune_x"])
    assert model.get("tune_x").item() == pytest.approx(_optics(fodo())["tune_x"], rel=1e-9)


def test_what_is_no_lattice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for lattice in (tmp_path / "none.mat", tmp_path / "bad.json", [at.Drift("D", 1.0)], 3):
        with pytest.raises(LatticeError, match=r"does not exist|not one that pyAT reads|expected an at\.Lattice"):
            ATModel(lattice)


def test_reference_energy_of_elements() -> None:
    model = ATModel(fodo(1e8), controls=["QF.k1"], beam=bunch(n=20), outputs=["final.sigma_x"])
    energy = torch.tensor(1.01e8, dtype=torch.float64, requires_grad=True)
    assert model.reference_energy({"reference_energy": energy}, ["QD"])["QD"] is energy
    assert ATModel(fodo()).reference_energy(None, ["QF"])["QF"].item() == 1e9
    with pytest.raises(UnknownVariableError, match="no element"):
        model.reference_energy(None, ["QX"])


# -- bunches -------------------------------------------------------------------------------------------------


def test_particles_are_those_of_pyat() -> None:
    own, beam = fodo(1e8), bunch(1.002e8, norm_emit_x=1e-6)
    found = ATModel(own, controls=[], beam=beam).get("final_particles")
    p0 = math.sqrt(1e16 - MASS**2)
    p = beam.p.numpy()
    zero = np.zeros(len(beam))
    start = np.array([beam.x.numpy(), beam.px.numpy() / p0, beam.y.numpy(), beam.py.numpy() / p0, p / p0 - 1.0, zero])
    end = at.lattice_track(own, np.asfortranarray(start))[0][:, :, 0, 0]
    for name, expected in (("x", end[0]), ("px", p0 * end[1]), ("y", end[2]), ("py", p0 * end[3]), ("p", p)):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(getattr(found, name).numpy() / scale, expected / scale, atol=1e-13, err_msg=name)
    speed = C * p / np.sqrt(p**2 + MASS**2)
    length = own.get_s_pos(len(own))[0]
    np.testing.assert_allclose((found.t - beam.t).numpy(), (length + end[5]) / speed, rtol=1e-12)
    np.testing.assert_allclose(found.z.numpy(), beam.z.numpy() + length)


def test_time_is_the_path_by_the_speed() -> None:
    line = at.Lattice([at.Drift("D", 3.0)], energy=5e6)
    beam = rays(5e6, xp=[0.0, 1e-3, 0.0, 0.0], delta=[0.0, 0.0, 1e-2, 0.0], t=[0.0, 0.0, 0.0, 1e-11])
    found = ATModel(line, controls=[], beam=beam, outputs=["final_particles"]).get("final_particles")
    speed = C * (beam.p / torch.sqrt(beam.p**2 + MASS**2)).numpy()
    path = 3.0 * np.sqrt(1.0 + (beam.px / beam.pz).numpy() ** 2)
    np.testing.assert_allclose((found.t - beam.t).numpy(), path / speed, rtol=1e-12)
    assert found.t[3] > found.t[0] > found.t[2]


@pytest.mark.parametrize("phase", [0.3, -0.3])
def test_late_particles_see_the_cavity_later(phase: float) -> None:
    frequency, voltage, energy = 500e6, 1e6, 1e8
    cavity = at.RFCavity("RF", 0.0, voltage, frequency, 1, energy)
    line = at.Lattice([at.Drift("D", 1.0), cavity, at.Drift("E", 1.0)], energy=energy)
    late = phase / (2.0 * math.pi * frequency)
    beam = rays(energy, t=[0.0, late]).replace(reference_time=torch.tensor(0.0, dtype=torch.float64))
    model = ATModel(line, controls=["RF.voltage"], beam=beam, outputs=["final_particles", "D.particles"])
    found, before = model.get("final_particles"), model.get("D.particles")
    p0 = math.sqrt(energy**2 - MASS**2)
    # pyAT's convention: a late particle between 0 and half a period behind loses energy.
    assert (found.p[1] / p0 - 1.0).item() == pytest.approx(-voltage / energy * math.sin(phase), rel=1e-6)
    assert found.p[0].item() == pytest.approx(p0, rel=1e-12)
    np.testing.assert_allclose((before.t[1] - before.t[0]).item(), late, rtol=1e-9)
    speed = C * (found.p / torch.sqrt(found.p**2 + MASS**2)).numpy()
    np.testing.assert_allclose((found.t - before.t).numpy(), 1.0 / speed, rtol=1e-12)


def test_energy_error_acts() -> None:
    model = ATModel(fodo(1e8), controls=[], beam=bunch(1e8, n=20), outputs=["final.mean_x"])
    off = model({"initial_particles": rays(1.01e8, x=np.zeros(3))})["final.mean_x"].item()
    assert off == pytest.approx(0.01 * at.find_m66(fodo(1e8))[0][0, 4], rel=0.1)
    back = model({"initial_particles": rays(1.01e8, x=np.zeros(3)), "reference_energy": 1.01e8})["final.mean_x"].item()
    assert abs(back) < 1e-6 * abs(off)


def test_ten_thousand_particles_come_out_in_their_order() -> None:
    beam = bunch(n=10_000)
    names = torch.randperm(10_000) + 5
    beam = beam.replace(id=names)
    found = ATModel(fodo(1e8), controls=[], beam=beam, outputs=["S.particles"]).get(["final_particles", "S.particles"])
    for group in found.values():
        assert len(group) == 10_000
        assert torch.equal(group.id, names)
        assert group.alive.min() == 1.0
        assert torch.equal(group.weight, beam.weight)


def test_lost_particles_stay_and_are_dead() -> None:
    line = at.Lattice([at.Drift("D", 1.0), at.Aperture("A", [-1e-3, 1e-3, -1.0, 1.0]), at.Drift("E", 1.0)], energy=1e8)
    beam = rays(1e8, x=[0.0, 2e-3, 5e-4, -3e-3])
    model = ATModel(line, controls=[], beam=beam, outputs=["final.charge", "final.sigma_x", "D.particles"])
    found = model.get("final_particles")
    assert found.alive.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert all(bool(torch.isfinite(getattr(found, name)).all()) for name in ("x", "px", "pz", "t"))
    assert model.get("D.particles").alive.tolist() == [1.0] * 4
    assert model.get("final.charge").item() == pytest.approx(2e-12)
    assert model.get("final.sigma_x").item() == pytest.approx(2.5e-4)
    dead = beam.replace(alive=torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64))
    assert model({"initial_particles": dead})["final_particles"].alive.tolist() == [0.0, 0.0, 1.0, 0.0]


def test_bunch_at_one_time_is_brought_to_a_plane() -> None:
    beam = rays(1e8, xp=[0.0, 1e-3], x=[0.0, 0.0])
    spread = beam.replace(z=torch.tensor([-1e-3, 1e-3], dtype=torch.float64))
    model = ATModel(fodo(1e8), controls=[], beam=beam, outputs=["final_particles"])
    direct = model({"initial_particles": spread})["final_particles"]
    drifted = model({"initial_particles": spread.drift_to_z()})["final_particles"]
    for name in ("x", "px", "t", "z"):
        torch.testing.assert_close(getattr(direct, name), getattr(drifted, name), rtol=1e-12, atol=1e-18)


def test_start_of_optics_is_the_bunch() -> None:
    beam = bunch(n=2000)
    model = ATModel(fodo(1e8), controls=[], beam=beam, outputs=["END.beta_x", "final.twiss_beta_x"])
    assert model.get("initial.beta_x").item() == pytest.approx(beam["twiss_beta_x"].item())
    assert model.get("END.beta_x").item() == pytest.approx(model.get("final.twiss_beta_x").item(), rel=0.02)


def test_lattice_for_other_particles_is_refused() -> None:
    drift = at.Drift("D", 1.0)
    with pytest.warns(at.AtWarning, match="beta==1"):
        protons = at.Lattice([drift], energy=2e9, particle=at.Particle("proton"))
    with pytest.warns(at.AtWarning, match="beta==1"):
        electrons = at.Lattice([drift], energy=1e8, particle=at.Particle("electron"))
    assert ATModel(electrons, beam=bunch(n=10), outputs=["final.x", "final.sigma_x"]).get("final.sigma_x") > 0
    with pytest.raises(ValidationError, match="'proton'"):
        ATModel(protons, beam=bunch(n=10))
    changing = fodo(1e8)
    changing.append(at.Element("P", PassMethod="ChangePRefPass", FieldScaling=1.1))
    with pytest.raises(LatticeError, match="'P' changes the reference momentum"):
        ATModel(changing, beam=bunch(n=10))


def test_copies_live_on_their_own() -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["tune_x"])
    other = copy.deepcopy(model)
    other.simulator["QF"][0].K = 0.6
    assert model.simulator["QF"][0].K == 0.5
    assert other.simulator is not model.simulator
