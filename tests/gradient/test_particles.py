"""Derivatives of bunch statistics, drifts and conversions against differences, and under torch.func."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cheetah
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from lume_diff.particles import TorchMoments, TorchParticleGroup, sample_bunch

pytestmark = pytest.mark.gradient

N = 7
# Each input in units of its spread, so that one step fits all.
SCALES = {"x": 1e-4, "y": 2e-4, "z": 1e-4, "px": 1e3, "py": 1e3, "pz": 1e6, "t": 1e-12, "weight": 1e-13, "alive": 1.0}
OFFSETS = {"z": 0.5, "pz": 1e7, "t": 2e-9, "weight": 1e-12, "alive": 0.7}
KEYS = (
    "mean_x",
    "sigma_x",
    "sigma_px",
    "sigma_t",
    "mean_energy",
    "sigma_energy",
    "mean_kinetic_energy",
    "cov_x__px",
    "cov_t__energy",
    "norm_emit_x",
    "norm_emit_y",
    "norm_emit_4d",
    "twiss_beta_x",
    "twiss_alpha_y",
    "twiss_eta_x",
    "twiss_norm_emit_x",
    "min_x",
    "ptp_y",
    "percentile_60_x",
    "charge",
    "average_current",
    "sigma_r",
    "mean_pr",
    "mean_ptheta",
    "mean_theta",
    "mean_Lz",
    "sigma_beta_z",
    "mean_xp",
    "sigma_x_bar",
    "mean_Jy",
    "higher_order_energy_spread",
    "bunching_1e-3",
    "bunching_phase_1e-3",
    "delta_x",
    "beta",
)


def unit_inputs(batch: tuple[int, ...] = (), seed: int = 5) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    normal = [torch.randn(*batch, N, generator=generator, dtype=torch.float64) for _ in SCALES]
    normal[-1] = 0.2 * torch.rand(*batch, N, generator=generator, dtype=torch.float64)
    normal[-2] = normal[-2].clamp(-3.0, 3.0)
    return tuple(value.requires_grad_() for value in normal)


def build(*units: Tensor) -> TorchParticleGroup:
    fields = {name: OFFSETS.get(name, 0.0) + SCALES[name] * unit for name, unit in zip(SCALES, units, strict=True)}
    fields["px"] = fields["px"] + 1e6 * fields["x"]
    return TorchParticleGroup(**fields, reference_energy=1.01e7, reference_time=2e-9)


def normalised(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function in units of its value at the test point, so that absolute tolerances mean something."""
    with torch.no_grad():
        scale = function(*unit_inputs()).abs().max().clamp_min(1e-300)
    return lambda *units: function(*units) / scale


@pytest.mark.parametrize("living", [False, True], ids=["all", "alive_only"])
@pytest.mark.parametrize("key", KEYS)
def test_statistics(key: str, living: bool) -> None:
    def value(*units: Tensor) -> Tensor:
        bunch = build(*units)
        return (bunch.alive_only if living else bunch)[key]

    assert gradcheck(
        normalised(value),
        unit_inputs(),
        eps=1e-6,
        atol=2e-6,
        rtol=1e-5,
        check_forward_ad=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("key", ["sigma_x", "norm_emit_4d", "twiss_beta_x", "cov_t__energy"])
def test_second_derivatives(key: str) -> None:
    function = normalised(lambda *units: build(*units)[key])
    assert gradgradcheck(function, unit_inputs(), eps=1e-5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("output", ["x", "t", "z"])
def test_drift(output: str) -> None:
    def value(*units: Tensor) -> Tensor:
        drifted = getattr(build(*units).drift_to_z(), output)
        return (drifted - OFFSETS.get(output, 0.0)) / SCALES[output]

    assert gradcheck(value, unit_inputs(), eps=1e-6, atol=1e-6, check_forward_ad=True)


def test_drift_target() -> None:
    target = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    bunch = build(*unit_inputs()).detach()
    assert gradcheck(lambda z: bunch.drift_to_z(z).x * 1e4, (target,), check_forward_ad=True)


def test_to_cheetah() -> None:
    size = torch.tensor([1e-4, 1e-4, 2e-4, 1e-4, 1e-4, 0.1, 1.0], dtype=torch.float64)

    def value(*units: Tensor) -> tuple[Tensor, ...]:
        beam = build(*units).to_cheetah()
        return beam.particles / size, beam.particle_charges * 1e12, beam.survival_probabilities, beam.s

    assert gradcheck(value, unit_inputs(), eps=1e-6, atol=1e-5, check_forward_ad=True)


def test_cheetah_and_back() -> None:
    def value(*units: Tensor) -> tuple[Tensor, ...]:
        bunch = build(*units)
        back = TorchParticleGroup.from_cheetah(bunch.to_cheetah(), reference_time=bunch.reference_time)
        return tuple((getattr(back, name) - OFFSETS.get(name, 0.0)) / SCALES[name] for name in SCALES)

    assert gradcheck(value, unit_inputs(), eps=1e-6, atol=1e-5, check_forward_ad=True)


def moments_of(mean: Tensor, root: Tensor) -> TorchMoments:
    size = torch.tensor([1e-3, 1e-5, 2e-3, 2e-5, 3e-4, 1e-3], dtype=torch.float64)
    root = size.unsqueeze(-1) * root
    return TorchMoments(size * mean, root @ root.mT, charge=1e-10, reference_energy=1e8, reference_time=1e-9, s=3.0)


def moment_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64) + 2.0 * torch.eye(6, dtype=torch.float64)
    return torch.randn(6, generator=generator, dtype=torch.float64).requires_grad_(), root.requires_grad_()


@pytest.mark.parametrize(
    "key", ["mean_x", "sigma_px", "sigma_t", "sigma_pz", "norm_emit_4d", "twiss_beta_x", "sigma_xp"]
)
def test_moment_statistics(key: str) -> None:
    with torch.no_grad():
        scale = moments_of(*moment_inputs())[key].abs()
    function = lambda mean, root: moments_of(mean, root)[key] / scale  # noqa: E731
    assert gradcheck(function, moment_inputs(), eps=1e-6, atol=1e-6, check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("key", ["sigma_x", "norm_emit_x", "mean_energy", "percentile_80_x"])
def test_sampled_bunch(key: str) -> None:
    with torch.no_grad():
        scale = sample_bunch(moments_of(*moment_inputs()), 20)[key].abs()
    function = lambda mean, root: sample_bunch(moments_of(mean, root), 20)[key] / scale  # noqa: E731
    assert gradcheck(function, moment_inputs(), eps=1e-6, atol=1e-6, check_forward_ad=True)


def test_moments_of_particles() -> None:
    def value(*units: Tensor) -> Tensor:
        moments = TorchMoments.from_particles(build(*units))
        size = torch.tensor([1e-4, 1e-4, 2e-4, 1e-4, 1e-4, 0.1], dtype=torch.float64)
        return moments.cov / size / size.unsqueeze(-1)

    assert gradcheck(value, unit_inputs(), eps=1e-6, atol=1e-5, check_forward_ad=True)


def test_sampling_without_spread_has_a_finite_gradient() -> None:
    sigma = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    moments = TorchMoments.from_twiss(
        beta_x=1.0, norm_emit_x=1e-6, beta_y=1.0, norm_emit_y=1e-6, energy=1e8, sigma_energy=sigma
    )
    sample_bunch(moments, 20)["sigma_energy"].backward()
    assert sigma.grad is not None
    assert torch.isfinite(sigma.grad)


# torch.func, on functions that take and return bunches


BUNCH = build(*unit_inputs()).detach()


def scaled(scale: Tensor) -> TorchParticleGroup:
    return BUNCH.replace(x=BUNCH.x * scale, px=BUNCH.px * scale)


@pytest.mark.parametrize(
    "key", ["sigma_x", "norm_emit_4d", "twiss_beta_y", "percentile_60_x", "max_x", "average_current"]
)
def test_func_transforms_of_a_scalar_input(key: str) -> None:
    function = lambda scale: scaled(scale)[key]  # noqa: E731
    scale = torch.tensor(1.2, dtype=torch.float64)
    step = 1e-5
    reference = (function(scale + step) - function(scale - step)) / (2.0 * step)
    size = function(scale).abs().item()
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(function)(scale), reference, rtol=1e-6, atol=1e-8 * size)
    scales = torch.tensor([1.0, 1.5, -2.0], dtype=torch.float64)
    loop = torch.stack([function(value) for value in scales])
    torch.testing.assert_close(torch.func.vmap(function)(scales), loop, rtol=1e-10, atol=0.0)
    slopes = torch.stack([torch.func.grad(function)(value) for value in scales])
    for nested in (torch.func.vmap(torch.func.grad(function)), torch.func.vmap(torch.func.jacfwd(function))):
        torch.testing.assert_close(nested(scales), slopes, rtol=1e-8, atol=1e-8 * size)
    hessian = torch.func.hessian(function)(scale)
    assert torch.isfinite(hessian)


def test_func_transforms_of_a_bunch_argument() -> None:
    bunch = build(*unit_inputs()).detach()
    function = lambda b: b.drift_to_z(0.6)["sigma_x"]  # noqa: E731
    gradient = torch.func.grad(function)(bunch)
    assert isinstance(gradient, TorchParticleGroup)
    leaf = bunch.px.clone().requires_grad_()
    (reference,) = torch.autograd.grad(function(bunch._with(px=leaf)), leaf)
    torch.testing.assert_close(gradient.px, reference)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(transform(function)(bunch).px, reference)
    value, pull = torch.func.vjp(function, bunch)
    torch.testing.assert_close(pull(torch.ones_like(value))[0].px, reference)
    tangent = torch.func.vmap(lambda _: bunch, in_dims=0)(torch.zeros(2)).batch_item(0)
    _, push = torch.func.jvp(function, (bunch,), (tangent,))
    assert torch.isfinite(push)


def test_func_transforms_that_return_a_bunch() -> None:
    def make(scale: Tensor) -> TorchParticleGroup:
        return scaled(scale).drift_to_z(0.6)

    scale = torch.tensor(1.2, dtype=torch.float64)
    slopes = [torch.func.jacfwd(make)(scale), torch.func.jacrev(make)(scale)]
    for slope in slopes:
        assert isinstance(slope, TorchParticleGroup)
        torch.testing.assert_close(slope.x, (make(scale + 0.5).x - make(scale - 0.5).x), rtol=1e-9, atol=1e-16)
    batch = torch.func.vmap(make)(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert batch.batch_shape == (2,)
    torch.testing.assert_close(batch.batch_item(1).x, make(torch.tensor(2.0, dtype=torch.float64)).x)
    _, pull = torch.func.vjp(make, scale)
    assert torch.isfinite(pull(batch.batch_item(0))[0])


def test_vmap_over_a_batch_of_bunches_and_moments() -> None:
    batch = build(*unit_inputs(batch=(3,))).detach()
    torch.testing.assert_close(torch.func.vmap(lambda b: b["norm_emit_x"])(batch), batch["norm_emit_x"])
    moments = torch.func.vmap(TorchMoments.from_particles)(batch)
    assert moments.batch_shape == (3,)
    sampled = torch.func.vmap(lambda m: sample_bunch(m, 10))(moments)
    torch.testing.assert_close(sampled["sigma_x"], moments["sigma_x"])


def test_all_particles_of_one_bunch_lost_spoils_no_other() -> None:
    alive = torch.tensor([[1.0] * N, [0.0] * N], dtype=torch.float64, requires_grad=True)
    bunch = build(*unit_inputs(batch=(2,))).detach().replace(alive=alive)
    for key in ("sigma_x", "norm_emit_4d", "twiss_beta_x", "mean_Jx", "percentile_50_x", "average_current"):
        value = bunch.alive_only[key]
        assert torch.isnan(value).tolist() == [False, True]
        (gradient,) = torch.autograd.grad(value.sum(), alive)
        assert torch.isfinite(gradient).all()
        assert (gradient[0] != 0.0).any()
        assert (gradient[1] == 0.0).all()


def test_an_energy_error_acts_against_a_fixed_reference(shared_data: Path) -> None:
    """All momenta of the measured bunch are scaled; its focusing in a quadrupole must change."""
    bunch = TorchParticleGroup.from_openpmd(shared_data / "lcls_injector_impact_10000.h5").on_z_plane()
    options = {"dtype": torch.float64}
    line = cheetah.Segment(
        [
            cheetah.Drift(torch.tensor(0.5, **options)),
            cheetah.Quadrupole(torch.tensor(0.2, **options), k1=torch.tensor(2.0, **options), **options),
            cheetah.Drift(torch.tensor(1.0, **options)),
        ]
    ).to(torch.float64)

    def size(scale: Tensor) -> Tensor:
        scaled = bunch.replace(px=bunch.px * scale, py=bunch.py * scale, pz=bunch.pz * scale)
        out = line.track(scaled.to_cheetah())
        return TorchParticleGroup.from_cheetah(out, reference_time=bunch.reference_time)["sigma_x"]

    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(size(scale), scale)
    with torch.no_grad():
        wide = [(size(scale + h) - size(scale - h)) / (2.0 * h) for h in (2e-3, 4e-3)]
    difference = (4.0 * wide[0] - wide[1]) / 3.0  # Richardson
    assert slope.item() == pytest.approx(difference.item(), rel=1e-6)
    assert abs(slope.item()) > 1e-5
