"""Conversions to and from ParticleGroup, Cheetah and openPMD files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cheetah
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lume_diff.errors import LatticeError, PhysicsWarning, ShapeError, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.particles.constants import c_light, load_beamphysics
from lume_diff.particles.fields import FIELDS

FILE = "lcls_injector_impact_10000.h5"


def deviation(a: TorchParticleGroup, b: TorchParticleGroup) -> dict[str, float]:
    """The largest difference of each field, relative to its spread, or where it has none to its size."""
    result = {}
    for name in FIELDS:
        one, two = getattr(a, name), getattr(b, name)
        spread = (one.amax(-1) - one.amin(-1)).max()
        size = torch.where(spread > 0.0, spread, one.abs().max())
        result[name] = ((one - two).abs().max() / torch.where(size > 0.0, size, 1.0)).item()
    return result


@pytest.fixture(scope="module")
def measured(shared_data: Path) -> TorchParticleGroup:
    return TorchParticleGroup.from_openpmd(shared_data / FILE)


def test_snapshot_stays_one_until_asked(measured: TorchParticleGroup) -> None:
    assert measured.in_t_coordinates
    assert not measured.in_z_coordinates
    assert measured.notes == ()


def test_bunch_length_of_the_snapshot_survives_in_cheetah(measured: TorchParticleGroup) -> None:
    beam = measured.to_cheetah()
    back = TorchParticleGroup.from_cheetah(beam, reference_time=measured.reference_time)
    length = c_light * back["mean_beta"] * back["sigma_t"]
    assert length.item() == pytest.approx(4.63e-4, rel=0.01)
    theirs = cheetah.ParticleBeam.from_openpmd_particlegroup(
        measured.to_particle_group(), energy=measured.reference_energy, dtype=torch.float64
    )
    assert theirs.sigma_tau.item() < 1e-12
    assert beam.s.item() == pytest.approx(measured["mean_z"].item(), rel=1e-14)


def test_cheetah_round_trip_of_the_measured_bunch(measured: TorchParticleGroup) -> None:
    bunch = measured.on_z_plane()
    back = TorchParticleGroup.from_cheetah(bunch.to_cheetah(), reference_time=bunch.reference_time, id=bunch.id)
    assert max(deviation(bunch, back).values()) < 1e-12
    assert torch.equal(back.id, bunch.id)
    assert torch.equal(back.reference_energy, bunch.reference_energy)


def test_openpmd_round_trip_of_the_measured_bunch(measured: TorchParticleGroup, tmp_path: Path) -> None:
    measured.to_openpmd(tmp_path / "beam.h5")
    back = TorchParticleGroup.from_openpmd(tmp_path / "beam.h5")
    assert max(deviation(measured, back).values()) == 0.0
    assert torch.equal(back.id, measured.id)


@given(
    seed=st.integers(0, 2**31),
    batch=st.sampled_from([(), (1,), (3,), (2, 2)]),
    energy=st.floats(6e5, 5e10),
    species=st.sampled_from(["electron", "positron", "proton", "muon", "deuteron"]),
    z=st.floats(-10.0, 1e3),
)
def test_cheetah_round_trip(
    make_bunch: Any, seed: int, batch: tuple[int, ...], energy: float, species: str, z: float
) -> None:
    scale = energy / 1e8
    bunch = make_bunch(seed=seed, batch=batch, species=species)
    bunch = bunch.replace(
        px=bunch.px * scale,
        py=bunch.py * scale,
        pz=bunch.pz * scale,
        z=z,
        alive=torch.rand(bunch.x.shape, dtype=torch.float64),
    )
    reference_energy = bunch.mass + (bunch["mean_energy"] - bunch.mass) * 1.01
    bunch = bunch.replace(reference_energy=reference_energy, reference_time=bunch["mean_t"] + 1e-12)
    back = TorchParticleGroup.from_cheetah(bunch.to_cheetah(), reference_time=bunch.reference_time)
    assert back.species == species
    assert back.x.shape == bunch.x.shape
    for name, value in deviation(bunch, back).items():
        # A slow, heavy particle's momentum comes from a small difference of energies: E^2 / p^2 is its condition.
        condition = (bunch.energy / bunch.p).square().max().item()
        assert value < 1e-12 * max(1.0, condition), name


def test_particle_group_round_trip_keeps_everything(make_bunch: Any) -> None:
    alive = (torch.arange(12) % 3 > 0).double()
    bunch = make_bunch(id=range(40, 28, -1), alive=alive, species="positron")
    theirs = bunch.to_particle_group()
    assert theirs.n_dead == 4
    assert theirs.species == "positron"
    assert theirs["charge"] == pytest.approx(bunch["charge"].item(), rel=1e-15)
    back = TorchParticleGroup.from_particle_group(
        theirs, reference_energy=bunch.reference_energy, reference_time=bunch.reference_time
    )
    assert max(deviation(bunch, back).values()) == 0.0
    assert torch.equal(back.id, bunch.id)
    theirs.x[:] = 7.0
    assert back.x[0] != 7.0


def test_survival_becomes_a_status_at_one_half(make_bunch: Any) -> None:
    theirs = make_bunch(alive=torch.linspace(0.0, 1.0, 12, dtype=torch.float64)).to_particle_group()
    np.testing.assert_array_equal(theirs.status, [0] * 6 + [1] * 6)


def test_status_other_than_one_is_dead(make_bunch: Any) -> None:
    theirs = make_bunch().to_particle_group()
    theirs.status = np.array([0, 1, 2, 3] * 3)
    assert TorchParticleGroup.from_particle_group(theirs)["n_alive"].item() == 3


def test_dtype_of_import(make_bunch: Any) -> None:
    bunch = TorchParticleGroup.from_particle_group(make_bunch().to_particle_group(), dtype=torch.float32)
    assert bunch.dtype == torch.float32
    beam = bunch.to_cheetah()
    assert {beam.particles.dtype, beam.energy.dtype, beam.s.dtype, beam.species.mass_eV.dtype} == {torch.float32}


def test_cheetah_keeps_charge_survival_and_batch(make_bunch: Any) -> None:
    bunch = make_bunch(batch=(3,), alive=0.25, z=1.0)
    beam = bunch.to_cheetah()
    assert beam.particles.shape == (3, 12, 7)
    assert (beam.particles[..., 6] == 1.0).all()
    assert torch.equal(beam.particle_charges, bunch.weight)
    assert (beam.survival_probabilities == 0.25).all()
    torch.testing.assert_close(beam.total_charge, bunch.alive_only["charge"] * 4.0)
    energies = beam.particles[..., 5] * beam.p0c.unsqueeze(-1) + beam.energy.unsqueeze(-1)
    torch.testing.assert_close(energies, bunch.energy, rtol=1e-13, atol=0.0)


def test_cheetah_charges_may_be_negative() -> None:
    beam = cheetah.ParticleBeam(
        particles=torch.cat([torch.randn(5, 6).double() * 1e-4, torch.ones(5, 1).double()], -1),
        energy=torch.tensor(1e8, dtype=torch.float64),
        dtype=torch.float64,
    )
    assert (beam.particle_charges < 0.0).all()
    bunch = TorchParticleGroup.from_cheetah(beam)
    assert (bunch.weight > 0.0).all()
    assert (bunch.to_cheetah().particle_charges > 0.0).all()


def test_cheetah_own_batch_dimensions_broadcast() -> None:
    beam = cheetah.ParticleBeam(
        particles=torch.zeros(3, 1, 5, 7, dtype=torch.float64),
        energy=torch.tensor([1e8, 2e8], dtype=torch.float64),
        particle_charges=torch.full((5,), 1e-12, dtype=torch.float64),
        s=torch.tensor(2.0, dtype=torch.float64),
        dtype=torch.float64,
    )
    bunch = TorchParticleGroup.from_cheetah(beam)
    assert bunch.batch_shape == (3, 2)
    assert bunch.reference_energy.shape == (3, 2)
    assert (bunch.z == 2.0).all()


def test_custom_species_pass_through_cheetah(make_bunch: Any) -> None:
    ion = make_bunch(z=0.0, pz=1e10, species="C6+", mass=1.12e10, species_charge=6.0)
    beam = ion.to_cheetah()
    assert beam.species.num_elementary_charges.item() == 6.0
    back = TorchParticleGroup.from_cheetah(beam)
    assert (back.species, back.mass, back.charge_number) == ("C6+", 1.12e10, 6.0)
    with pytest.raises(ValidationError, match="openPMD-beamphysics"):
        ion.to_particle_group()


def test_cheetah_of_backward_particles_warns(make_bunch: Any) -> None:
    with pytest.warns(PhysicsWarning, match="forward"):
        make_bunch(z=0.0, pz=-1e8).to_cheetah()


def test_a_fixed_reference_is_not_recomputed(make_bunch: Any) -> None:
    bunch = make_bunch(z=0.0, reference_energy=1e8)
    beam = bunch.replace(pz=bunch.pz * 1.1).to_cheetah()
    assert beam.energy.item() == 1e8
    assert beam.mu_p.item() == pytest.approx(0.1, rel=0.02)


def test_bad_conversions(make_bunch: Any, tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="batch_item"):
        make_bunch(batch=(2,)).to_particle_group()
    with pytest.raises(ShapeError, match="batch_item"):
        make_bunch(batch=(2,)).to_openpmd(tmp_path / "beam.h5")
    with pytest.raises(ValidationError, match="ParticleGroup"):
        TorchParticleGroup.from_particle_group("beam")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="ParticleBeam"):
        TorchParticleGroup.from_cheetah(make_bunch())
    with pytest.raises(ValidationError, match="ParameterBeam"):
        TorchMoments.from_cheetah(make_bunch(z=0.0).to_cheetah())
    with pytest.raises(ShapeError, match="id has shape"):
        TorchParticleGroup.from_cheetah(make_bunch(z=0.0).to_cheetah(), id=[1, 2])
    with pytest.raises(ValidationError, match="rest energy"):
        make_bunch(px=0.0, py=0.0, pz=0.0, z=0.0).to_cheetah()


def test_empty_particle_group() -> None:
    keys = ("x", "y", "z", "px", "py", "pz", "t", "weight", "status")
    empty = load_beamphysics().ParticleGroup(data={key: np.zeros(0) for key in keys} | {"species": []})
    empty.species = "electron"
    with pytest.raises(ShapeError, match="empty"):
        TorchParticleGroup.from_particle_group(empty)


def test_files_that_are_no_beams(tmp_path: Path) -> None:
    import h5py

    with pytest.raises(LatticeError, match="does not exist"):
        TorchParticleGroup.from_openpmd(tmp_path / "missing.h5")
    text = tmp_path / "text.h5"
    text.write_text("hello")
    with pytest.raises(LatticeError, match=r"text\.h5.*not an openPMD beam file"):
        TorchParticleGroup.from_openpmd(text)
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["numbers"] = np.arange(3)
    with pytest.raises(LatticeError, match="expected HDF5 with the openPMD"):
        TorchParticleGroup.from_openpmd(other)


def test_file_with_bad_values_is_named(make_bunch: Any, tmp_path: Path) -> None:
    theirs = make_bunch().to_particle_group()
    theirs.px = np.where(np.arange(12) == 3, np.nan, theirs.px)
    theirs.write(str(tmp_path / "nan.h5"))
    with pytest.raises(ValidationError, match=r"nan\.h5.*px has 1 value"):
        TorchParticleGroup.from_openpmd(tmp_path / "nan.h5")
