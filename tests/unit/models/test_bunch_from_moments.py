"""BunchFromMoments: the bunch has exactly the moments that were asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.models import BunchFromMoments
from lume_diff.models.bunch_model import PARAMETERS

F64 = torch.float64

GIVEN: dict[str, float] = {
    "mean_x": 1e-4,
    "mean_px": 2e3,
    "mean_y": -3e-5,
    "mean_py": -1e3,
    "mean_energy": 1e8,
    "beta_x": 7.0,
    "alpha_x": -0.8,
    "norm_emit_x": 1e-6,
    "beta_y": 3.0,
    "alpha_y": 1.2,
    "norm_emit_y": 2e-6,
    "sigma_t": 1e-12,
    "sigma_energy": 1e5,
    "cov_t__energy": 5e-8,
    "charge": 2e-10,
}
NEEDED = {name: GIVEN[name] for name, parameter in PARAMETERS.items() if parameter.default is None}


def key_of(name: str) -> str:
    """Return openPMD's name of a parameter."""
    return f"twiss_{name}" if name.startswith(("beta", "alpha")) else name


@pytest.fixture(scope="module")
def model() -> BunchFromMoments:
    return BunchFromMoments(500, seed=7, **GIVEN)


# Twiss functions are of slopes, which follow from momenta to second order in the divergence and the energy spread.
@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("output", ["final_particles", "final_moments"])
def test_every_parameter_comes_out_as_given(model: BunchFromMoments, name: str, output: str) -> None:
    found = model.get(output)[key_of(name)].item()
    assert found == pytest.approx(GIVEN[name], rel=1e-9 if name.startswith("beta") else 1e-12)


def test_means_and_charge_are_those_of_living_particles_on_one_plane(model: BunchFromMoments) -> None:
    bunch = model.get("final_particles")
    assert bunch.in_z_coordinates
    assert (bunch.alive == 1).all()
    assert bunch.n_particle == 500
    assert bunch.weight.sum().item() == pytest.approx(2e-10, rel=1e-12)
    assert bunch["mean_t"].item() == pytest.approx(0.0, abs=1e-25)


def test_statistics_are_outputs_under_the_names_of_a_line(model: BunchFromMoments) -> None:
    bunch = model.get("final_particles")
    for name in ("sigma_x", "norm_emit_y", "mean_energy", "charge"):
        assert model.get(f"final.{name}").item() == bunch[name].item()
    assert model.get("final.beta_x").item() == pytest.approx(7.0, rel=1e-9)
    assert model.supported_variables["final.sigma_px"].unit == "eV/c"


def test_the_reference_is_frozen(model: BunchFromMoments) -> None:
    bunch = model({"mean_energy": 1.1e8}, outputs=["final_particles"])["final_particles"]
    assert bunch.reference_energy.item() == 1e8
    assert bunch["mean_energy"].item() == pytest.approx(1.1e8, rel=1e-12)
    other = BunchFromMoments(50, reference_energy=2e8, **NEEDED)
    assert other.get("reference_energy").item() == 2e8
    assert other.get("final_particles").reference_energy.item() == 2e8


def test_the_sample_depends_on_the_seed_only(model: BunchFromMoments) -> None:
    again, other = (BunchFromMoments(500, seed=seed, **GIVEN).get("final_particles") for seed in (7, 8))
    here = model.get("final_particles")
    assert torch.equal(again.x, here.x)
    assert not torch.equal(other.x, here.x)
    for name, value in GIVEN.items():
        assert other[key_of(name)].item() == pytest.approx(value, rel=1e-9)


def test_a_batch_has_the_moments_of_each(model: BunchFromMoments) -> None:
    beta = torch.tensor([[5.0], [6.0]], dtype=F64)
    charge = torch.tensor([1e-10, 2e-10, 3e-10], dtype=F64)
    bunch = model({"beta_x": beta, "charge": charge}, outputs=["final_particles"])["final_particles"]
    assert bunch.batch_shape == (2, 3)
    torch.testing.assert_close(bunch["twiss_beta_x"], beta.expand(2, 3), rtol=1e-9, atol=0)
    torch.testing.assert_close(bunch["charge"], charge.expand(2, 3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("output", ["final_particles", "final_moments"])
def test_a_sample_is_drawn_only_when_it_is_read(output: str) -> None:
    model = BunchFromMoments(50, **NEEDED)
    model.set({"beta_x": 4.0})
    runs = model.runs
    found = [model.get(output) for _ in range(3)]
    assert all(value is found[0] for value in found)
    assert model.runs == runs


def test_single_precision() -> None:
    model = BunchFromMoments(100, dtype=torch.float32, **GIVEN)
    bunch = model.get("final_particles")
    assert bunch.dtype == torch.float32
    assert bunch["norm_emit_x"].item() == pytest.approx(1e-6, rel=1e-3)


def test_other_species() -> None:
    bunch = BunchFromMoments(50, species="proton", **{**NEEDED, "mean_energy": 2e9}).get("final_particles")
    assert bunch.species == "proton"
    assert bunch["norm_emit_x"].item() == pytest.approx(1e-6, rel=1e-9)


def test_inputs_are_described() -> None:
    model = BunchFromMoments(50, **NEEDED)
    assert model.input_names == [*PARAMETERS, "reference_energy"]
    for name in PARAMETERS:
        variable = model.supported_variables[name]
        assert variable.unit == PARAMETERS[name].unit
        assert variable.description
        assert 0 < variable.scale <= max(abs(GIVEN[name]), PARAMETERS[name].scale)
    assert model.get("alpha_x").item() == 0.0


@pytest.mark.parametrize(
    "change, words",
    [
        ({"beta_z": 1.0}, "'beta_z' is not a parameter of a bunch; nearest: 'beta_[xy]'"),
        ({"n_particles": 6}, "at least 7"),
        ({"beta_x": -1.0}, "'beta_x'.*-1"),
        ({"beta_x": 0.0}, "beta_x.*more than 0"),
        ({"norm_emit_x": float("nan")}, "'norm_emit_x'"),
        ({"sigma_energy": 1e3, "cov_t__energy": 1e-8}, "not a covariance"),
        ({"mean_energy": 1e5}, "mean_energy|energy.*rest"),
        ({"species": "gold brick"}, "species"),
    ],
    ids=["unknown", "too few", "negative", "zero beta", "nan", "covariance", "energy below rest", "species"],
)
def test_bad_values_are_refused_at_construction(change: dict[str, Any], words: str) -> None:
    with pytest.raises((ValidationError, UnknownVariableError), match=words):
        BunchFromMoments(**{"n_particles": 50, **GIVEN, **change})


@pytest.mark.parametrize("name", NEEDED)
def test_what_has_no_default_must_be_given(name: str) -> None:
    with pytest.raises(ValidationError, match=f"needs starting values for {name}$"):
        BunchFromMoments(50, **{key: value for key, value in NEEDED.items() if key != name})


def test_bad_writes_leave_the_bunch_as_it_was() -> None:
    model = BunchFromMoments(50, **GIVEN)
    before = model.get("final_particles")
    for values in ({"beta_x": 0.0}, {"cov_t__energy": 1.0}, {"norm_emit_y": -1e-6}, {"mean_energy": 1.0}):
        with pytest.raises(ValidationError):
            model.set({"alpha_x": 0.1, **values})
        assert model.get("final_particles") is before
        assert model.get("alpha_x").item() == -0.8
