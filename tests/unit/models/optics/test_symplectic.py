"""What every linear map keeps: phase-space volume in each plane and the symplectic form, at any setting."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import cheetah
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lume_diff import CheetahModel, TorchParticleGroup
from lume_diff.models import optics

F64 = torch.float64
MASS = cheetah.Species("electron", dtype=F64).mass_eV.item()
FEW = settings(deadline=None, max_examples=60, derandomize=True)

Draw = Callable[[str], torch.Tensor]
strengths = st.one_of(st.just(0.0), st.floats(-1e-6, 1e-6), st.floats(-30.0, 30.0))
RANGES = {
    "length": st.floats(-2.0, 2.0),
    "arc": st.floats(0.05, 2.0),
    "strength": strengths,
    "angle": st.one_of(st.just(0.0), st.floats(-1e-6, 1e-6), st.floats(-1.5, 1.5)),
    "face": st.floats(-1.0, 1.0),
    "kick": st.floats(-1e-2, 1e-2),
    "tilt": st.floats(-3.2, 3.2),
    "dx": st.floats(-1e-2, 1e-2),
    "dy": st.floats(-1e-2, 1e-2),
    "gap": st.floats(0.0, 0.05),
    "fint": st.floats(0.0, 0.7),
    "fintx": st.floats(0.0, 0.7),
    "period": st.one_of(st.just(0.0), st.floats(0.01, 0.1)),
    "kx": st.floats(0.0, 5.0),
    "ky": st.floats(0.0, 5.0),
    "energy": st.floats(1e6, 1e10),
}
NUMBERS = st.fixed_dictionaries(RANGES).map(lambda n: {name: torch.tensor(x, dtype=F64) for name, x in n.items()})


def misalignment(n: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack((n["dx"], n["dy"]))


def bend(make: Callable[..., torch.Tensor], n: dict[str, torch.Tensor]) -> torch.Tensor:
    faces = n["face"], -0.7 * n["face"]
    fringe = n["tilt"], n["gap"], n["fint"], n["fintx"]
    return make(n["arc"], n["angle"], n["energy"], MASS, n["strength"], *faces, *fringe)


MAPS: dict[str, Callable[[dict[str, torch.Tensor]], torch.Tensor]] = {
    "drift": lambda n: optics.drift(n["length"], n["energy"], MASS),
    "sextupole": lambda n: optics.sextupole(n["length"], n["energy"], MASS),
    "quadrupole": lambda n: optics.quadrupole(n["length"], n["strength"], n["energy"], MASS),
    "quadrupole-tilted": lambda n: optics.quadrupole(n["length"], n["strength"], n["energy"], MASS, n["tilt"]),
    "quadrupole-tilted-misaligned": lambda n: optics.quadrupole(
        n["length"], n["strength"], n["energy"], MASS, n["tilt"], misalignment(n)
    ),
    "solenoid": lambda n: optics.solenoid(n["length"], n["strength"], n["energy"], MASS),
    "solenoid-misaligned": lambda n: optics.solenoid(n["length"], n["strength"], n["energy"], MASS, misalignment(n)),
    "dipole-body": lambda n: optics.dipole(n["arc"], n["angle"], n["energy"], MASS, n["strength"]),
    "dipole-edges": lambda n: optics.dipole(
        n["arc"], n["angle"], n["energy"], MASS, n["strength"], n["face"], -0.7 * n["face"]
    ),
    "dipole-edges-fringes-tilt": lambda n: bend(optics.dipole, n),
    "rbend-edges-fringes-tilt": lambda n: bend(optics.rbend, n),
    "corrector": lambda n: optics.corrector(n["length"], n["energy"], MASS, n["kick"], n["dx"]),
    "undulator": lambda n: optics.undulator(n["length"], n["energy"], MASS, n["period"], n["kx"], n["ky"]),
    "identity": lambda n: optics.identity(n["length"]),
}


def symplectic_defect(matrix: torch.Tensor) -> torch.Tensor:
    """Return |R^T S R - S| in (x, px, y, py, -tau, p), which are canonical, against the products that make it up."""
    form = torch.zeros(6, 6, dtype=F64)
    for i, sign in ((0, 1.0), (2, 1.0), (4, -1.0)):
        form[i, i + 1], form[i + 1, i] = sign, -sign
    r = matrix[..., :6, :6]
    scale = r.abs().mT @ form.abs() @ r.abs() + 1.0
    return ((r.mT @ form @ r - form).abs() / scale).max()


@pytest.mark.parametrize("name", MAPS)
@FEW
@given(numbers=NUMBERS)
def test_map_is_symplectic(name: str, numbers: dict[str, torch.Tensor]) -> None:
    matrix = MAPS[name](numbers)
    assert bool(matrix.isfinite().all())
    assert symplectic_defect(matrix) < 1e-14


@pytest.mark.parametrize("name", MAPS)
@FEW
@given(numbers=NUMBERS)
def test_determinant_is_one(name: str, numbers: dict[str, torch.Tensor]) -> None:
    """Of the whole map, and of each plane where none is coupled to another."""
    matrix = MAPS[name]({**numbers, "strength": 0.3 * numbers["strength"], "arc": 0.5 * numbers["arc"]})
    assert torch.equal(matrix[6], torch.eye(7, dtype=F64)[6])
    size = matrix[:6, :6].abs().amax().clamp_min(1.0)
    assert abs(torch.linalg.det(matrix[:6, :6]) - 1.0) < 1e-13 * size**4
    if "tilt" not in name and "solenoid" not in name:
        for plane in (slice(0, 2), slice(2, 4)):
            block = matrix[plane, plane]
            assert abs(torch.linalg.det(block) - 1.0) < 1e-13 * block.abs().amax().clamp_min(1.0) ** 2


@FEW
@given(numbers=NUMBERS)
def test_displacement_changes_the_constants_alone(numbers: dict[str, torch.Tensor]) -> None:
    n = numbers
    arguments = n["length"], n["strength"], n["energy"], MASS
    for placed, plain in (
        (optics.quadrupole(*arguments, n["tilt"], misalignment(n)), optics.quadrupole(*arguments, n["tilt"])),
        (optics.solenoid(*arguments, misalignment(n)), optics.solenoid(*arguments)),
    ):
        assert torch.equal(placed[:, :6], plain[:, :6])
        shift = torch.stack((n["dx"], *n["dx"].new_zeros(1), n["dy"], *n["dx"].new_zeros(3)))
        expected = shift - plain[:6, :6] @ shift
        size = plain.abs().amax().clamp_min(1.0) * shift.abs().amax()
        assert (placed[:6, 6] - expected).abs().max() <= 1e-14 * size


CAVITY = st.fixed_dictionaries(
    {
        "length": st.floats(0.05, 3.0),
        "voltage": st.one_of(st.just(0.0), st.floats(-1e-3, 1e-3), st.floats(-2e7, 2e7)),
        "phase": st.floats(-180.0, 180.0),
        "frequency": st.floats(1e8, 1.2e10),
        "energy": st.floats(2.5e7, 1e10),
    }
).map(lambda n: {name: torch.tensor(x, dtype=F64) for name, x in n.items()})


def energy_behind(n: dict[str, torch.Tensor]) -> torch.Tensor:
    return optics.cavity_reference_energy(n["energy"], n["voltage"], n["phase"])


def longitudinal_determinant(n: dict[str, torch.Tensor], cavity_type: str) -> torch.Tensor:
    """Return that of the derivatives of tau and p of a particle on the reference."""

    def track(start: torch.Tensor) -> torch.Tensor:
        row = torch.cat((start.new_zeros(4), start, start.new_ones(1)))
        return optics.cavity_track(row.unsqueeze(0), **n, mass=MASS, cavity_type=cavity_type)[0][0, 4:6]

    return torch.linalg.det(torch.func.jacrev(track)(torch.zeros(2, dtype=F64)))


@pytest.mark.parametrize("cavity_type", ["standing_wave", "traveling_wave"])
@FEW
@given(numbers=CAVITY)
def test_cavity_damps_each_transverse_plane_by_the_ratio_of_energies(
    cavity_type: str, numbers: dict[str, torch.Tensor]
) -> None:
    """Rosenzweig and Serafini's map is that of beta = 1: the ratio of momenta but for 1 / (2 gamma^2)."""
    matrix = optics.cavity_matrix(**numbers, mass=MASS, cavity_type=cavity_type)
    energy = energy_behind(numbers)
    for plane in (slice(0, 2), slice(2, 4)):
        block = matrix[plane, plane]
        ratio = numbers["energy"] / energy
        assert abs(torch.linalg.det(block) / ratio - 1.0) < 1e-13 * block.abs().amax().clamp_min(1.0) ** 2
        momenta = ((numbers["energy"] ** 2 - MASS**2) / (energy**2 - MASS**2)).sqrt()
        assert abs(ratio / momenta - 1.0) < (MASS / torch.minimum(energy, numbers["energy"])) ** 2
    assert torch.equal(matrix[4:, :4], torch.zeros(3, 4, dtype=F64))


@pytest.mark.parametrize("cavity_type", ["standing_wave", "traveling_wave"])
@FEW
@given(numbers=CAVITY)
def test_cavity_damps_the_longitudinal_plane_by_the_ratio_of_momenta(
    cavity_type: str, numbers: dict[str, torch.Tensor]
) -> None:
    """A standing wave does so on crest and when it is off only: elsewhere Cheetah's r55 and r65 do not match."""
    if cavity_type == "standing_wave":
        numbers = {**numbers, "phase": 0.0 * numbers["phase"]}
    energy = energy_behind(numbers)
    ratio = ((numbers["energy"] ** 2 - MASS**2) / (energy**2 - MASS**2)).sqrt()
    assert abs(longitudinal_determinant(numbers, cavity_type) / ratio - 1.0) < 1e-12


@pytest.fixture(scope="module")
def ares(shared_data: Path) -> CheetahModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segment = cheetah.Segment.from_nx_tables(shared_data / "ares_stage4_nxtables.csv").to(F64)
    row = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)
    beam = cheetah.ParticleBeam(row, torch.tensor(6e6, dtype=F64), species=cheetah.Species("electron", dtype=F64))
    return CheetahModel(segment, beam, outputs=["final_particles", "final.reference_energy"])


def random_settings(model: CheetahModel, seed: int, voltage: float, phase: float) -> dict[str, torch.Tensor]:
    """Draw strengths, kicks, bends, tilts and misalignments, with cavities as given."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"k1": 4.0, "angle": 1e-6, "tilt": 0.1, "misalignment_x": 1e-6, "misalignment_y": 1e-6, "kx": 1.0}
    found = {}
    for name in model.input_names:
        element, _, attribute = name.rpartition(".")
        draw = 2.0 * torch.rand((), generator=generator, dtype=F64) - 1.0
        if f"{element}.voltage" in model.input_names:
            cavity = {
                "voltage": voltage * (1.0 + 0.1 * draw),
                "phase": phase * draw,
                "frequency": 2.9985e9 + 0.0 * draw,
            }
            if attribute in cavity:
                found[name] = cavity[attribute]
        elif attribute in sizes:
            is_bend = attribute == "angle" and f"{element}.gap" in model.input_names
            found[name] = (5e-2 if is_bend else sizes[attribute]) * draw
    return found


def map_of(model: CheetahModel, values: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the derivatives of the coordinates at the end to those at the start, on the reference."""
    energy = torch.tensor(6e6, dtype=F64)

    def track(start: torch.Tensor) -> torch.Tensor:
        row = torch.cat((start, start.new_ones(1))).unsqueeze(0)
        beam = cheetah.ParticleBeam(row, energy, species=cheetah.Species("electron", dtype=F64))
        inputs = {**values, "initial_particles": TorchParticleGroup.from_cheetah(beam)}
        return model(inputs, outputs=["final_particles"])["final_particles"].to_cheetah().particles[0, :6]

    return torch.autograd.functional.jacobian(track, torch.zeros(6, dtype=F64))


@settings(FEW, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_a_whole_machine_is_symplectic(ares: CheetahModel, seed: int) -> None:
    """Every magnet of the ARES linac at random, its cavities off."""
    values = random_settings(ares, seed, voltage=0.0, phase=0.0)
    matrix = map_of(ares, values)
    assert matrix.abs().max() > 10.0
    assert symplectic_defect(matrix) < 1e-13


@settings(FEW, max_examples=10)
@given(seed=st.integers(0, 10**6), phase=st.floats(0.0, 60.0))
def test_a_whole_machine_damps_by_the_ratio_of_energies(ares: CheetahModel, seed: int, phase: float) -> None:
    """With its cavities on and its bends straight, so that energy does not mix into the transverse planes."""
    values = random_settings(ares, seed, voltage=2e7, phase=phase)
    values = {name: 0.0 * value if name.endswith(".angle") else value for name, value in values.items()}
    matrix = map_of(ares, values)
    energy = ares(values, outputs=["final.reference_energy"])["final.reference_energy"]
    assert energy > 3e7
    size = matrix[:4, :4].abs().amax().clamp_min(1.0)
    determinant = torch.linalg.det(matrix[:4, :4])
    assert abs(determinant / (6e6 / energy) ** 2 - 1.0) < 1e-12 * size**2
    assert torch.equal(matrix[4:, :4], torch.zeros(2, 4, dtype=F64))
