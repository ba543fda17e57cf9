"""Derivatives from MAD-X's R-matrix, against differences of MAD-X itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.models import BunchFromMoments

cpymad = pytest.importorskip("cpymad.madx")

pytestmark = pytest.mark.gradient

Make = Callable[..., Any]
Array = np.ndarray
BUNCH = "initial_particles"
START = {
    **{"beta_x": 8.0, "alpha_x": -0.5, "beta_y": 3.0, "alpha_y": 0.4, "eta_x": 0.2, "etap_x": -0.1},
    **{"eta_y": 0.01, "etap_y": 0.02},
}
ORBIT = {"x": 1e-4, "px": 1e4, "y": 2e-4, "py": -1e4}
LINE = """
q1: quadrupole, l = 0.2, k1 = 3.0;
rf: rfcavity, l = 0.3, volt = VOLTAGE, freq = 300, lag = 0.1;
q2: quadrupole, l = 0.2, k1 = -3.0;
end: marker;
sect: sequence, l = 1.7, refer = entry;
q1, at = 0; rf, at = 0.7; q2, at = 1.2; end, at = 1.7;
endsequence;
beam, particle = electron, energy = ENERGY;
use, sequence = sect;
"""


@pytest.fixture(scope="module")
def steered(folder: Path, fodo: Make) -> Path:
    """Write the deck of a cell with a corrector that kicks and a sextupole."""
    deck = fodo(folder, "positron")
    text = deck.read_text()
    text = text.replace("hk: hkicker, l = 0.1;", "hk: kicker, l = 0.1, hkick = 1e-4, vkick = 2e-4;")
    text = text.replace("mm: multipole", "sx: sextupole, l = 0.1, k2 = 20; mm: multipole")
    deck.write_text(text.replace("mm, at = 4;", "mm, at = 4; sx, at = 4.5;"))
    return deck


def slope(model: Any, output: str, name: str) -> Array:
    """Return a derivative of fourth order in the step."""
    here, step = model.get(name).item(), 0.1 * model.supported_variables[name].scale

    def difference(h: float) -> Array:
        up, down = (model({name: here + sign * h}, outputs=[output])[output].numpy() for sign in (1.0, -1.0))
        return (up - down) / (2.0 * h)

    return (4.0 * difference(step / 2.0) - difference(step)) / 3.0


def compared(model: Any, outputs: list[str], tolerance: float) -> dict[str, set[str]]:
    """Compare all that is covered with differences; returns what it is."""
    inputs = {name: model.get(name).item() for name in model.input_names}
    found = model._runner.simulator.jacobian(inputs, outputs, model.input_names)
    for output, row in found.items():
        expected = {name: slope(model, output, name) for name in row}
        kick = max((np.abs(values).max() for name, values in expected.items() if name.startswith("hk")), default=0.0)
        for name, values in row.items():
            size = max(np.abs(expected[name]).max(), kick if name.startswith("hk") else 1e-6)
            assert values.shape == expected[name].shape
            assert np.abs(values - expected[name]).max() < tolerance * size, (output, name)
    return {output: set(found.get(output, {})) for output in outputs}


def test_optics_of_a_line_by_its_start(folder: Path, fodo: Make) -> None:
    """Optics have other steps than orbits, whose units are eV/c: see the next test for these."""
    outputs = [f"end.{name}" for name in (*START, "mu_x", "mu_y", "s")] + ["line.beta_x"]
    with MADXModel(fodo(folder), controls=["qd.k1"], outputs=outputs, initial=START) as model:
        covered = compared(model, outputs, 1e-7)
        assert covered["end.beta_x"] == {f"initial.{name}" for name in START}
        assert covered["end.s"] == {f"initial.{name}" for name in (*START, *ORBIT)}


def test_coupled_optics_are_left_to_differences(steered: Path) -> None:
    start = {**START, **ORBIT}
    with MADXModel(steered, controls=[], outputs=["end.beta_x", "end.eta_x"], initial=start) as model:
        inputs = {name: model.get(name).item() for name in model.input_names}
        found = model._runner.simulator.jacobian(inputs, ["end.beta_x", "end.eta_x"], model.input_names)
        assert set(found) == {"end.eta_x"}


@pytest.mark.parametrize("start", [{**START, **ORBIT}, None], ids=["line", "ring"])
def test_orbit_by_correctors_and_by_where_it_starts(steered: Path, start: dict[str, float] | None) -> None:
    outputs = ["end.x", "end.px", "line.y", "qf.y"]
    with MADXModel(steered, controls=["hk.hkick", "hk.vkick", "qd.k1"], outputs=outputs, initial=start) as model:
        covered = compared(model, outputs, 1e-6)
        assert all(names == set(model.input_names) - {"qd.k1"} for names in covered.values())


def test_tilted_corrector_is_left_to_differences(folder: Path, fodo: Make) -> None:
    with MADXModel(fodo(folder), controls=["hk.hkick", "hk.tilt"], outputs=["end.x"]) as model:
        simulator = model._runner.simulator
        assert simulator.jacobian({"hk.hkick": 0.0, "hk.tilt": 0.0}, ["end.x"], ["hk.hkick"])
        assert not simulator.jacobian({"hk.hkick": 0.0, "hk.tilt": 0.1}, ["end.x"], ["hk.hkick"])
        assert simulator.baseline["hk.tilt"] == 0.0


@pytest.mark.parametrize(
    "voltage, energy, tolerance",
    [
        pytest.param(0.0, 1e8, 1e-6, id="100 MeV"),
        pytest.param(0.0, 1.5e6, 1e-5, id="1.5 MeV"),
        pytest.param(1.0, 1e8, 1e-6, id="cavity"),
    ],
)
def test_cold_bunch_by_itself(folder: Path, voltage: float, energy: float, tolerance: float) -> None:
    """Derivatives of all coordinates by all, in units of their spreads; what is left goes with the spreads.

    Behind a cavity there are none: PTC and TWISS, whose matrices these are, do not agree on it.
    """
    deck = folder / f"line_{voltage}_{energy:g}.madx"
    deck.write_text(LINE.replace("VOLTAGE", repr(voltage)).replace("ENERGY", repr(energy / 1e9)))
    moments = {"beta_x": 10.0, "beta_y": 5.0, "norm_emit_x": 1e-12, "norm_emit_y": 1e-12, "sigma_t": 1e-13}
    spread = 1e-7 * energy
    start = BunchFromMoments(20, mean_energy=energy, charge=1e-10, sigma_energy=spread, **moments)
    columns, outputs = ("x", "px", "y", "py", "t", "pz"), ("x", "px", "y", "py", "z", "t", "pz")
    steps = (1e-6, 1e-6 * energy, 1e-6, 1e-6 * energy, 1e-14, 1e-5 * energy)
    beam = start.get("final_particles")
    with MADXModel(deck, controls=[], outputs=["q1.particles"], beam=beam) as model:
        simulator = model._runner.simulator
        group = model.get(BUNCH).to_particle_group()
        rest = {"reference_energy": energy, "reference_time": model.get("reference_time").item()}
        found = simulator.jacobian({**rest, BUNCH: group}, ["final_particles", "q1.particles"], [BUNCH])

        def rows(column: str, step: float, output: str) -> Array:
            moved = group.copy()
            setattr(moved, column, getattr(moved, column) + step)
            behind = simulator.run({**rest, BUNCH: moved}, [output])[output]
            return np.stack([getattr(behind, name) for name in outputs], axis=-1)

        assert set(found) == ({"q1.particles"} if voltage else {"final_particles", "q1.particles"})
        for output in found:
            values = found[output][BUNCH]
            assert values.shape == (20, 7, 6)
            spreads = rows("x", 0.0, output).std(axis=0)
            for i, (column, step) in enumerate(zip(columns, steps, strict=True)):
                wide, narrow = (
                    (rows(column, h, output) - rows(column, -h, output)) / (2 * h) for h in (step, step / 2)
                )
                error = np.abs(values[:, :, i] - (4.0 * narrow - wide) / 3.0) * group[column].std()
                assert (error.max(axis=0) <= tolerance * spreads).all(), (output, column)


def test_gradient_native_takes_them(steered: Path) -> None:
    """The same gradient as by differences, at fewer runs."""
    start = {**START, **ORBIT}
    slopes, runs = [], []
    for options in ({"gradient": "native"}, {}):
        with MADXModel(steered, controls=["hk.hkick"], outputs=["end.x"], initial=start, **options) as model:
            leaves = {name: model.get(name).clone().requires_grad_() for name in ("hk.hkick", "initial.x")}
            model(leaves)["end.x"].backward()
            slopes.append(torch.stack([leaf.grad for leaf in leaves.values()]))
            runs.append(model.runs)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-7, atol=0.0)
    assert runs[0] < runs[1]
