"""Moments: construction, statistics, conversions, and bunches sampled from them."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from lume_diff.errors import ShapeError, UnknownVariableError, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup, moment_statistic_names, sample_bunch
from lume_diff.particles.moment_statistics import EXACT
from lume_diff.particles.sampling import factor_covariance

TWISS: dict[str, Any] = {
    "beta_x": 10.0,
    "alpha_x": -1.5,
    "norm_emit_x": 1e-6,
    "beta_y": 5.0,
    "alpha_y": 0.7,
    "norm_emit_y": 2e-6,
    "energy": 1.02e8,
    "reference_energy": 1e8,
    "sigma_t": 1e-12,
    "sigma_energy": 1e5,
    "cov_t__energy": 3e-8,
    "charge": 1e-10,
    "mean_x": 1e-3,
    "mean_py": 2e3,
    "reference_time": 4e-9,
    "s": 2.5,
}


@pytest.fixture
def moments() -> TorchMoments:
    return TorchMoments.from_twiss(**TWISS)


def random_moments(seed: int, batch: tuple[int, ...], rank: int = 6) -> TorchMoments:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*batch, 6, rank, generator=generator, dtype=torch.float64)
    size = torch.tensor([1e-3, 1e-5, 2e-3, 2e-5, 3e-4, 1e-3], dtype=torch.float64).unsqueeze(-1)
    cov = (size * root) @ (size * root).mT
    mean = size.squeeze(-1) * torch.randn(*batch, 6, generator=generator, dtype=torch.float64)
    return TorchMoments(mean, cov, charge=1e-10, reference_energy=1e8, reference_time=1e-9, s=3.0)


def correlation_error(a: TorchMoments, b: TorchMoments) -> float:
    size = a.cov.diagonal(dim1=-2, dim2=-1).sqrt()
    size = torch.where(size == 0.0, 1.0, size)
    mean = ((a.mean - b.mean) / size).abs().max().item()
    return max(((a.cov - b.cov) / size.unsqueeze(-1) / size.unsqueeze(-2)).abs().max().item(), mean)


def test_from_twiss_gives_what_was_asked(moments: TorchMoments) -> None:
    expected = {
        "twiss_beta_x": 10.0,
        "twiss_alpha_x": -1.5,
        "twiss_beta_y": 5.0,
        "twiss_alpha_y": 0.7,
        "norm_emit_x": 1e-6,
        "norm_emit_y": 2e-6,
        "norm_emit_4d": 2e-12,
        "twiss_norm_emit_x": 1e-6,
        "mean_energy": 1.02e8,
        "mean_kinetic_energy": 1.02e8 - moments.mass,
        "sigma_energy": 1e5,
        "sigma_t": 1e-12,
        "mean_t": 4e-9,
        "cov_t__energy": 3e-8,
        "cov_energy__t": 3e-8,
        "mean_x": 1e-3,
        "mean_py": 2e3,
        "mean_z": 2.5,
        "sigma_z": 0.0,
        "charge": 1e-10,
    }
    for key, value in expected.items():
        assert moments[key].item() == pytest.approx(value, rel=1e-12), key


def test_moments_of_particles_have_their_statistics(make_bunch: Any) -> None:
    bunch = make_bunch(n=500, alive=(torch.arange(500) % 5 > 0).double()).drift_to_z()
    moments = TorchMoments.from_particles(bunch)
    living = bunch.alive_only
    share = bunch.weight * bunch.alive / living["charge"]
    bessel = (1.0 - share.square().sum()).item()
    for name in EXACT:
        for operator in ("mean", "sigma"):
            key = f"{operator}_{name}"
            assert moments[key].item() == pytest.approx(living[key].item(), rel=1e-9, abs=1e-20), key
    for key in ("cov_x__px", "cov_t__energy", "norm_emit_x", "norm_emit_y"):
        assert moments[key].item() == pytest.approx(living[key].item() * bessel, rel=1e-9), key
    assert moments["norm_emit_4d"].item() == pytest.approx(living["norm_emit_4d"].item() * bessel**2, rel=1e-9)
    for key in ("mean_p", "sigma_p", "mean_pz", "sigma_pz", "twiss_beta_x", "twiss_alpha_y", "mean_gamma", "sigma_xp"):
        assert moments[key].item() == pytest.approx(living[key].item(), rel=1e-3), key
    assert moments["charge"].item() == pytest.approx(living["charge"].item(), rel=1e-14)


def test_every_name_has_a_value_and_a_unit(moments: TorchMoments) -> None:
    values = moments.statistics(moment_statistic_names())
    assert all(torch.isfinite(value) for value in values.values())
    assert moments.units("sigma_px") == "eV/c"
    assert moments.twiss("xy").keys() == TorchParticleGroup.stack([sample_bunch(moments, 9)]).twiss("xy").keys()


def test_a_lost_bunch_has_no_charge(make_bunch: Any) -> None:
    moments = TorchMoments.from_particles(make_bunch(alive=0.0))
    assert moments["charge"].item() == 0.0
    assert torch.isfinite(moments.mean).all()
    assert torch.isfinite(moments.cov).all()


@given(seed=st.integers(0, 2**31), batch=st.sampled_from([(), (3,), (2, 2)]))
def test_batch_equals_loop(seed: int, batch: tuple[int, ...]) -> None:
    together = random_moments(seed, batch)
    for key in ("sigma_x", "mean_px", "norm_emit_4d", "twiss_beta_x", "cov_t__energy", "sigma_pz", "sigma_Lz"):
        values = together[key]
        assert values.shape == batch
        for place in np.ndindex(*batch):
            one = TorchMoments(together.mean[place], together.cov[place], 1e-10, 1e8, 1e-9, 3.0)
            torch.testing.assert_close(values[place], one[key], rtol=1e-9, atol=0.0)


def test_cheetah_round_trip() -> None:
    moments = random_moments(3, (2,))
    beam = moments.to_cheetah()
    assert beam.mu.shape == (2, 7)
    assert (beam.mu[..., 6] == 1.0).all()
    torch.testing.assert_close(beam.sigma_x, moments["sigma_x"])
    back = TorchMoments.from_cheetah(beam, reference_time=moments.reference_time)
    for name in moments._leaf_names:
        assert torch.equal(getattr(back, name), getattr(moments, name))


def test_same_coordinates_as_cheetahs_particles(make_bunch: Any) -> None:
    bunch = make_bunch(n=100, weight=1e-12)
    beam = bunch.to_cheetah().as_parameter_beam()
    moments = TorchMoments.from_particles(bunch)
    torch.testing.assert_close(moments.mean, beam.mu[:6])
    torch.testing.assert_close(moments.cov * 100 / 99, beam.cov[:6, :6])


def test_pytree_copies_and_immutability(moments: TorchMoments) -> None:
    leaves, spec = pytree.tree_flatten(moments)
    assert len(leaves) == 6
    assert pytree.tree_unflatten([object()] * 6, spec).species == "electron"
    for copied in (copy.deepcopy(moments), pickle.loads(pickle.dumps(moments))):
        assert torch.equal(copied.cov, moments.cov)
        assert pytree.tree_structure(copied) == spec
    assert moments.to(torch.float32)["sigma_x"].dtype == torch.float32
    with pytest.raises(AttributeError, match="replace"):
        moments.mean = torch.zeros(6)
    assert moments.replace(charge=2e-10)["charge"].item() == 2e-10
    with pytest.raises(UnknownVariableError, match="'mean'"):
        moments.replace(meen=0.0)
    assert repr(moments) == "TorchMoments(species 'electron', torch.float64)"


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"mean": torch.zeros(7).double()}, ShapeError, "order x, px, y, py, tau, p"),
        ({"cov": torch.zeros(6, 7).double()}, ShapeError, "expected"),
        ({"charge": torch.zeros(3).double(), "s": torch.zeros(2).double()}, ShapeError, "s has shape"),
        ({"mean": torch.full((6,), float("nan")).double()}, ValidationError, "mean has 6"),
        ({"cov": -torch.eye(6).double()}, ValidationError, "eigenvalue"),
        ({"cov": torch.eye(6).double() + torch.eye(6).double().roll(1, 0)}, ValidationError, "symmetric"),
        ({"cov": torch.ones(6, 6).double() * 2.0 - torch.eye(6).double()}, ValidationError, "eigenvalue"),
        ({"charge": -1.0}, ValidationError, "charge"),
        ({"reference_energy": 1e3}, ValidationError, "rest energy"),
        ({"reference_energy": None}, ValidationError, "missing"),
        ({"species": "elektron"}, ValidationError, "'electron'"),
        ({"mean": torch.zeros(6, dtype=torch.int64)}, ValidationError, "int64"),
    ],
    ids=str,
)
def test_bad_input(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {"mean": torch.zeros(6).double(), "cov": torch.eye(6).double(), "reference_energy": 1e8}
    with pytest.raises(error, match=message):
        TorchMoments(**(good | changes))


@pytest.mark.parametrize(
    "changes", [{"beta_x": 0.0}, {"norm_emit_y": -1e-6}, {"sigma_t": -1.0}, {"energy": 1.0}], ids=str
)
def test_bad_twiss(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(changes)) if "energy" not in changes else "rest energy"):
        TorchMoments.from_twiss(**(TWISS | changes))


@pytest.mark.parametrize("key, hint", [("min_x", "needs particles"), ("sgima_x", "sigma_x"), ("id", "needs particles")])
def test_unknown_key(moments: TorchMoments, key: str, hint: str) -> None:
    with pytest.raises(UnknownVariableError, match=hint):
        moments[key]


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(8, 300),
    batch=st.sampled_from([(), (3,), (2, 2)]),
    rank=st.integers(1, 6),
)
def test_sampled_bunch_has_the_moments(seed: int, n: int, batch: tuple[int, ...], rank: int) -> None:
    moments = random_moments(seed, batch, rank)
    bunch = sample_bunch(moments, n, seed=seed % 7)
    assert bunch.x.shape == (*batch, n)
    back = TorchMoments.from_particles(bunch)
    # t, pz and E are rebuilt from the coordinates: c t and E are larger than the spreads by some 1e4.
    assert correlation_error(moments, back) < (1e-7 if rank < 6 else 1e-9)
    torch.testing.assert_close(back.charge, moments.charge)
    assert torch.equal(back.s, moments.s)


def test_sampled_bunch_of_a_beam_without_spread(moments: TorchMoments) -> None:
    still = TorchMoments.from_twiss(**(TWISS | {"sigma_t": 0.0, "sigma_energy": 0.0, "cov_t__energy": 0.0}))
    bunch = sample_bunch(still, 100)
    assert bunch["sigma_t"].item() == 0.0
    assert bunch["sigma_energy"].item() == pytest.approx(0.0, abs=1e-6)
    assert bunch["sigma_x"].item() == pytest.approx(still["sigma_x"].item(), rel=1e-12)
    assert bunch["twiss_beta_x"].item() == pytest.approx(10.0, rel=1e-6)


def test_sample_is_fixed_by_its_seed(moments: TorchMoments) -> None:
    assert torch.equal(sample_bunch(moments, 50, seed=1).x, sample_bunch(moments, 50, seed=1).x)
    assert not torch.equal(sample_bunch(moments, 50, seed=1).x, sample_bunch(moments, 50, seed=2).x)
    state = torch.get_rng_state()
    sample_bunch(moments, 50, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_number_of_particles_may_be_numpys(moments: TorchMoments) -> None:
    assert torch.equal(sample_bunch(moments, np.int64(9)).x, sample_bunch(moments, 9).x)


@pytest.mark.parametrize("n", [6, 0, 10.0])
def test_too_few_particles(moments: TorchMoments, n: Any) -> None:
    with pytest.raises(ValidationError, match="at least 7"):
        sample_bunch(moments, n)


@given(seed=st.integers(0, 2**31), rank=st.integers(0, 6))
def test_factor_of_a_covariance(seed: int, rank: int) -> None:
    root = torch.randn(6, max(rank, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cov = root @ root.mT if rank else torch.zeros(6, 6, dtype=torch.float64)
    factor = factor_covariance(cov)
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.mT, cov, rtol=0.0, atol=1e-6 if rank < 6 else 1e-9)
    if rank == 6:
        torch.testing.assert_close(factor, torch.linalg.cholesky(cov), rtol=1e-6, atol=1e-9)
