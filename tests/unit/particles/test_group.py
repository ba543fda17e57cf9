"""Construction, checks, pytree behaviour and copies of a bunch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree as pytree

from lume_diff.errors import PhysicsWarning, ShapeError, UnknownVariableError, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.particles.bundle import Static
from lume_diff.particles.constants import known_species, load_beamphysics, species_constants
from lume_diff.particles.fields import FIELDS

NUMBERS: dict[str, Any] = {
    "x": 0.0,
    "y": 0.0,
    "z": 0.0,
    "px": 0.0,
    "py": 0.0,
    "pz": 1e8,
    "t": 0.0,
    "weight": 1e-12,
}


def make(**changes: Any) -> TorchParticleGroup:
    return TorchParticleGroup(**({"x": torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)} | NUMBERS | changes))


def test_fields_broadcast_without_copying() -> None:
    bunch = make(x=torch.zeros(3, 1, 4, dtype=torch.float64), y=torch.zeros(2, 4), pz=torch.full((4,), 1e8))
    assert bunch.batch_shape == (3, 2)
    assert all(getattr(bunch, name).shape == (3, 2, 4) for name in FIELDS)
    assert bunch.reference_energy.shape == (3, 2)
    assert bunch.weight.untyped_storage().nbytes() == 8
    assert bunch.dtype == torch.float64


def test_reference_may_bring_the_batch() -> None:
    bunch = make(x=torch.zeros(4, dtype=torch.float64), reference_energy=torch.tensor([1e8, 2e8], dtype=torch.float64))
    assert bunch.batch_shape == (2,)


def test_a_batch_may_have_no_bunch() -> None:
    bunch = make(x=torch.zeros(0, 4, dtype=torch.float64))
    assert bunch.batch_shape == (0,)
    assert bunch["sigma_x"].shape == (0,)
    assert TorchMoments(torch.zeros(0, 6), torch.eye(6), reference_energy=1e8)["sigma_x"].shape == (0,)


def test_single_precision_and_numpy() -> None:
    bunch = make(x=torch.zeros(4, dtype=torch.float32))
    assert bunch.dtype == torch.float32
    assert make(x=torch.zeros(4, dtype=torch.float64).numpy()).dtype == torch.float64


def test_lists_of_numbers_are_double() -> None:
    assert make(x=[0.1, 0.2]).x.tolist() == [0.1, 0.2]
    assert make(x=torch.zeros(2), y=[0.1, 0.2]).dtype == torch.float64


def test_default_reference_is_the_livings_mean_and_constant() -> None:
    pz = torch.tensor([1e8, 1.2e8, 9e9], dtype=torch.float64, requires_grad=True)
    bunch = make(
        x=0.0,
        pz=pz,
        weight=torch.tensor([1.0, 3.0, 1.0]).double() * 1e-12,
        alive=torch.tensor([1.0, 1.0, 0.0]).double(),
    )
    expected = 0.25 * bunch.energy[0] + 0.75 * bunch.energy[1]
    torch.testing.assert_close(bunch.reference_energy, expected.detach())
    assert not bunch.reference_energy.requires_grad


def test_default_id_and_len() -> None:
    bunch = make(x=torch.zeros(4, dtype=torch.float64))
    assert bunch.id.tolist() == [1, 2, 3, 4]
    assert bunch.id.dtype == torch.int64
    assert len(bunch) == bunch.n_particle == 4


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"x": torch.zeros(0, dtype=torch.float64)}, ShapeError, "empty"),
        ({"x": 0.0}, ShapeError, "single numbers"),
        ({"x": torch.zeros(4).double(), "y": torch.zeros(5).double()}, ShapeError, r"y has shape \(5,\)"),
        ({"x": torch.zeros(3, 4).double(), "reference_energy": torch.full((2,), 1e8)}, ShapeError, "reference_energy"),
        ({"x": torch.zeros(4, dtype=torch.int64)}, ValidationError, "x has dtype torch.int64"),
        ({"x": torch.zeros(4, dtype=torch.bool)}, ValidationError, "torch.bool"),
        ({"x": torch.zeros(4, dtype=torch.complex128)}, ValidationError, "complex128"),
        ({"x": "wide"}, ValidationError, "x is 'wide'"),
        ({"x": torch.zeros(2).double(), "y": None}, ValidationError, "y is None"),
        ({"x": torch.zeros(2).double(), "t": 10**400}, ValidationError, "t is 10"),
        ({"x": [torch.zeros((), requires_grad=True)] * 2}, ValidationError, r"torch\.stack"),
        ({"x": torch.zeros(4).double(), "y": True}, ValidationError, "y"),
        ({"x": torch.tensor([0.0, float("nan")]).double()}, ValidationError, "x has 1 value"),
        ({"x": torch.zeros(4).double(), "pz": float("inf")}, ValidationError, "pz has"),
        (
            {"x": torch.zeros(2).double(), "weight": torch.tensor([1.0, -1.0]).double()},
            ValidationError,
            "weight ranges",
        ),
        ({"x": torch.zeros(2).double(), "weight": 0.0}, ValidationError, "add up to 0 C"),
        ({"x": torch.zeros(2).double(), "alive": 1.5}, ValidationError, "alive ranges"),
        ({"x": torch.zeros(2).double(), "reference_energy": 1.0}, ValidationError, "rest energy"),
        ({"x": torch.zeros(2).double(), "id": [1, 1]}, ValidationError, "repeated"),
        ({"x": torch.zeros(2).double(), "id": [1, 2, 3]}, ShapeError, "id has shape"),
        ({"x": torch.zeros(2).double(), "id": [1.0, 2.0]}, ValidationError, "integers"),
        ({"x": torch.zeros(2).double(), "species": "electrn"}, ValidationError, "'electron'"),
        ({"x": torch.zeros(2).double(), "species": "C6+", "mass": 1e10}, ValidationError, "species_charge="),
        ({"x": torch.zeros(2).double(), "mass": 1e10}, ValidationError, "contradict"),
        ({"x": torch.zeros(2).double(), "mass": "heavy"}, ValidationError, "mass='heavy' of species 'electron'"),
        ({"x": torch.zeros(2).double(), "species_charge": float("nan")}, ValidationError, "species_charge=nan"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else "-".join(value),
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def test_negative_pz_is_fine() -> None:
    assert make(x=torch.zeros(2).double(), pz=-1e8)["mean_pz"].item() == -1e8


def test_unknown_species_with_mass_and_charge() -> None:
    bunch = make(x=torch.zeros(2).double(), species="C6+", mass=1.12e10, species_charge=6)
    assert bunch["mass"].item() == 1.12e10
    assert bunch["species_charge"].item() == pytest.approx(6 * 1.602176634e-19)
    assert bunch.replace(pz=2e8).species == "C6+"


def test_species_table_equals_beamphysics_and_cheetah() -> None:
    from cheetah import Species

    table = load_beamphysics().species
    for name, mass in table.MASS_OF.items():
        assert species_constants(name) == (mass, table.CHARGE_STATE[name])
    for name in Species.known:
        species = Species(name, dtype=torch.float64)
        assert species_constants(name) == (species.mass_eV.item(), species.num_elementary_charges.item())
    assert set(known_species()) == set(table.MASS_OF) | set(Species.known)


def test_immutable(make_bunch: Any) -> None:
    with pytest.raises(AttributeError, match="replace"):
        make_bunch().x = torch.zeros(12)


def test_replace_checks_and_keeps(make_bunch: Any) -> None:
    bunch = make_bunch(id=range(100, 112)).drift_to_z()
    changed = bunch.replace(px=bunch.px * 2.0)
    assert torch.equal(changed.reference_energy, bunch.reference_energy)
    assert torch.equal(changed.id, bunch.id)
    assert changed.notes == bunch.notes
    with pytest.raises(UnknownVariableError, match="'px'"):
        bunch.replace(pxx=0.0)
    with pytest.raises(ValidationError, match="finite"):
        bunch.replace(px=float("nan"))


def test_indexing_picks_particles(make_bunch: Any) -> None:
    bunch = make_bunch(batch=(2,), id=range(10, 22))
    assert bunch[2:5].x.shape == (2, 3)
    assert bunch[-1].id.tolist() == [21]
    assert bunch[np.int64(-1)].id.tolist() == [21]
    assert bunch[[0, 3]].id.tolist() == [10, 13]
    mask = torch.arange(12) > 7
    assert bunch[mask].id.tolist() == [18, 19, 20, 21]
    assert torch.equal(bunch[mask].reference_energy, bunch.reference_energy)
    with pytest.raises(ShapeError, match="no particle"):
        bunch[torch.zeros(12, dtype=torch.bool)]
    with pytest.raises(ShapeError, match="all bunches"):
        bunch[torch.ones(2, 12, dtype=torch.bool)]


def test_batches(make_bunch: Any) -> None:
    one, two = make_bunch(seed=1), make_bunch(seed=2)
    both = TorchParticleGroup.stack([one, two])
    assert both.batch_shape == (2,)
    assert torch.equal(both.batch_item(1).px, two.px)
    with pytest.raises(ShapeError, match="expected a batch"):
        one.batch_item(0)
    with pytest.raises(ShapeError, match="no bunch"):
        TorchParticleGroup.stack([])
    with pytest.raises(ShapeError, match="one shape"):
        TorchParticleGroup.stack([one, both])
    with pytest.raises(ValidationError, match="species"):
        TorchParticleGroup.stack([one, two.replace(species="positron")])


def test_leaves_are_float_tensors_only(make_bunch: Any) -> None:
    leaves, spec = pytree.tree_flatten(make_bunch(id=range(12)))
    assert len(leaves) == 11
    assert all(isinstance(leaf, torch.Tensor) and leaf.is_floating_point() for leaf in leaves)
    assert torch.equal(pytree.tree_unflatten(leaves, spec).id, torch.arange(12))


def test_unflatten_checks_nothing(make_bunch: Any) -> None:
    leaves, spec = pytree.tree_flatten(make_bunch())
    placeholders = pytree.tree_unflatten([object()] * len(leaves), spec)
    assert isinstance(placeholders, TorchParticleGroup)
    assert pytree.tree_map(lambda leaf: 0, make_bunch()).x == 0


def test_structures_compare(make_bunch: Any) -> None:
    def spec(bunch: TorchParticleGroup) -> pytree.TreeSpec:
        return pytree.tree_structure(bunch)

    assert spec(make_bunch(id=range(12))) == spec(make_bunch(id=range(12), seed=3).drift_to_z())
    assert spec(make_bunch(id=range(12))) != spec(make_bunch(id=range(1, 13)))
    assert spec(make_bunch()) != spec(make_bunch(species="positron"))
    assert Static("electron", 1.0, -1.0) != "electron"


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))], ids=["deepcopy", "pickle"])
def test_copies_hold_detached_values(make_bunch: Any, copier: Any) -> None:
    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    bunch = make_bunch(id=range(12)).drift_to_z()
    bunch = bunch.replace(px=bunch.px * scale)
    copied = copier(bunch)
    assert not copied.requires_grad
    assert copied.notes == bunch.notes
    assert torch.equal(copied.id, bunch.id)
    for name in FIELDS:
        assert torch.equal(getattr(copied, name), getattr(bunch, name))
        assert getattr(copied, name).data_ptr() != getattr(bunch, name).data_ptr()


def test_clone_detach_to(make_bunch: Any) -> None:
    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    bunch = make_bunch(id=range(12))
    bunch = bunch.replace(px=bunch.px * scale)
    assert bunch.clone().requires_grad
    assert not bunch.detach().requires_grad
    single = bunch.to(torch.float32)
    assert single.dtype == torch.float32
    assert single.id.dtype == torch.int64
    assert bunch.to(torch.float64) is bunch
    (gradient,) = torch.autograd.grad(single["sigma_px"], scale)
    assert gradient.item() == pytest.approx(bunch["sigma_px"].item() / 1.1, rel=1e-4)


def test_drift_equals_particle_group(make_bunch: Any) -> None:
    bunch = make_bunch()
    theirs = bunch.to_particle_group()
    for z in (None, 1.5):
        reference = theirs.copy()
        reference.drift_to_z(z)
        ours = bunch.drift_to_z(z)
        for name in ("x", "y", "z", "t", "px", "pz"):
            scale = 1e-13 * abs(reference[name]).max()
            torch.testing.assert_close(getattr(ours, name), torch.as_tensor(reference[name]), rtol=0, atol=scale)
        assert ours.in_z_coordinates


def test_drift_is_noted(make_bunch: Any) -> None:
    bunch = make_bunch()
    assert bunch.notes == ()
    assert bunch.drift_to_z(0.5).notes == ("drifted from its own positions to z = 0.5 m",)
    snapshot = bunch.replace(t=0.0)
    assert snapshot.in_t_coordinates
    assert snapshot.drift_to_z(0.25).notes == ("drifted from a t-snapshot to z = 0.25 m",)
    assert "3 bunches" in make_bunch(batch=(3,)).drift_to_z().notes[0]
    assert bunch.noted("checked").notes == ("checked",)


def test_drift_leaves_the_dead_out_of_the_target(make_bunch: Any) -> None:
    bunch = make_bunch()
    alive = (torch.arange(12) > 0).double()
    far = bunch.replace(alive=alive, z=torch.where(alive > 0.0, bunch.z, 1e3))
    torch.testing.assert_close(far.drift_to_z().z[0], far.alive_only["mean_z"])


def test_on_plane_is_left_alone(make_bunch: Any) -> None:
    bunch = make_bunch(z=0.3)
    assert bunch.on_z_plane() is bunch
    drifted = bunch.drift_to_z()
    for name in FIELDS:
        assert torch.equal(getattr(drifted, name), getattr(bunch, name))


def test_backward_motion_warns(make_bunch: Any) -> None:
    pz = torch.full((12,), 1e8, dtype=torch.float64)
    pz = torch.cat([pz[:10], torch.tensor([0.0, -1e8], dtype=torch.float64)])
    with pytest.warns(PhysicsWarning, match="2 particles with pz <= 0"):
        drifted = make_bunch(pz=pz).drift_to_z(2.0)
    assert torch.isfinite(drifted.x).all()
    assert (drifted.z == 2.0).all()


@pytest.mark.parametrize(
    "z, error", [([0.0, 1.0], ShapeError), (float("nan"), ValidationError)], ids=["two planes", "NaN"]
)
def test_a_plane_is_one_and_finite(make_bunch: Any, z: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="drift_to_z: z has"):
        make_bunch().drift_to_z(z)


def test_repr_names_what_it_is(make_bunch: Any) -> None:
    assert repr(make_bunch(batch=(2,))) == (
        "TorchParticleGroup(12 particles of species 'electron', batch (2,), torch.float64)"
    )
