"""ImpactTModel against IMPACT-T itself, exact formulas, and the laws of every model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.impact.model import ImpactTModel
from lume_diff.errors import LatticeError, PhysicsWarning, SimulatorError, ValidationError
from lume_diff.particles import TorchParticleGroup
from lume_diff.testing import check_model
from tests.unit.blackbox.impact.drift import DRIFT, bunch, number

pytestmark = pytest.mark.usefixtures("impact_t")
WriteDeck = Callable[..., Path]

C = 299792458.0
MASS = 510998.95069


def richardson(model: Any, output: str, name: str, step: float) -> float:
    here = number(model.get(name))

    def difference(h: float) -> float:
        up, down = (number(model({name: here + sign * h}, outputs=[output])[output]) for sign in (1, -1))
        return (up - down) / (2 * h)

    table = [difference(step / 2**i) for i in range(4)]
    for order in range(1, 4):
        table = [(4**order * b - a) / (4**order - 1) for a, b in itertools.pairwise(table)]
    return table[0]


# -- coordinates -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z,start", [(0.0, None), (5.0, 0.0)], ids=["from 0", "from 5 m, put at 0"])
def test_a_drift_is_exact_in_every_coordinate(write_deck: WriteDeck, z: float, start: float | None) -> None:
    given = bunch(norm_emit_x=1e-5, norm_emit_y=1e-5, sigma_energy=2e5)
    given = given.replace(z=given.z + z, t=given.t + 2e-9)
    model = ImpactTModel(write_deck(DRIFT), [], ["SCR.sigma_x"], beam=given, start=start, timeout=60.0)
    p = (given.px**2 + given.py**2 + given.pz**2).sqrt()
    for name, way in (("SCR.particles", 0.5), ("final_particles", 1.0)):
        found = model.get(name)
        for coordinate, expected, size in (
            ("x", given.x + way * given.px / given.pz, 1e-2),
            ("y", given.y + way * given.py / given.pz, 1e-2),
            ("px", given.px, 1e7),
            ("py", given.py, 1e7),
            ("pz", given.pz, 1e7),
            ("t", given.t + way * (p**2 + MASS**2).sqrt() / (given.pz * C), 5e-9),
            ("z", torch.full_like(given.z, z + way), 1.0),
        ):
            off = (getattr(found, coordinate) - expected).abs().max()
            assert number(off) <= 1e-13 * size, (name, coordinate)
        assert torch.equal(found.id, given.id)
        assert torch.equal(found.weight, given.weight)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_line_is_as_lume_impact_runs_it(write_deck: WriteDeck) -> None:
    from impact import Impact

    deck, given = write_deck(dt=1e-12), bunch()
    model = ImpactTModel(deck, [], ["SCR1.sigma_x"], beam=given, timeout=60.0)
    snapshot = given.to_particle_group()
    snapshot.drift_to_t(float(snapshot.t.min()) - 1e-12)
    native = Impact(str(deck), initial_particles=snapshot, timeout=60.0)
    native.run()
    for name, seen, z in (("final_particles", "final_particles", 0.8), ("SCR1.particles", "SCR1", 0.6)):
        expected = native.particles[seen]
        expected.drift_to_z(z)
        found = model.get(name)
        for coordinate, scale in (("x", 1e-4), ("y", 1e-4), ("px", 1e3), ("py", 1e3), ("pz", 1e7)):
            difference = getattr(found, coordinate).detach().numpy() - getattr(expected, coordinate)
            assert np.abs(difference).max() < 1e-4 * scale, (name, coordinate)
    native._tempdir.cleanup()


def test_screens_do_not_change_what_comes_out(write_deck: WriteDeck) -> None:
    given = bunch()
    plain = ImpactTModel(write_deck(), [], [], beam=given)
    watched = ImpactTModel(write_deck(), [], ["D1.sigma_x", "SOL1.sigma_x", "SCR1.sigma_x", "Q1.mean_t"], beam=given)
    assert torch.equal(plain.get("final_particles").x, watched.get("final_particles").x)
    places = [number(watched.get(f"{name}.particles").z[0]) for name in ("D1", "SOL1", "Q1", "SCR1")]
    assert places == pytest.approx([0.1, 0.3, 0.5, 0.6], rel=1e-12)


def test_a_snapshot_is_brought_to_a_plane(write_deck: WriteDeck) -> None:
    given = bunch()
    model = ImpactTModel(write_deck(DRIFT), [], ["final.sigma_x"], beam=given)
    expected = number(model.get("final.sigma_x"))
    snapshot = given.to_particle_group()
    snapshot.drift_to_t(float(snapshot.t.mean()))
    model.set({"initial_particles": snapshot})
    assert number(model.get("final.sigma_x")) == pytest.approx(expected, rel=1e-9)


def test_where_the_bunch_comes_in_is_asked_for(write_deck: WriteDeck) -> None:
    given = bunch().replace(z=torch.full((200,), 0.55, dtype=torch.float64))
    with pytest.warns(PhysicsWarning, match=r"z = 0\.55 m of the deck.*start=0\.0"):
        late = ImpactTModel(write_deck(), [], ["final.sigma_x"], beam=given)
    drift = ImpactTModel(write_deck(DRIFT), [], ["final.sigma_x"], beam=given, start=0.75)
    assert number(late.get("final.sigma_x")) == pytest.approx(number(drift.get("final.sigma_x")), rel=1e-9)
    with pytest.raises(LatticeError, match=r"'D1.particles' is at 0\.1 m of the deck.* goes from 0\.55 m"):
        ImpactTModel(write_deck(), [], ["D1.sigma_x"], beam=given, start=0.55)
    with pytest.raises(ValidationError, match=r"comes in at 1 m of the deck, which stops at 0\.8 m"):
        ImpactTModel(write_deck(), [], ["final.sigma_x"], beam=given, start=1.0)
    late.simulator.stop = 0.5
    late.refresh()
    with pytest.raises(SimulatorError, match=r"comes in at 0\.55 m of the deck, which stops at 0\.5 m"):
        late.get("final.sigma_x")


# -- losses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("current", [0.0, 1.0], ids=["alone", "with space charge"])
def test_lost_particles_are_dead_and_the_others_keep_their_places(write_deck: WriteDeck, current: float) -> None:
    given = bunch(norm_emit_x=1e-5)
    free = ImpactTModel(write_deck(DRIFT), [], [], beam=given).get("final_particles")
    width = number(given["sigma_x"])
    deck = write_deck(DRIFT, folder="narrow", radius=width, current=current, mesh=8, dt=2e-11)
    found = ImpactTModel(deck, [], ["SCR.sigma_x"], beam=given).get("final_particles")
    alive = found.alive > 0.5
    assert found.n_particle == 200
    assert 0 < int(alive.sum()) < 200
    assert torch.equal(found.id, given.id)
    assert bool((found.x.abs()[alive] <= 1.1 * width).all())
    assert not bool(alive[given.x.abs() > width].any())
    if current == 0.0:
        torch.testing.assert_close(found.x[alive], free.x[alive], rtol=1e-9, atol=1e-15)
    assert torch.isfinite(found.pz).all()


@pytest.mark.parametrize("current", [0.0, 1.0], ids=["alone", "with space charge"])
def test_a_bunch_that_is_lost_whole_is_dead_and_no_error(write_deck: WriteDeck, current: float) -> None:
    deck = write_deck(DRIFT, radius=1e-7, current=current, mesh=8)
    model = ImpactTModel(deck, ["D1.radius"], ["SCR.charge", "final.charge"], beam=bunch(), timeout=60.0)
    assert number(model.get("final_particles").alive.sum()) == 0.0
    assert number(model.get("final.charge")) == number(model.get("SCR.charge")) == 0.0
    model.set({"D1.radius": 0.015})
    assert number(model.get("final_particles").alive.sum()) == 200.0


# -- gradients -------------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize("current", [0.0, 1.0], ids=["alone", "with space charge"])
def test_sigma_against_a_knob(write_deck: WriteDeck, current: float) -> None:
    knobs = {"SOL1.solenoid_field_scale": 0.01, "Q1.b1_gradient": 0.1}
    deck = write_deck(current=current, mesh=8)
    given = bunch(charge=1e-11)
    model = ImpactTModel(deck, list(knobs), ["final.sigma_x", "SCR1.sigma_y"], beam=given, timeout=60.0)
    table = model.jacobian(["final.sigma_x", "SCR1.sigma_y"], list(knobs))
    for output, row in table.items():
        for name, found in row.items():
            # Particles cross cells of the mesh, so with space charge a wide difference is not smooth.
            step = knobs[name] if not current else 1e-3 * knobs[name]
            expected = richardson(model, output, name, step)
            assert number(found) == pytest.approx(expected, rel=1e-6 if not current else 1e-4), (output, name)
    entries = model.gradient_report().entries
    assert {entry.input for entry in entries} == set(knobs)
    assert all(entry.error is not None for entry in entries)


@pytest.mark.gradient
@pytest.mark.slow
def test_it_keeps_every_law(write_deck: WriteDeck) -> None:
    deck = write_deck(dt=2e-11)
    model = ImpactTModel(deck, outputs=["final.sigma_x", "SCR1.sigma_y"], beam=bunch(50), timeout=60.0)
    results = check_model(model)
    assert all(text.startswith("passed") for text in results.values()), results


def test_a_step_more_or_less_does_not_show(write_deck: WriteDeck) -> None:
    """The end is a plane, whichever step the bunch's centre passes it in."""
    slow, fast = bunch(20), bunch(20, energy=0.8e7)
    model = ImpactTModel(write_deck(DRIFT, dt=7e-11), [], ["final.sigma_x"], beam=slow)
    mean = 0.5 * (slow.pz + fast.pz)
    slopes = []
    for share in (-0.02, -0.01, 0.0, 0.01, 0.02):
        pz = mean * (1.0 + share)
        found = model({"initial_particles": slow.replace(pz=pz)})["final_particles"]
        slopes.append(number((found.x - slow.x - slow.px / pz).abs().max()))
    assert max(slopes) < 1e-16


def test_particles_that_act_on_each_other_are_noticed(write_deck: WriteDeck) -> None:
    start = bunch(200, charge=1e-9)
    model = ImpactTModel(
        write_deck(DRIFT, current=1.0, mesh=8, dt=2e-11), [], ["final.sigma_x"], beam=start, timeout=60.0
    )
    x = start.x.clone().requires_grad_()
    value = model({"initial_particles": start.replace(x=x)}, outputs=["final.sigma_x"])["final.sigma_x"]
    with pytest.warns(PhysicsWarning, match=r"off by [\d.]+ in a random direction"):
        value.backward()


def test_the_charge_acts(write_deck: WriteDeck) -> None:
    given, deck = bunch(500, charge=1e-10), write_deck(DRIFT, current=1.0, mesh=8, dt=2e-11)
    model = ImpactTModel(deck, ["total_charge"], ["final.sigma_x", "final.charge"], beam=given, timeout=60.0)
    assert number(model.get("total_charge")) == pytest.approx(1e-10, rel=1e-12)
    sizes = []
    for charge in (0.0, 1e-10, 2e-10):
        model.set({"total_charge": charge})
        sizes.append(number(model.get("final.sigma_x")))
    assert sizes[0] < sizes[1] < sizes[2]
    free = ImpactTModel(write_deck(DRIFT, folder="free"), [], ["final.sigma_x"], beam=given)
    assert sizes[0] == pytest.approx(number(free.get("final.sigma_x")), rel=1e-9)
    fixed = ImpactTModel(deck, [], ["final.sigma_x"], beam=given)
    assert number(fixed.get("final.sigma_x")) == pytest.approx(sizes[1], rel=1e-12)
    double = given.replace(weight=2.0 * given.weight)
    fixed.set({"initial_particles": double})
    assert number(fixed.get("final.sigma_x")) == pytest.approx(sizes[2], rel=1e-9)


def test_particles_of_their_own_weights(write_deck: WriteDeck) -> None:
    """A particle of twice the weight acts as two in one place."""
    given, deck = bunch(200, charge=1e-9), write_deck(DRIFT, current=1.0, mesh=8, dt=2e-11)
    heavy = torch.arange(200) % 3 == 0
    unequal = given.replace(weight=torch.where(heavy, 2.0, 1.0) * given.weight)
    pairs = {
        n: torch.cat([getattr(given, n), getattr(given, n)[heavy]]) for n in ("x", "y", "z", "px", "py", "pz", "t")
    }
    twins = TorchParticleGroup(**pairs, weight=given.weight[0].expand(len(pairs["x"])), species="electron")
    found, expected, plain = (
        ImpactTModel(deck, [], [], beam=each, timeout=60.0).get("final_particles").x[:200]
        for each in (unequal, twins, given)
    )
    # IMPACT-T takes the centre and the energy of the bunch without weights, so the two are not the same to the end.
    assert number((found - expected).abs().max()) < 0.02 * number((found - plain).abs().max())


# -- decks of other kinds --------------------------------------------------------------------------------------


def test_a_deck_with_a_bunch_of_its_own(write_deck: WriteDeck) -> None:
    deck = write_deck(dt=2e-11)
    gauss = deck.read_text().replace("16 0 0 -1", "2 0 0 -1")
    rows = ["2e-4 1e-3 0. 1. 1. 0. 0.", "1e-4 1e-3 0. 1. 1. 0. 0.", "1e-4 1e-3 0. 1. 1. 1e-2 19.5"]
    deck.write_text(gauss.replace("0. 0. 0. 1. 1. 0. 0.\n" * 3, "\n".join(rows) + "\n"))
    model = ImpactTModel(deck, ["SOL1.solenoid_field_scale", "header.sigx"], ["final.sigma_x"], timeout=60.0)
    assert "initial_particles" not in model.input_names
    found = model.get("final_particles")
    assert found.n_particle == 100
    assert torch.equal(found.id, torch.arange(1, 101))
    assert number(found["mean_energy"]) == pytest.approx(19.5 * MASS, rel=0.01)
    slope = number(model.jacobian(["final.sigma_x"], ["header.sigx"])["final.sigma_x"]["header.sigx"])
    assert slope == pytest.approx(richardson(model, "final.sigma_x", "header.sigx", 1e-5), rel=1e-6)
    model.close()
    with pytest.raises(ValidationError, match="give beam="):
        model.reference_energy(None, ["D1"])
    reading = ImpactTModel(write_deck(folder="reading"), [], ["final.sigma_x"])
    with pytest.raises(SimulatorError, match=r"reads its bunch from '.*partcl.data', which is missing: give beam="):
        reading.get("final.sigma_x")


def test_a_round_bunch_is_doubted(write_deck: WriteDeck) -> None:
    deck = write_deck(DRIFT, current=1.0)
    deck.write_text(deck.read_text().replace("0 0 0 -5 0 0 -1000.0 /!name:in_3d\n", ""))
    with pytest.warns(PhysicsWarning, match="0 0 0 -5 0 0 -1000.0 /"):
        ImpactTModel(deck, [], ["final.sigma_x"], beam=bunch(10))


def test_a_cathode(write_deck: WriteDeck) -> None:
    gun = "0.1 0 0 105 0.0 3e7 1e8 {phase} 202 0.015 0 0 0 0 0 0.0 /!name:GUN\n0 0 0 -99 0 0 0.15 /!name:stop_1\n"
    deck = write_deck(gun.format(phase=180.0), cathode=1, emission=50, dt=1e-12)
    numbers = [3, 0.0, 0.2, 0.2, 1.0, -0.5, 0.0, 1, 0.0, 0.0, 0.0, 0.0]  # (1 + cos(pi z / 0.1 m)) / 2
    (deck.parent / "rfdata202").write_text("\n".join(map(str, numbers)) + "\n")
    draw = np.random.default_rng(0)
    from beamphysics import ParticleGroup

    count = 100
    data = {name: 1e-4 * draw.normal(size=count) for name in ("x", "y")}
    data |= {name: 1e2 * draw.normal(size=count) for name in ("px", "py")}
    data |= {"pz": 1e3 * draw.uniform(0.5, 1.0, size=count), "t": 1e-12 * draw.normal(size=count)}
    data |= {"z": np.zeros(count), "weight": np.full(count, 1e-13), "status": np.ones(count, dtype=int)}
    given = ParticleGroup(data={**data, "species": "electron"})
    model = ImpactTModel(deck, ["GUN.theta0_deg", "GUN.rf_field_scale"], ["final.mean_energy"], beam=given)
    found = model.get("final_particles")
    assert number(found.alive.sum()) == count
    assert number(found["mean_energy"]) > 1e6
    assert number((found.z - 0.15).abs().max()) == 0.0
    slope = model.jacobian(["final.mean_energy"], ["GUN.rf_field_scale"])["final.mean_energy"]["GUN.rf_field_scale"]
    assert number(slope) == pytest.approx(richardson(model, "final.mean_energy", "GUN.rf_field_scale", 1e5), rel=1e-5)
    assert number(model.reference_energy(None, ["GUN"])["GUN"]) == pytest.approx(MASS, rel=1e-3)
    with pytest.raises(LatticeError, match="'stop_1' is not known"):
        model.reference_energy(None, ["stop_1"])


def test_a_yaml_file_with_its_bunch(write_deck: WriteDeck, tmp_path: Path) -> None:
    write_deck()
    given = bunch(50)
    given.to_particle_group().write(str(tmp_path / "beam.h5"))
    (tmp_path / "impact.yaml").write_text("input_file: deck/ImpactT.in\ninitial_particles: beam.h5\n")
    model = ImpactTModel(tmp_path / "impact.yaml", ["Q1.b1_gradient"], ["final.sigma_x"])
    expected = ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], beam=given)
    assert number(model.get("final.sigma_x")) == pytest.approx(number(expected.get("final.sigma_x")), rel=1e-12)
