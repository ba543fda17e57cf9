"""Bunches through Tao."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.errors import ValidationError
from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup


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
def test_gradient_through_a_bunch(decks: Any, bunch: Any, richardson: Any) -> None:
    beam = bunch(200)
    with BmadModel(decks.line(), controls=["Q5.k1"], beam=beam, outputs=["final.sigma_x"]) as found:
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


def test_apertures_cut_and_the_lost_keep_their_row(decks: Any) -> None:
    zero = np.zeros(4)
    x = np.array([0.0, 2e-3, 0.0, 0.0])
    px = np.array([0.0, 0.0, 2e5, 1e2])
    rest = {"y": zero, "z": zero, "py": zero, "pz": np.sqrt(1e16 - px**2), "t": np.array([0.0, 0.0, 0.0, 1e-8])}
    beam = TorchParticleGroup(x=x, px=px, weight=1e-12, **rest)
    with BmadModel(decks.line(1e-3), controls=["Q5.k1"], beam=beam, outputs=["final_particles"]) as found:
        particles = found.get("final_particles")
        assert particles.alive.tolist() == [1.0, 0.0, 0.0, 1.0]
        assert bool(torch.isfinite(particles.t).all())
        assert (particles.t[3] - particles.t[0]).item() == pytest.approx(1e-8, rel=1e-6)
        # all lost, where Tao itself would keep the bunch of the run before at the end
        away = found({"initial_particles": beam.replace(x=torch.full((4,), 0.5, dtype=torch.float64))})
        assert away["final_particles"].alive.tolist() == [0.0] * 4


def test_energy_error_acts_and_time_passes_through(decks: Any, tracked: Any, bunch: Any) -> None:
    plain = tracked.get("final.sigma_x").item()
    stiff = tracked({"reference_energy": 1.01e8})["final.sigma_x"].item()
    assert abs(stiff / plain - 1.0) > 1e-3
    assert tracked({})["final.sigma_x"].item() == plain
    start = tracked.get("reference_time").item()
    later, sooner = tracked({"reference_time": start + 1e-12})["final_particles"], tracked.get("final_particles")
    assert torch.allclose((later.t - sooner.t)[sooner.alive > 0.0], torch.zeros((), dtype=torch.float64), atol=1e-22)
    with pytest.raises(ValidationError, match=r"'Proton'"):
        BmadModel(decks.ring("proton", 1.2e9), beam=bunch(10))


def test_protons_take_their_time(decks: Any) -> None:
    path = decks.write(
        "with a space/protons.bmad",
        "parameter[geometry] = open\nparameter[particle] = proton\nbeginning[e_tot] = 1.2e9\n"
        "d: drift, l = 2\nq: quadrupole, l = 0.2, k1 = 1\nl1: line = (d, q, d)\nuse, l1\n",
    )
    mass, zero = 938272089.43, np.zeros(5)
    pz = np.linspace(0.9, 1.1, 5) * math.sqrt(1.2e9**2 - mass**2)
    rest = dict.fromkeys(("x", "px", "y", "py", "z"), zero)
    beam = TorchParticleGroup(pz=pz, t=zero + 1e-9, weight=1e-12, species="proton", **rest)
    with BmadModel(path, controls=["Q.k1"], beam=beam, outputs=["final_particles"], workers=0) as found:
        out = found.get("final_particles")
    flight = 4.2 * np.sqrt(pz**2 + mass**2) / (pz * 299792458.0)
    np.testing.assert_allclose(out.t.numpy() - 1e-9, flight, rtol=1e-9)
    assert out.z.tolist() == [pytest.approx(4.2)] * 5
    with BmadModel(path, controls=["Q.k1"], outputs=["final.beta_x"], workers=0) as found:
        with pytest.raises(ValidationError, match=r"'initial\.beta_x' has no value"):
            found.get("final.beta_x")
        value = found({"Q.k1": 0.0, "initial.beta_x": 3.0, "initial.beta_y": 3.0})["final.beta_x"].item()
        assert value == pytest.approx(3.0 + 4.2**2 / 3.0, rel=1e-9)


def test_own_beam_of_the_deck_is_always_the_same(decks: Any) -> None:
    beams = []
    for options in ({}, {}, {"seed": 2}):
        with BmadModel(decks.init(), controls=["Q5.k1"], outputs=["final.sigma_x"], **options) as found:
            beams.append(found.get("initial_particles"))
            assert found.get("reference_energy").item() == pytest.approx(1e8, rel=1e-4)
    assert len(beams[0]) == 500
    assert beams[0]["norm_emit_x"].item() == pytest.approx(1e-6, rel=1e-2)
    assert torch.equal(beams[0].x, beams[1].x)
    assert not torch.equal(beams[0].x, beams[2].x)


@pytest.mark.gradient
def test_energy_rises_in_a_cavity(decks: Any) -> None:
    path = decks.cavity()
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
