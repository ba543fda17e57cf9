"""Statistics of a bunch against openPMD-beamphysics' own, and where theirs are not defined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.particles import TorchParticleGroup, parse_key, statistic_names, statistic_unit
from lume_diff.particles.constants import c_light, load_beamphysics
from lume_diff.particles.keys import ARRAY_KEYS

PERMUTATIONS = 5


def beamphysics_keys() -> list[str]:
    load_beamphysics()
    from beamphysics.standards.statistics import get_all_statistics_by_key

    # "bunching" alone is no statistic there either: it needs a wavelength, and is tested below.
    return [key for key in get_all_statistics_by_key() if key != "bunching"]


KEYS = beamphysics_keys()


class Case:
    """The measured bunch in one form: theirs, ours, and how their figures depend on the order of particles."""

    def __init__(self, particle_group: Any) -> None:
        self.theirs = particle_group
        self.ours = TorchParticleGroup.from_particle_group(particle_group)
        self.values = self.ours.statistics(KEYS)
        rng = np.random.default_rng(1)
        orders = [rng.permutation(len(particle_group)) for _ in range(PERMUTATIONS)]
        permuted = [(order, particle_group[order]) for order in orders]
        self.permuted = [(np.argsort(order), group.statistics(*KEYS)) for order, group in permuted]

    def change(self, key: str, reference: np.ndarray) -> float:
        """The largest change that a permutation makes to their figure."""
        changes = [
            np.asarray(values[key], dtype=float)[back] if reference.ndim else np.asarray(values[key], dtype=float)
            for back, values in self.permuted
        ]
        return max(float(np.max(np.abs(value - reference))) for value in changes)

    def round_off_of_constants(self, key: str) -> float:
        """What a figure is worth that is zero but for the rounding of a constant array's mean."""
        names = [name for name in parse_key(key).names if name in ARRAY_KEYS]
        constant = [name for name in names if np.ptp(np.asarray(self.theirs[name], dtype=float)) == 0.0]
        if parse_key(key).operator not in ("sigma", "cov", "delta") or not constant:
            return 0.0
        size = 1.0
        for name in names:
            values = np.asarray(self.theirs[name], dtype=float)
            size *= 16.0 * np.finfo(float).eps * np.max(np.abs(values)) if name in constant else np.std(values)
        return size


def round_off(bunch: TorchParticleGroup, key: str) -> float:
    """How far a figure may be off for another order of the sums."""
    arrays = [name for name in parse_key(key).names if name in ARRAY_KEYS]
    sizes = [bunch["energy" if name == "higher_order_energy" else name].double().abs().max().item() for name in arrays]
    return 1e-12 * float(np.prod(sizes)) if arrays else 0.0


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> dict[str, Case]:
    particle_group = load_beamphysics().ParticleGroup(str(shared_data / "lcls_injector_impact_10000.h5"))
    drifted = particle_group.copy()
    drifted.drift_to_z()
    return {"t-snapshot": Case(particle_group), "z-plane": Case(drifted)}


@pytest.mark.parametrize("form", ["t-snapshot", "z-plane"])
def test_every_statistic_equals_particle_groups(cases: dict[str, Case], form: str) -> None:
    case, off = cases[form], {}
    for key in KEYS:
        reference = np.asarray(case.theirs[key], dtype=float)
        value = case.values[key].numpy().astype(float)
        assert value.shape == reference.shape, key
        error = float(np.max(np.abs(value - reference)))
        relative = 1e-10 * float(np.max(np.abs(reference)))
        # not "error > bound": a nan is off
        if not error <= max(relative, 10.0 * case.change(key, reference), case.round_off_of_constants(key)):
            off[key] = error
    assert not off


@pytest.mark.parametrize("key", ["bunching_1e-3", "bunching_500_um", "bunching_phase_2.5_mm"])
@pytest.mark.parametrize("form", ["t-snapshot", "z-plane"])
def test_bunching_equals_particle_group(cases: dict[str, Case], key: str, form: str) -> None:
    assert cases[form].ours[key].item() == pytest.approx(cases[form].theirs[key], rel=1e-9)


@pytest.mark.parametrize("form", ["t-snapshot", "z-plane"])
@pytest.mark.parametrize("arguments", [{}, {"fraction": 0.9}, {"p0c": 6e6}, {"plane": "xy"}], ids=str)
def test_twiss_equals_particle_group(cases: dict[str, Case], form: str, arguments: dict[str, Any]) -> None:
    ours, theirs = cases[form].ours.twiss(**arguments), cases[form].theirs.twiss(**arguments)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.item() == pytest.approx(theirs[name], rel=1e-9)


@pytest.mark.parametrize("fraction", [0.29, 0.57, 0.58])
def test_share_of_particles_is_counted_as_by_particle_group(make_bunch: Any, fraction: float) -> None:
    bunch = make_bunch(n=100)  # 0.29 * 100 is below 29 in double and 29 in single precision
    expected = bunch.to_particle_group().twiss("x", fraction)["emit_x"]
    assert bunch.twiss("x", fraction)["emit_x"].item() == pytest.approx(expected, rel=1e-9)
    assert bunch.alive_only.twiss("x", fraction)["emit_x"].item() == pytest.approx(expected, rel=1e-9)
    assert bunch.to(torch.float32).twiss("x", fraction)["emit_x"].item() == pytest.approx(expected, rel=1e-3)


def test_cov_equals_particle_group(cases: dict[str, Case]) -> None:
    ours, theirs = (cases["z-plane"].ours.cov("x", "px", "t"), cases["z-plane"].theirs.cov("x", "px", "t"))
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10)


def test_units_are_beamphysics() -> None:
    keys, pg_units = [*KEYS, "bunching_1e-6", "bunching_phase_1e-6"], load_beamphysics().units.pg_units
    assert {key: statistic_unit(key) for key in keys} == {key: str(pg_units(key)) for key in keys}


def test_percentile_has_the_unit_of_its_array(make_bunch: Any) -> None:
    assert make_bunch().units("percentile_90_px") == "eV/c"


def test_names_are_beamphysics() -> None:
    assert set(statistic_names()) == set(KEYS)


def test_statistics_at_once_equal_one_by_one(make_bunch: Any) -> None:
    bunch = make_bunch(n=50)
    for view in (bunch, bunch.alive_only):
        for key, value in view.statistics(statistic_names()).items():
            torch.testing.assert_close(value, view[key], rtol=1e-9, atol=0.0, equal_nan=True)


def test_dead_particles_count_unless_alive_only(make_bunch: Any) -> None:
    bunch = make_bunch(n=40)
    dead = torch.arange(40) % 2 == 1
    lossy = bunch.replace(alive=(~dead).double(), x=torch.where(dead, bunch.x + 5.0, bunch.x))
    living = lossy[~dead]
    theirs = lossy.to_particle_group()
    assert lossy["sigma_x"].item() == pytest.approx(theirs["sigma_x"], rel=1e-12)
    for key in statistic_names():
        if parse_key(key).per_particle or key == "n_dead":
            continue
        expected = living[key].item()
        assert lossy.alive_only[key].item() == pytest.approx(expected, rel=1e-9, abs=round_off(living, key)), key
    assert lossy["n_alive"].item() == 20
    assert lossy["n_dead"].item() == 20
    assert lossy.alive_only["n_particle"].item() == 20


def test_partial_survival_weighs(make_bunch: Any) -> None:
    bunch = make_bunch(n=20)
    half = bunch.replace(alive=0.5)
    assert half.alive_only["charge"].item() == pytest.approx(0.5 * bunch["charge"].item())
    torch.testing.assert_close(half.alive_only["sigma_x"], bunch["sigma_x"])
    torch.testing.assert_close(half.alive_only["norm_emit_4d"], bunch["norm_emit_4d"])


def test_all_lost_is_nan_with_zero_gradient(make_bunch: Any) -> None:
    x = torch.stack([make_bunch().x, make_bunch().x]).requires_grad_()
    alive = torch.ones_like(x)
    alive = torch.stack([alive[0], torch.zeros_like(alive[1])]).requires_grad_()
    bunch = make_bunch().replace(x=x, alive=alive)
    assert torch.equal(bunch.alive_only["charge"] > 0.0, torch.tensor([True, False]))
    assert bunch.alive_only["n_alive"].tolist() == [bunch.n_particle, 0]
    for key in (*statistic_names(), "percentile_90_x", "bunching_1e-4"):
        value = bunch.alive_only[key]
        if not value.requires_grad or parse_key(key).per_particle or key == "charge":
            continue
        assert torch.isnan(value[1]), key
        assert torch.isfinite(value[0]), key
        gradients = torch.autograd.grad(value.nansum() + value.sum(), (x, alive), allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                assert torch.isfinite(gradient[0]).all(), key
                assert (gradient[1] == 0.0).all(), key


@pytest.mark.parametrize(
    "key", ["sigma_z", "cov_z__z", "sigma_z/c", "norm_emit_x", "norm_emit_4d", "sigma_y", "r", "theta"]
)
def test_degenerate_coordinates_have_finite_gradients(key: str) -> None:
    x = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    z = torch.full((6,), 0.941823, dtype=torch.float64, requires_grad=True)
    weight = torch.linspace(1.0, 2.0, 6, dtype=torch.float64) * 1e-12
    bunch = TorchParticleGroup(x=x, y=x * 0.0, z=z, px=x * 3.0, py=0.0, pz=1e8, t=0.0, weight=weight)
    value = bunch[key]
    assert (value == 0.0).all()
    for gradient in torch.autograd.grad(value.sum(), (x, z), allow_unused=True):
        assert gradient is None or torch.isfinite(gradient).all()


def test_constants_have_no_spread(make_bunch: Any) -> None:
    bunch = make_bunch(n=1001).replace(z=0.1 + 0.2, weight=1.6e-13)
    for key in ("sigma_z", "cov_z__t", "ptp_z", "sigma_weight"):
        assert bunch[key].item() == 0.0
    assert (bunch["delta_z"] == 0.0).all()


def test_large_offset_loses_no_digits() -> None:
    spread = torch.linspace(-1.0, 1.0, 1001, dtype=torch.float64)
    bunch = TorchParticleGroup(x=spread * 1e-9 + 1.0, y=0.0, z=0.0, px=0.0, py=0.0, pz=1e8, t=0.0, weight=1e-12)
    assert bunch["sigma_x"].item() == pytest.approx(1e-9 * (spread**2).mean().sqrt().item(), rel=1e-6)


def test_percentile_of_equal_weights_is_hazens(make_bunch: Any) -> None:
    bunch = make_bunch(n=31).replace(weight=1e-12)
    for percent in (0.0, 1.0, 10.0, 33.3, 50.0, 90.0, 99.9, 100.0):
        expected = np.percentile(bunch.x.numpy(), percent, method="hazen")
        assert bunch[f"percentile_{percent}_x"].item() == pytest.approx(expected, rel=1e-12)


def test_percentile_leaves_out_the_lost(make_bunch: Any) -> None:
    bunch = make_bunch(n=30)
    lossy = bunch.replace(alive=(torch.arange(30) < 20).double(), x=bunch.x + (torch.arange(30) >= 20) * 1.0)
    for percent in (0, 5, 50, 95, 100):
        key = f"percentile_{percent}_x"
        torch.testing.assert_close(lossy.alive_only[key], bunch[:20][key])


@given(
    seed=st.integers(0, 2**31),
    n=st.integers(6, 20),
    batch=st.sampled_from([(1,), (3,), (2, 2)]),
    key=st.sampled_from([*statistic_names(), "percentile_25_x", "bunching_1e-4"]),
    living=st.booleans(),
)
def test_batch_equals_loop(make_bunch: Any, seed: int, n: int, batch: tuple[int, ...], key: str, living: bool) -> None:
    bunches = make_bunch(n=n, seed=seed, batch=batch)
    together = (bunches.alive_only if living else bunches)[key]
    for index in np.ndindex(*batch):
        one = bunches.batch_item(index)
        alone = (one.alive_only if living else one)[key]
        torch.testing.assert_close(together[index], alone, rtol=1e-9, atol=round_off(one, key), equal_nan=True)


def test_single_precision_stays_single(make_bunch: Any) -> None:
    bunch = make_bunch(n=100)
    single = bunch.to(torch.float32)
    for key in ("sigma_x", "mean_energy", "norm_emit_x", "twiss_beta_x", "charge", "percentile_90_x"):
        assert single[key].dtype == torch.float32
        assert single[key].item() == pytest.approx(bunch[key].item(), rel=1e-3)


@pytest.mark.parametrize(
    "key, hint",
    [
        ("sgima_x", "sigma_x"),
        ("twiss_beta_z", "twiss_beta_x"),
        ("cov_x", "cov_x__"),
        ("bunching", "wavelength"),
        ("bunching_-1", "wavelength"),
        ("percentile_101_x", "0 to 100"),
        ("percentile_nan_x", "0 to 100"),
        ("bunching_nan", "wavelength"),
        ("", "known"),
    ],
)
def test_unknown_key(make_bunch: Any, key: str, hint: str) -> None:
    with pytest.raises(UnknownVariableError, match=hint):
        make_bunch()[key]
    with pytest.raises(UnknownVariableError, match=hint):
        make_bunch().alive_only[key]


@pytest.mark.parametrize("arguments", [{"plane": "z"}, {"plane": ""}, {"fraction": 0.0}, {"fraction": 1.5}], ids=str)
def test_bad_twiss_arguments(make_bunch: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="expected"):
        make_bunch().twiss(**arguments)


@pytest.mark.parametrize("keys, hint", [((), "'x', 'px'"), (("sigma_x",), "nearest: "), (("x", "Q"), "'Q'")], ids=str)
def test_bad_keys_of_a_covariance_matrix(make_bunch: Any, keys: tuple[str, ...], hint: str) -> None:
    with pytest.raises((ValidationError, UnknownVariableError), match=hint):
        make_bunch().cov(*keys)


def test_average_current_of_a_snapshot(make_bunch: Any) -> None:
    bunch = make_bunch(n=20).replace(t=0.0)
    expected = bunch["charge"] / (bunch["ptp_z"] / (bunch["mean_beta_z"] * c_light))
    torch.testing.assert_close(bunch["average_current"], expected)
