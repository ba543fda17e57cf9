"""Particles through ImpactX, against exact formulas and Cheetah."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.errors import GradientError, UnknownVariableError, ValidationError
from lume_diff.particles import TorchParticleGroup

pytest.importorskip("impactx")
from impactx import elements as ix

from lume_diff.blackbox.impactx.model import ImpactXModel

Make = Callable[..., Any]

C = 299792458.0


@pytest.mark.parametrize("species", ["electron", "positron", "proton"])
def test_an_exact_drift_is_exact_in_every_coordinate(species: str, bunch: Make) -> None:
    energy = 3e9 if species == "proton" else 6e6
    start = bunch(200, energy, norm_emit_x=1e-4, norm_emit_y=1e-4, sigma_energy=0.02 * energy)
    mass = {"proton": 938272089.43}.get(species, 510998.95069)
    # From 5 m, at 2 us: far from the origin, as a stage in a chain is.
    start = TorchParticleGroup(
        start.x, start.y, start.z + 5.0, start.px, start.py, start.pz, start.t + 2e-6, start.weight, species=species
    )
    model = ImpactXModel([ix.ExactDrift(name="D", ds=2.0)], ["D.length"], ["final.s"], beam=start)
    found = model.get("final_particles")
    p = (start.px**2 + start.py**2 + start.pz**2).sqrt()
    for name, expected, size in (
        ("x", start.x + 2.0 * start.px / start.pz, 1e-3),
        ("y", start.y + 2.0 * start.py / start.pz, 1e-3),
        ("px", start.px, energy),
        ("py", start.py, energy),
        ("pz", start.pz, energy),
        ("t", start.t + 2.0 * (p**2 + mass**2).sqrt() / (start.pz * C), 2e-6),
        ("z", torch.full_like(start.z, 7.0), 7.0),
    ):
        difference = (getattr(found, name) - expected).abs().max()
        assert difference.item() <= 1e-14 * size, name
    assert torch.equal(found.id, start.id)
    assert torch.equal(found.weight, start.weight)
    assert found.species == species
    assert model.get("final.s").item() == 2.0


def test_a_quadrupole_focuses_as_cheetah_says(bunch: Make) -> None:
    import cheetah

    start = bunch(sigma_energy=0.0)
    quad = cheetah.Quadrupole(torch.tensor(0.3), torch.tensor(1.7), name="Q")
    expected = ld.CheetahModel(cheetah.Segment([quad], name="line"), start, outputs=["final.sigma_x", "final.sigma_y"])
    model = ImpactXModel([ix.Quad(name="Q", ds=0.3, k=1.7)], None, ["final.sigma_x", "final.sigma_y"], beam=start)
    for name in ("final.sigma_x", "final.sigma_y"):
        assert model.get(name).item() == pytest.approx(expected.get(name).item(), rel=1e-6)


def test_an_energy_error_acts_because_the_reference_stays(bunch: Make) -> None:
    start = bunch()
    model = ImpactXModel(
        [ix.ExactSbend(name="B", ds=1.0, phi=10.0)], ["B.angle"], ["final.mean_x", "final.reference_energy"], beam=start
    )
    assert model.get("B.angle").item() == pytest.approx(np.radians(10.0), rel=1e-15)
    factor = 1.01
    faster = start.replace(px=start.px * factor, py=start.py * factor, pz=start.pz * factor)
    before = model.get("final.mean_x").item()
    model.set({"initial_particles": faster})
    dispersion = 1.0 / np.radians(10.0) * (1.0 - np.cos(np.radians(10.0)))
    assert model.get("final.mean_x").item() - before == pytest.approx(0.01 * dispersion, rel=0.02)
    assert model.get("final.reference_energy").item() == pytest.approx(1e8, rel=1e-12)
    model.set({"reference_energy": factor * 1e8})
    assert model.get("final.mean_x").item() == pytest.approx(before, abs=2e-6)


def test_a_cavity_raises_the_reference_energy(bunch: Make) -> None:
    model = ImpactXModel(
        [ix.Drift(name="D", ds=0.1), ix.ShortRF(name="C", V=2.0, freq=1.3e9, phase=0.0), ix.Drift(name="E", ds=0.1)],
        ["C.V"],
        ["C.reference_energy", "D.reference_energy", "final.mean_energy"],
        beam=bunch(sigma_t=1e-14),
    )
    gain = 2.0 * 510998.95069
    assert model.get("D.reference_energy").item() == pytest.approx(1e8, rel=1e-12)
    assert model.get("C.reference_energy").item() == pytest.approx(1e8 + gain, rel=1e-12)
    assert model.get("final.mean_energy").item() == pytest.approx(1e8 + gain, rel=1e-6)
    assert model.reference_energy(None, ["C"])["C"].item() == pytest.approx(1e8, rel=1e-12)
    assert model.reference_energy(None, ["E"])["E"].item() == pytest.approx(1e8 + gain, rel=1e-12)
    voltage = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    energies = model.reference_energy({"C.V": voltage}, ["C", "E"])
    assert energies["E"].item() == pytest.approx(1e8 + 1.5 * gain, rel=1e-12)
    assert not energies["C"].requires_grad
    with pytest.raises(GradientError, match="'E', behind an element that accelerates, has no gradient"):
        energies["E"].backward()
    with pytest.raises(ValidationError, match=r"'C\.V' is a batch"):
        model.reference_energy({"C.V": [1.0, 2.0]}, ["E"])
    with pytest.raises(UnknownVariableError, match="no element 'X'"):
        model.reference_energy(None, ["X"])
    slope = model.jacobian(["C.reference_energy"], ["C.V"])["C.reference_energy"]["C.V"]
    assert slope.item() == pytest.approx(510998.95069, rel=1e-8)


def test_a_bunch_at_one_time_is_brought_to_a_plane(bunch: Make, line: Make) -> None:
    from beamphysics import ParticleGroup

    start = bunch(50)
    snapshot = start.to_particle_group()
    snapshot.drift_to_t(float(snapshot.t.mean()))
    model = ImpactXModel(line(), [], ["final.sigma_x"], beam=start)
    expected = model.get("final.sigma_x").item()
    assert isinstance(snapshot, ParticleGroup)
    model.set({"initial_particles": snapshot})
    assert model.get("final.sigma_x").item() == pytest.approx(expected, rel=1e-6)


def test_the_transfer_matrix_is_that_of_the_particles(bunch: Make, line: Make) -> None:
    start = bunch()
    model = ImpactXModel(line(), [], ["M.r_matrix", "M.particles"], beam=start)
    found, matrix = model.get("M.particles"), model.get("M.r_matrix")
    p0 = np.sqrt(1e16 - 510998.95069**2)
    x = matrix[0, 0] * start.x + matrix[0, 1] * start.px / p0
    torch.testing.assert_close(found.x, x, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("space_charge", [None, "3D"])
def test_lost_particles_are_dead_and_the_others_keep_their_places(
    space_charge: str | None, bunch: Make, slit: Make
) -> None:
    start = bunch()
    free = ImpactXModel(slit(1.0), [], ["A.particles"], beam=start)
    width = 0.5 * start["sigma_x"].item()
    model = ImpactXModel(
        slit(width), ["A.aperture_x"], ["A.particles"], beam=start, space_charge=space_charge, n_cell=(16, 16, 16)
    )
    found, whole = model.get("A.particles"), free.get("A.particles")
    alive = found.alive > 0.5
    assert 0 < int(alive.sum()) < len(alive)
    assert torch.equal(found.id, start.id)
    if space_charge is None:
        assert torch.equal(alive, whole.x.abs() <= width)
        assert torch.equal(found.x[alive], whole.x[alive])
    assert bool((found.x.abs()[alive] <= width).all())
    assert torch.equal(found.pz[~alive], found.pz[~alive][:1].expand(int((~alive).sum())))
    assert torch.isfinite(model.get("final_particles").pz).all()


@pytest.mark.parametrize("space_charge", [None, "3D"])
def test_a_bunch_that_is_lost_whole_is_dead_and_no_error(space_charge: str | None, bunch: Make, slit: Make) -> None:
    model = ImpactXModel(
        slit(1e-12), ["A.aperture_x"], ["final.charge"], beam=bunch(), space_charge=space_charge, n_cell=(16, 16, 16)
    )
    assert model.get("final_particles").alive.sum().item() == 0.0
    assert model.get("final.charge").item() == 0.0
    model.set({"A.aperture_x": 1.0})
    assert model.get("final_particles").alive.sum().item() == 500.0
