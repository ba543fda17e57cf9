from __future__ import annotations

import pytest
import torch

from lume_diff.errors import ValidationError
from lume_diff.models import optics

F64 = torch.float64
MASS = 510998.95069
METHOD = {"tracking_method": "drift_kick_drift", "dtype": F64}


def tdc(s) -> dict[str, torch.Tensor]:
    return {"voltage": 1e4 * s.k, "phase": s.tilt, "frequency": 3e9 * s.length}


def bend(s, fringe_at):
    return {
        "tilt": s.tilt,
        "gap": s.gap,
        "gap_exit": s.gap_exit,
        "fringe_integral": s.fint,
        "fringe_integral_exit": s.fintx,
        "fringe_at": fringe_at,
    }


def dipole_pair(fringe_at):
    return (
        lambda s, m: optics.track_dipole(s.particles, s.length, s.angle, s.energy, m, s.e1, s.e2, **bend(s, fringe_at)),
        lambda c, s: c.Dipole(s.length, s.angle, dipole_e1=s.e1, dipole_e2=s.e2, **bend(s, fringe_at), **METHOD),
    )


OURS_AND_CHEETAHS = {
    "drift": (
        lambda s, m: optics.track_drift(s.particles, s.length, s.energy, m),
        lambda c, s: c.Drift(s.length, **METHOD),
    ),
    "quadrupole": (
        lambda s, m: optics.track_quadrupole(s.particles, s.length, s.k1, s.energy, m),
        lambda c, s: c.Quadrupole(s.length, s.k1, **METHOD),
    ),
    "quadrupole-placed-sliced": (
        lambda s, m: optics.track_quadrupole(
            s.particles, s.length, s.k1, s.energy, m, s.tilt, s.misalignment, num_steps=4
        ),
        lambda c, s: c.Quadrupole(s.length, s.k1, s.misalignment, s.tilt, num_steps=4, **METHOD),
    ),
    "dipole": (
        lambda s, m: optics.track_dipole(s.particles, s.length, s.angle, s.energy, m),
        lambda c, s: c.Dipole(s.length, s.angle, **METHOD),
    ),
    **{f"dipole-{at}": dipole_pair(at) for at in ("neither", "entrance", "exit", "both")},
    "dipole-beyond-right-angle": (
        lambda s, m: optics.track_dipole(s.particles, s.length, 2.2 * s.angle, s.energy, m),
        lambda c, s: c.Dipole(s.length, 2.2 * s.angle, **METHOD),
    ),
    "deflecting-cavity": (
        lambda s, m: optics.track_transverse_deflecting_cavity(
            s.particles, s.length, **tdc(s), energy=s.energy, mass=m
        ),
        lambda c, s: c.TransverseDeflectingCavity(s.length, **tdc(s), dtype=F64),
    ),
    "deflecting-cavity-placed": (
        lambda s, m: optics.track_transverse_deflecting_cavity(
            s.particles, s.length, **tdc(s), energy=s.energy, mass=m, tilt=s.tilt, misalignment=s.misalignment
        ),
        lambda c, s: c.TransverseDeflectingCavity(
            s.length, **tdc(s), tilt=s.tilt, misalignment=s.misalignment, dtype=F64
        ),
    ),
}


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_tracking_equals_cheetahs(kind, settings, cheetah, electron):
    ours, theirs = OURS_AND_CHEETAHS[kind]
    beam = cheetah.ParticleBeam(settings.particles, settings.energy, species=electron)
    reference = theirs(cheetah, settings).track(beam).particles
    particles = ours(settings, electron.mass_eV)
    assert particles.shape == reference.shape
    difference = (particles - reference).abs() / reference.abs().amax(-2, keepdim=True)
    if "quadrupole" in kind:
        # Cheetah expands the velocity to third order in pz
        assert (particles - reference)[..., 4].abs().max() < 1e-12 + 1e-13 * reference[..., 4].abs().max()
        difference[..., 4] = 0.0
    assert difference.max() < 5e-12


def test_zero_strength_is_a_drift(random_settings):
    s = random_settings
    drift = optics.track_drift(s.particles, s.length, s.energy, MASS)
    zero = torch.zeros_like(s.length)
    dipole = optics.track_dipole(s.particles, s.length, zero, s.energy, MASS)
    torch.testing.assert_close(dipole, drift, rtol=1e-12, atol=1e-15)
    cavity = optics.track_transverse_deflecting_cavity(s.particles, s.length, zero, zero, 3e9 + zero, s.energy, MASS)
    torch.testing.assert_close(cavity, drift, rtol=1e-12, atol=1e-15)
    quadrupole = optics.track_quadrupole(s.particles, s.length, zero, s.energy, MASS)
    torch.testing.assert_close(quadrupole[..., :4], drift[..., :4], rtol=0.0, atol=1e-8)  # paraxial


def test_quadrupole_of_zero_length_does_nothing(random_settings):
    s = random_settings
    same = optics.track_quadrupole(s.particles, 0.0 * s.length, s.k1, s.energy, MASS)
    torch.testing.assert_close(same, s.particles, rtol=1e-14, atol=1e-17)


def test_bend_beyond_a_half_turn_returns_to_the_start():
    particles = torch.tensor([[1e-3, 2e-4, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)
    energy, length = torch.tensor(1e8, dtype=F64), torch.tensor(1.0, dtype=F64)
    for sign in (1.0, -1.0):
        angle = torch.tensor(sign * torch.pi / 2, dtype=F64)
        half = particles
        for _ in range(2):
            half = optics.track_dipole(half, length, angle, energy, MASS)
        whole = optics.track_dipole(particles, 2.0 * length, 2.0 * angle, energy, MASS)
        torch.testing.assert_close(whole, half, rtol=1e-12, atol=1e-14)


def test_on_axis_particle_of_reference_energy_stays():
    particles = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)
    energy, one = torch.tensor(5e6, dtype=F64), torch.tensor(1.0, dtype=F64)
    torch.testing.assert_close(
        optics.track_dipole(particles, one, 0.7 * one, energy, MASS), particles, rtol=0.0, atol=5e-16
    )
    assert (optics.track_quadrupole(particles, one, one, energy, MASS) == particles).all()


def test_unknown_fringe_at_is_refused():
    one = torch.tensor(1.0, dtype=F64)
    with pytest.raises(ValidationError, match="fringe_at = 'middle'"):
        optics.track_dipole(torch.zeros(1, 7, dtype=F64), one, one, 1e8 * one, MASS, fringe_at="middle")


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_vmap_and_loop_equal_batch(kind, random_settings):
    ours = OURS_AND_CHEETAHS[kind][0]
    names = list(vars(random_settings))

    def one(*values):
        return ours(type(random_settings)(**dict(zip(names, values, strict=True))), MASS)

    batch = ours(random_settings, MASS)
    values = list(vars(random_settings).values())
    torch.testing.assert_close(torch.func.vmap(one)(*values), batch, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(one(*(v[3] for v in values)), batch[3], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_float32_is_kept(kind, random_settings):
    s = random_settings
    s.energy = 1e7 + 0.0 * s.energy
    single = type(s)(**{k: v.float() for k, v in vars(s).items()})
    ours = OURS_AND_CHEETAHS[kind][0]
    particles, exact = ours(single, MASS), ours(s, MASS)
    assert particles.dtype == torch.float32
    scale = exact.abs().amax(-2, keepdim=True)
    assert ((particles.double() - exact).abs() / scale).max() < 1e-2
