"""Derivatives from pyAT's transfer matrices, against differences of pyAT itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.at.model import ATModel
from lume_diff.errors import PhysicsWarning
from lume_diff.models import BunchFromMoments

at = pytest.importorskip("at")

pytestmark = pytest.mark.gradient

Make = Callable[..., Any]
Array = np.ndarray
BUNCH = "initial_particles"
START = {
    **{"beta_x": 8.0, "alpha_x": -0.5, "beta_y": 3.0, "alpha_y": 0.4, "eta_x": 0.2, "etap_x": -0.1},
    **{"eta_y": 0.01, "etap_y": 0.02, "x": 1e-4, "px": 1e4, "y": 2e-4, "py": -1e4},
}


def slope(model: Any, output: str, name: str) -> Array:
    """Return a derivative of fourth order in the step."""
    here, step = model.get(name).item(), 0.1 * model.supported_variables[name].scale

    def difference(h: float) -> Array:
        up, down = (model({name: here + sign * h}, outputs=[output])[output].numpy() for sign in (1.0, -1.0))
        return (up - down) / (2.0 * h)

    return (4.0 * difference(step / 2.0) - difference(step)) / 3.0


def own(model: Any, outputs: list[str], wrt: list[str]) -> dict[str, dict[str, Array]]:
    inputs = {name: model.get(name).item() for name in model.input_names}
    return model._runner.simulator.jacobian(inputs, outputs, wrt)


def kicked(lattice: Any) -> Any:
    lattice["C"][0].KickAngle = [1e-4, 2e-4]
    lattice["C"][0].Length = 0.2
    return lattice


def test_optics_of_a_line_by_its_start(fodo: Make) -> None:
    lattice = kicked(fodo())
    lattice["QF"][0].PolynomA = [0.0, 0.02]
    outputs = [f"{place}.{q}" for place in ("END", "line") for q in (*START, "mu_x", "mu_y", "s")]
    model = ATModel(lattice, controls=["C.hkick", "C.vkick"], outputs=outputs, initial=START)
    found = own(model, outputs, model.input_names)
    covered = 0
    for output in outputs:
        for name, values in found[output].items():
            expected = slope(model, output, name)
            size = max(np.abs(expected).max(), 1.0 if output.rpartition(".")[2] in ("px", "py") else 1e-5)
            assert values.shape == expected.shape
            assert np.abs(values - expected).max() < 2e-7 * size, (output, name)
            covered += 1
    orbit = {f"initial.{name}" for name in ("x", "px", "y", "py")}
    assert not {"C.hkick", *orbit} & set(found["END.beta_x"])  # the sextupole has another strength off its axis
    assert set(found["END.x"]) == set(model.input_names)
    assert covered > 250


@pytest.mark.parametrize("lattice", ["fodo", "ring_with_cavity"], ids=["4d", "6d"])
def test_closed_orbit_by_correctors(lattice: str, request: pytest.FixtureRequest) -> None:
    ring = request.getfixturevalue(lattice)()
    model_of = kicked(ring) if lattice == "fodo" else ring
    outputs = ["END.x", "S.px", "line.x", "line.y"]
    model = ATModel(model_of, controls=["C.hkick", "C.vkick", "QF.k1"], outputs=[*outputs, "tune_x"])
    found = own(model, [*outputs, "tune_x"], model.input_names)
    assert "tune_x" not in found
    for output in outputs:
        assert set(found[output]) == {"C.hkick", "C.vkick"}
        for name, values in found[output].items():
            expected = slope(model, output, name)
            size = np.abs(slope(model, output.replace("line.y", "line.x"), "C.hkick")).max()
            assert np.abs(values - expected).max() < 1e-6 * size, (output, name)


def line(cavity: bool, energy: float) -> Any:
    middle = at.RFCavity("RF", 0.3, 1e6, 3e8, 300, energy) if cavity else at.Drift("D2", 0.3)
    elements = [at.Quadrupole("Q1", 0.2, 3.0), at.Drift("D1", 0.5), middle, at.Quadrupole("Q2", 0.2, -3.0)]
    lattice = at.Lattice([*elements, at.Corrector("C", 0.1, [1e-4, 0.0]), at.Drift("D3", 0.2)], energy=energy)
    return lattice.enable_6d(copy=True) if cavity else lattice


def cold(energy: float, spread: float) -> Any:
    moments = {"beta_x": 10.0, "beta_y": 5.0, "norm_emit_x": 1e-12, "norm_emit_y": 1e-12, "sigma_t": 1e-13}
    found = BunchFromMoments(20, mean_energy=energy, charge=1e-10, sigma_energy=spread * energy, **moments)
    return found.get("final_particles")


@pytest.mark.parametrize(
    "cavity, energy, tolerance",
    [
        pytest.param(False, 1e8, 1e-6, id="100 MeV"),
        pytest.param(False, 1.5e6, 5e-6, id="1.5 MeV"),
        pytest.param(True, 1e8, 5e-5, id="cavity"),  # whose slope changes along the bunch
    ],
)
def test_cold_bunch_by_itself(cavity: bool, energy: float, tolerance: float) -> None:
    """Derivatives of all coordinates by all, in units of their spreads; what is left goes with the spreads."""
    columns, outputs = ("x", "px", "y", "py", "t", "pz"), ("x", "px", "y", "py", "z", "t", "pz")
    steps = (1e-6, 1e-6 * energy, 1e-6, 1e-6 * energy, 1e-14, 1e-5 * energy)
    model = ATModel(line(cavity, energy), controls=[], outputs=["D1.particles"], beam=cold(energy, 1e-7))
    simulator = model._runner.simulator
    group = model.get(BUNCH).to_particle_group()
    start = {"reference_energy": energy, "reference_time": model.get("reference_time").item()}
    found = simulator.jacobian({**start, BUNCH: group}, ["final_particles", "D1.particles"], [BUNCH])

    def rows(column: str, step: float, output: str) -> Array:
        moved = group.copy()
        setattr(moved, column, getattr(moved, column) + step)
        behind = simulator.run({**start, BUNCH: moved}, [output])[output]
        return np.stack([getattr(behind, name) for name in outputs], axis=-1)

    for output in ("final_particles", "D1.particles"):
        values = found[output][BUNCH]
        assert values.shape == (20, 7, 6)
        spreads = rows("x", 0.0, output).std(axis=0)
        for i, (column, step) in enumerate(zip(columns, steps, strict=True)):
            wide, narrow = ((rows(column, h, output) - rows(column, -h, output)) / (2 * h) for h in (step, step / 2))
            error = np.abs(values[:, :, i] - (4.0 * narrow - wide) / 3.0) * group[column].std()
            assert (error.max(axis=0) <= tolerance * spreads).all(), (output, column)


def test_lost_and_dead_particles_have_no_derivative(bunch: Make) -> None:
    lattice = line(False, 1e8)
    lattice.insert(1, at.Aperture("A", [-1e-4, 1e-4, -1.0, 1.0]))
    model = ATModel(lattice, controls=[], outputs=[], beam=bunch(n=50))
    simulator, group = model._runner.simulator, model.get(BUNCH).to_particle_group()
    group.status[3] = 0
    inputs = {"reference_energy": 1e8, "reference_time": 0.0, BUNCH: group}
    alive = simulator.run(inputs, ["final_particles"])["final_particles"].status == 1
    assert not alive[3]
    assert 5 < alive.sum() < 45
    values = simulator.jacobian(inputs, ["final_particles"], [BUNCH])["final_particles"][BUNCH]
    assert np.isfinite(values).all()
    assert (np.abs(values).max(axis=(1, 2)) > 0.0).tolist() == alive.tolist()


def test_bunch_at_one_time_is_left_to_differences(bunch: Make) -> None:
    model = ATModel(line(False, 1e8), controls=[], outputs=[], beam=bunch(n=10))
    group = model.get(BUNCH).to_particle_group()
    group.z[:] = np.linspace(0.0, 1e-4, 10)
    inputs = {"reference_energy": 1e8, "reference_time": 0.0, BUNCH: group}
    assert model._runner.simulator.jacobian(inputs, ["final_particles"], [BUNCH]) == {}


def test_lattice_is_left_as_it_was(fodo: Make, state_of: Make, same_state: Make) -> None:
    model = ATModel(fodo(), controls=["C.hkick", "QF.k1"], outputs=["END.x"])
    before = state_of(model.simulator)
    simulator = model._runner.simulator
    moved = simulator.jacobian({"C.hkick": 1e-3, "QF.k1": 0.45}, ["END.x"], ["C.hkick"])
    still = simulator.jacobian({"C.hkick": 0.0, "QF.k1": 0.5}, ["END.x"], ["C.hkick"])
    assert moved["END.x"]["C.hkick"] != pytest.approx(still["END.x"]["C.hkick"], rel=1e-3)
    assert same_state(state_of(model.simulator), before)


def test_gradient_native_takes_them(fodo: Make) -> None:
    """The same gradient as by differences, at no more than the runs of the check."""
    outputs = ["END.x", "END.beta_x"]
    slopes, runs = {}, {}
    for gradient in ("native", None):
        options = {} if gradient is None else {"gradient": gradient}
        model = ATModel(fodo(), controls=["C.hkick"], outputs=outputs, initial=START, **options)
        leaves = {name: model.get(name).clone().requires_grad_() for name in ("C.hkick", "initial.x", "initial.beta_x")}
        found = model(leaves)
        (found["END.x"] + 1e-6 * found["END.beta_x"]).backward()
        slopes[gradient] = torch.stack([leaf.grad for leaf in leaves.values()])
        runs[gradient] = model.runs
    torch.testing.assert_close(slopes["native"], slopes[None], rtol=1e-7, atol=0.0)
    assert runs["native"] < runs[None]


def test_gradient_native_of_a_cold_bunch() -> None:
    slopes, runs = [], []
    beam = cold(1e8, 1e-7)
    for options in ({"gradient": "native"}, {}):
        model = ATModel(line(False, 1e8), controls=[], outputs=["final.sigma_x"], beam=beam, **options)
        x, px = (leaf.clone().requires_grad_() for leaf in (beam.x, beam.px))
        model({BUNCH: beam.replace(x=x, px=px)})["final.sigma_x"].backward()
        slopes.append(torch.stack([(x.grad * beam.x).sum(), (px.grad * beam.px).sum()]))
        runs.append(model.runs)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=0.0)
    assert runs[0] <= runs[1] - 12


def test_gradient_native_says_how_far_a_nonlinear_line_is_off(bunch: Make) -> None:
    lattice = line(False, 1e8)
    lattice.insert(2, at.Sextupole("S", 0.1, 500.0))
    beam = bunch(n=200, norm_emit_x=1e-6, norm_emit_y=1e-6)
    model = ATModel(lattice, controls=[], outputs=["final.sigma_x"], beam=beam, gradient="native")
    x = beam.x.clone().requires_grad_()
    with pytest.warns(PhysicsWarning, match=r"own Jacobian of 'final_particles'.*is off by 0\.\d+"):
        model({BUNCH: beam.replace(x=x)})["final.sigma_x"].backward()
    assert torch.isfinite(x.grad).all()
