"""Fields of PALS lattices act by their physics: signs, charges, integrals, and energies that change on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lume_diff.errors import PhysicsWarning
from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.particles import TorchParticleGroup
from tests.unit.models.line.pals_lines import ENERGY, MASS, C, bunch, line, t

pytest.importorskip("pals", reason="pals-schema is not installed")

START = "begin: {kind: BeginningEle, ReferenceP: {species_ref: electron, E_tot_ref: 1.0e8}}"

# -- fields: an integration of the Lorentz force in the field that the standard states ---------------------------------

Field = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def multipole_field(order: int, normal: float, skew: float, tilt: float) -> Field:
    """Return the field of the standard's equation of MagneticMultipoleP [T]."""

    def field(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        r, theta = np.hypot(x, y), np.arctan2(y, x)
        whole = (normal + 1j * skew) / math.factorial(order)
        whole = whole * np.exp(-1j * (order + 1) * tilt) * np.exp(1j * order * theta) * r**order
        return whole.imag, whole.real, 0.0

    return field


def pushed(group: TorchParticleGroup, length: float, charge: float, field: Field, solenoid: float = 0.0) -> np.ndarray:
    """Return x, px, y, py behind a field with hard edges, in steps of 1 mm by Runge and Kutta's method."""
    state = np.stack([getattr(group, name).numpy() for name in ("x", "px", "y", "py", "pz")])

    def slope(now: np.ndarray) -> np.ndarray:
        x, px, y, py, pz = now
        bx, by, bz = field(x, y)
        force = charge * C * np.stack([(py * bz - pz * by), (pz * bx - px * bz), (px * by - py * bx)]) / pz
        return np.stack([px / pz, force[0], py / pz, force[1], force[2]])

    def edge(sign: float) -> None:
        kick = sign * charge * C * solenoid / 2.0
        state[1] += kick * state[2]
        state[3] -= kick * state[0]

    edge(+1.0)
    count = round(length / 1e-3)
    step = length / count
    for _ in range(count):
        k1 = slope(state)
        k2 = slope(state + step / 2 * k1)
        k3 = slope(state + step / 2 * k2)
        k4 = slope(state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    edge(-1.0)
    return state[:4]


FIELDS: dict[str, tuple[str, Field, float]] = {
    "quadrupole": (
        "kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Bn1: 0.7}",
        multipole_field(1, 0.7, 0.0, 0.0),
        0.0,
    ),
    "integrated quadrupole": (
        "kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Bn1L: -0.14}",
        multipole_field(1, -0.7, 0.0, 0.0),
        0.0,
    ),
    "skew quadrupole with tilt": (
        "kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Bn1: 0.5, Bs1: 0.3, tilt1: 0.2}",
        multipole_field(1, 0.5, 0.3, 0.2),
        0.0,
    ),
    "sextupole": (
        "kind: Sextupole, length: 0.02, MagneticMultipoleP: {Bn2: 900.0, Bs2: 500.0, tilt2: 0.1}",
        multipole_field(2, 900.0, 500.0, 0.1),
        0.0,
    ),
    "kicker": (
        "kind: Kicker, length: 0.001, MagneticMultipoleP: {Bn0: 0.02, Bs0: 0.03, tilt0: 0.3}",
        multipole_field(0, 0.02, 0.03, 0.3),
        0.0,
    ),
    "solenoid": ("kind: Solenoid, length: 0.2, SolenoidP: {Bsol: 0.4}", lambda x, y: (0 * x, 0 * x, 0.4), 0.4),
}


@pytest.mark.parametrize("species, energy", [("electron", ENERGY), ("proton", 1.2e9)])
@pytest.mark.parametrize("text, field, solenoid", FIELDS.values(), ids=FIELDS)
def test_a_field_acts_by_its_physics(
    tmp_path: Path, text: str, field: Field, solenoid: float, species: str, energy: float
) -> None:
    group = bunch(species, energy)
    segment = line(tmp_path, f"E1: {{{text}}}", beam=group)
    final = CheetahModel(segment, group).get("final_particles")
    found = np.stack([getattr(final, name).numpy() for name in ("x", "px", "y", "py")])
    length = float(segment.elements[0].length)
    expected = pushed(group, length, -1.0 if species == "electron" else 1.0, field, solenoid)
    start = np.stack([getattr(group, name).numpy() for name in ("x", "px", "y", "py")])
    change = expected[[1, 3]] - start[[1, 3]]
    assert np.abs(change).max() > 1e-3 * np.abs(start[[1, 3]]).max()
    np.testing.assert_allclose(found[[1, 3]] - start[[1, 3]], change, rtol=0.0, atol=2e-3 * np.abs(change).max())


def test_a_bend_by_field_bends_its_reference_particle(tmp_path: Path) -> None:
    momentum = math.sqrt(ENERGY**2 - MASS["electron"] ** 2)
    segment = line(tmp_path, f"{START}\nB1: {{kind: SBend, length: 0.5, BendP: {{bend_field_ref: -0.2}}}}")
    assert float(segment.elements[1].angle) == pytest.approx(0.5 * 0.2 * C / momentum, rel=1e-12)


def test_a_positive_bend_deflects_towards_negative_x(tmp_path: Path) -> None:
    """A particle of too much energy is bent less and comes out at positive x."""
    model = CheetahModel(line(tmp_path, "B1: {kind: SBend, length: 0.5, BendP: {g_ref: 0.4}}"), bunch())
    assert float(model({"reference_energy": t(0.99 * ENERGY)})["final.mean_x"] - model.get("final.mean_x")) > 1e-4


def test_a_later_particle_sees_a_later_phase(tmp_path: Path) -> None:
    """The gain is V cos 2 pi (f t + phase), with phase in turns."""
    frequency, turns, voltage = 2.856e9, 0.05, 5e6
    late = t([0.0, 1e-12, 3e-12, -2e-12])
    still = torch.zeros(4, dtype=torch.float64)
    momentum = math.sqrt(ENERGY**2 - MASS["electron"] ** 2)
    group = bunch().replace(x=still, y=still, px=still, py=still, pz=still + momentum, t=late)
    gain_on_time = voltage * math.cos(2 * math.pi * turns)
    wave = f"voltage: {voltage}, phase: {turns}, frequency: {frequency}, dE_ref: {gain_on_time}"
    text = f"C1: {{kind: RFCavity, length: 0.1, RFP: {{{wave}}}}}"
    final = CheetahModel(line(tmp_path, text), group).get("final_particles")
    gain = final["energy"] - group["energy"]
    torch.testing.assert_close(gain, voltage * torch.cos(2 * math.pi * (frequency * late + turns)), rtol=1e-5, atol=0.0)


def test_strengths_behind_a_cavity_refer_to_the_reference_energy(tmp_path: Path) -> None:
    cavity = "C1: {{kind: RFCavity, length: 1.0, RFP: {{voltage: 5.0e7, frequency: 2.856e9}}{more}}}"
    quadrupole = "Q1: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Kn1: 1.5}}"
    field = "Q2: {kind: Quadrupole, length: 0.2, MagneticMultipoleP: {Bn1: 1.5}}"
    mass = MASS["electron"]
    before, behind = math.sqrt(1e8**2 - mass**2), math.sqrt(1.5e8**2 - mass**2)

    text = "\n".join([START, cavity.format(more=", ReferenceChangeP: {dE_ref: 5.0e7}"), quadrupole, field])
    assert [float(e.k1) for e in line(tmp_path, text).elements[2:]] == pytest.approx(
        [1.5, -1.5 * C / behind], rel=1e-12
    )

    with pytest.warns(PhysicsWarning, match=r"'C1' \(5e\+07 eV, dE_ref 0 eV\)"):
        found = line(tmp_path, "\n".join([START, cavity.format(more=""), quadrupole, field]))
    expected = [1.5 * before / behind, -1.5 * C / behind]
    assert [float(e.k1) for e in found.elements[2:]] == pytest.approx(expected, rel=1e-12)
