"""A bunch through a MAD-X sequence by PTC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.errors import ValidationError
from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup

cpymad = pytest.importorskip("cpymad.madx")

Make = Callable[..., Any]

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


def line(folder: Path, aperture: float = 0.5) -> Path:
    path = folder / f"line_{aperture}.madx"
    path.write_text(LINE.replace("APERTURE", repr(aperture)))
    return path


def bunch(n: int) -> TorchParticleGroup:
    moments = {"beta_x": 3.0, "norm_emit_x": 1e-6, "beta_y": 2.0, "norm_emit_y": 1e-6, "sigma_t": 1e-12}
    return BunchFromMoments(n, mean_energy=1e8, charge=1e-10, sigma_energy=1e5, **moments).get("final_particles")


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
def test_gradient_through_a_bunch(folder: Path, richardson: Make) -> None:
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


def test_energy_error_acts(folder: Path, fodo: Make) -> None:
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
