"""Decks for Tao, and models of them that several tests share; without Tao what uses them is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.bmad.session import check_installed
from lume_diff.errors import MissingExtraError
from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup

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


class Decks:
    """Write decks into a folder; ``start`` is what the line starts with in some tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start = {"beta_x": 8.0, "alpha_x": -0.5, "eta_x": 0.2, "x": 1e-4, "px": 1e5}

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def ring(self, particle: str = "electron", energy: float = 1e9) -> Path:
        return self.write(f"ring_{particle}.bmad", RING.replace("PARTICLE", particle).replace("ENERGY", repr(energy)))

    def line(self, aperture: float = 0.0) -> Path:
        name = "line.bmad" if not aperture else f"line_{aperture}.bmad"
        return self.write(name, LINE.replace("APERTURE", repr(aperture)))

    def cavity(self) -> Path:
        return self.write("cavity.bmad", CAVITY)

    def init(self) -> Path:
        self.line()
        return self.write("tao.init", INIT)


@pytest.fixture(scope="session")
def decks(tmp_path_factory: pytest.TempPathFactory) -> Decks:
    try:
        check_installed()
    except MissingExtraError as error:
        pytest.skip(str(error))
    return Decks(tmp_path_factory.mktemp("decks"))


def make_bunch(n: int) -> TorchParticleGroup:
    moments = {"beta_x": 3.0, "norm_emit_x": 1e-6, "beta_y": 2.0, "norm_emit_y": 1e-6, "sigma_t": 1e-12}
    return BunchFromMoments(n, mean_energy=1e8, charge=1e-10, sigma_energy=1e5, **moments).get("final_particles")


@pytest.fixture(scope="session")
def bunch() -> Callable[[int], TorchParticleGroup]:
    """Make a bunch of so many particles."""
    return make_bunch


@pytest.fixture(scope="session")
def richardson() -> Callable[..., float]:
    """Take a derivative, of sixth order in the step."""
    return extrapolated


def extrapolated(function: Callable[[float], float], x: float, step: float) -> float:
    """Return a derivative, of sixth order in the step."""
    slopes = [(function(x + h) - function(x - h)) / (2.0 * h) for h in (step, step / 2, step / 4)]
    first, second = (4.0 * slopes[1] - slopes[0]) / 3.0, (4.0 * slopes[2] - slopes[1]) / 3.0
    return (16.0 * second - first) / 15.0


RING_OUTPUTS = ["tune_x", "tune_y", "chroma_x", "END0.beta_x", "END0.eta_x", "END0.x", "END0.px", "QD.r_matrix"]


@pytest.fixture(scope="module")
def model(decks: Decks) -> Iterator[Any]:
    controls = ["QF.k1", "Q2.k1", "Q2.length", "BB.angle", "HK.hkick", "OV.a", "Q2.tilt", "Q2.x_pitch"]
    with BmadModel(decks.ring(), controls=controls, outputs=[*RING_OUTPUTS, "line.beta_y"]) as found:
        yield found


@pytest.fixture(scope="module")
def plain(decks: Decks) -> Iterator[Any]:
    """A line without a bunch."""
    places = [f"D3.{name}" for name in ("beta_x", "mu_x", "eta_x", "x", "px", "s")]
    outputs = [*places, "S1.beta_y", "line.beta_x", "final.r_matrix"]
    with BmadModel(decks.line(), controls=["Q5.k1"], outputs=outputs, initial=decks.start) as found:
        yield found


@pytest.fixture(scope="module")
def tracked(decks: Decks) -> Iterator[Any]:
    """A line through which a bunch of 10 000 particles passes, in mixed order and with one dead."""
    beam = make_bunch(10_000).replace(id=torch.randperm(10_000) + 5)
    beam = beam.replace(alive=torch.where(torch.arange(10_000) == 3, 0.0, 1.0).to(torch.float64))
    outputs = ["S1.particles", "final.sigma_x", "D3.beta_x"]
    with BmadModel(decks.line(), controls=["Q5.k1", "Q6.k1"], beam=beam, outputs=outputs) as found:
        yield found
