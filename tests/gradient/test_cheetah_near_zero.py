"""Second derivatives at and near zero strength against mpmath: sigma_x''(k1) of a quadrupole and a drift."""

from __future__ import annotations

import cheetah
import mpmath
import pytest
import torch

from lume_diff import CheetahModel

F64 = torch.float64
pytestmark = pytest.mark.gradient
LENGTH, DRIFT, ENERGY = 0.2, 1.0, 1e8
STRENGTHS = [0.0, *(sign * size for size in (1e-12, 1e-8, 1e-4, 1e-2) for sign in (1.0, -1.0))]


def t(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(4)
    scale = torch.tensor((2e-4, 1e-4, 2e-4, 1e-4, 1e-4, 1e-2), dtype=F64)
    particles = torch.randn(12, 6, generator=generator, dtype=F64) * scale
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(12, 1, dtype=F64)), dim=-1),
        energy=t(ENERGY),
        particle_charges=torch.full((12,), 1e-12, dtype=F64),
        species=cheetah.Species("electron", dtype=F64),
    )


def model_of(beam: cheetah.ParticleBeam, method: str) -> CheetahModel:
    quadrupole = cheetah.Quadrupole(t(LENGTH), t(0.0), tracking_method=method, name="Q1", dtype=F64)
    line = cheetah.Segment([quadrupole, cheetah.Drift(t(DRIFT), name="D1", dtype=F64)])
    return CheetahModel(line, beam, controls=["Q1.k1"], outputs=["final.sigma_x"])


def sine_and_cosine(k: mpmath.mpf, length: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Return sin(sqrt(k) L) / sqrt(k) and cos(sqrt(k) L), for k of either sign."""
    if k == 0:
        return length, mpmath.mpf(1)
    root = mpmath.sqrt(k)
    return mpmath.re(mpmath.sin(root * length) / root), mpmath.re(mpmath.cos(root * length))


def sigma_x(k1: mpmath.mpf, beam: cheetah.ParticleBeam, method: str) -> mpmath.mpf:
    """Track the particles by the formulas of the tracking method, to fifty digits."""
    length, mass, energy = mpmath.mpf(LENGTH), mpmath.mpf(beam.species.mass_eV.item()), mpmath.mpf(ENERGY)
    p0 = mpmath.sqrt(energy**2 - mass**2)
    positions = []
    for row in beam.particles.tolist():
        x, px, p = (mpmath.mpf(row[column]) for column in (0, 1, 5))
        if method == "drift_kick_drift":
            momentum = mpmath.sqrt((energy + p * p0) ** 2 - mass**2) / p0
            s, c = sine_and_cosine(k1 / momentum, length)
            x, px = c * x + s * px / momentum, c * px - k1 * s * x
        else:
            s, c = sine_and_cosine(k1, length)
            x_out, px_out = c * x + s * px, c * px - k1 * s * x
            if method == "second_order":
                half = energy / (2 * p0)
                x_out += p * half * (k1 * length * s * x - (s + length * c) * px)
                px_out += p * half * (k1 * length * s * px - k1 * (s - length * c) * x)
            x, px = x_out, px_out
        positions.append(x + mpmath.mpf(DRIFT) * px)
    mean = sum(positions) / len(positions)
    return mpmath.sqrt(sum((x - mean) ** 2 for x in positions) / len(positions))


@pytest.mark.parametrize("method", ["linear", "second_order", "drift_kick_drift"])
@pytest.mark.parametrize("strength", STRENGTHS, ids=lambda strength: f"k1={strength:g}")
def test_derivatives_equal_those_of_exact_moments(strength: float, method: str, beam: cheetah.ParticleBeam) -> None:
    model = model_of(beam, method)
    k1 = t(strength).requires_grad_()
    value = model({"Q1.k1": k1})["final.sigma_x"]
    (first,) = torch.autograd.grad(value, k1, create_graph=True)
    (second,) = torch.autograd.grad(first, k1)
    with mpmath.workdps(50):
        exact = [
            float(mpmath.diff(lambda k: sigma_x(k, beam, method), mpmath.mpf(strength), order, h=mpmath.mpf("1e-12")))
            for order in (0, 1, 2)
        ]
    found = [value.item(), first.item(), second.item()]
    for order, (ours, theirs) in enumerate(zip(found, exact, strict=True)):
        assert abs(ours - theirs) <= 1e-9 * abs(theirs), f"derivative {order}: {ours!r}, exact {theirs!r}"
    forward = torch.func.jacfwd(torch.func.jacfwd(lambda k: model({"Q1.k1": k})["final.sigma_x"]))(t(strength))
    assert abs(forward.item() - exact[2]) <= 1e-9 * abs(exact[2])


def test_raw_cheetah_is_wrong_there(beam: cheetah.ParticleBeam) -> None:
    """The reason for maps of our own: if this fails, Cheetah has been repaired."""
    k1 = t(0.0).requires_grad_()
    segment = cheetah.Segment([cheetah.Quadrupole(t(LENGTH), k1, name="Q1", dtype=F64)]).to(F64)
    segment.track(beam).sigma_x.backward()
    assert bool(k1.grad.isnan())
