"""A bunch through a pyAT lattice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.at.model import ATModel
from lume_diff.errors import LatticeError, ValidationError
from lume_diff.particles import TorchParticleGroup

at = pytest.importorskip("at")

Make = Callable[..., Any]

C = 299792458.0

MASS = 0.51099895069e6


def rays(energy: float, **columns: Any) -> TorchParticleGroup:
    """Return particles of one energy [eV] on z = 0 with given coordinates; momenta in units of the total one."""
    n = max(np.size(value) for value in columns.values())
    p = np.sqrt(energy**2 - MASS**2) * (1.0 + np.asarray(columns.pop("delta", 0.0)) * np.ones(n))
    px, py = (np.asarray(columns.pop(name, 0.0)) * p for name in ("xp", "yp"))
    rest = {name: np.broadcast_to(columns.get(name, 0.0), n).copy() for name in ("x", "y", "t")}
    return TorchParticleGroup(**rest, z=np.zeros(n), px=px, py=py, pz=np.sqrt(p**2 - px**2 - py**2), weight=1e-12)


def test_particles_are_those_of_pyat(fodo: Make, bunch: Make) -> None:
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


def test_energy_error_acts(fodo: Make, bunch: Make) -> None:
    model = ATModel(fodo(1e8), controls=[], beam=bunch(1e8, n=20), outputs=["final.mean_x"])
    off = model({"initial_particles": rays(1.01e8, x=np.zeros(3))})["final.mean_x"].item()
    assert off == pytest.approx(0.01 * at.find_m66(fodo(1e8))[0][0, 4], rel=0.1)
    back = model({"initial_particles": rays(1.01e8, x=np.zeros(3)), "reference_energy": 1.01e8})["final.mean_x"].item()
    assert abs(back) < 1e-6 * abs(off)


def test_ten_thousand_particles_come_out_in_their_order(fodo: Make, bunch: Make) -> None:
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


def test_bunch_at_one_time_is_brought_to_a_plane(fodo: Make) -> None:
    beam = rays(1e8, xp=[0.0, 1e-3], x=[0.0, 0.0])
    spread = beam.replace(z=torch.tensor([-1e-3, 1e-3], dtype=torch.float64))
    model = ATModel(fodo(1e8), controls=[], beam=beam, outputs=["final_particles"])
    direct = model({"initial_particles": spread})["final_particles"]
    drifted = model({"initial_particles": spread.drift_to_z()})["final_particles"]
    for name in ("x", "px", "t", "z"):
        torch.testing.assert_close(getattr(direct, name), getattr(drifted, name), rtol=1e-12, atol=1e-18)


def test_start_of_optics_is_the_bunch(fodo: Make, bunch: Make) -> None:
    beam = bunch(n=2000)
    model = ATModel(fodo(1e8), controls=[], beam=beam, outputs=["END.beta_x", "final.twiss_beta_x"])
    assert model.get("initial.beta_x").item() == pytest.approx(beam["twiss_beta_x"].item())
    assert model.get("END.beta_x").item() == pytest.approx(model.get("final.twiss_beta_x").item(), rel=0.02)


def test_lattice_for_other_particles_is_refused(fodo: Make, bunch: Make) -> None:
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
