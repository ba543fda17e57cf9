from __future__ import annotations

import mpmath
import pytest
import torch

from lume_diff.errors import ValidationError
from lume_diff.models import optics

F64 = torch.float64
MASS = 510998.95069
TYPES = ["standing_wave", "traveling_wave"]


def cheetahs_terms(length, voltage, phase, frequency, energy):
    """Evaluate T566, T556, T555 and r55 as Cheetah writes them, in high precision; needs an energy gain."""
    length, voltage, frequency, energy, mass = map(mpmath.mpf, (length, voltage, frequency, energy, MASS))
    phi = mpmath.mpf(phase) * mpmath.pi / 180
    g0 = energy / mass
    g1 = g0 + voltage * mpmath.cos(phi) / mass
    b0, b1 = (mpmath.sqrt(1 - 1 / g**2) for g in (g0, g1))
    k, dg = 2 * mpmath.pi * frequency / 299792458, voltage / mass
    t566 = length * (b0**3 * g0**3 - b1**3 * g1**3) / (2 * b0 * b1**3 * g0 * (g0 - g1) * g1**3)
    t556 = b0 * k * length * dg * g0 * (b1**3 * g1**3 + b0 * (g0 - g1**3)) * mpmath.sin(phi)
    t556 /= b1**3 * g1**3 * (g0 - g1) ** 2
    skew = dg * (2 * g0 * g1**3 * (b0 * b1**3 - 1) + g0**2 + 3 * g1**2 - 2) / (b1**3 * g1**3 * (g0 - g1) ** 3)
    crest = (g1 * g0 * (b1 * b0 - 1) + 1) / (b1 * g1 * (g0 - g1) ** 2)
    t555 = b0**2 * k**2 * length * dg / 2 * (skew * mpmath.sin(phi) ** 2 - crest * mpmath.cos(phi))
    r55 = 1 + k * length * b0 * mpmath.tan(phi) * (g0 * g1 * (b0 * b1 - 1) + 1) / (b1 * g1 * (g1 - g0))
    return t566, t556, t555, r55


@pytest.fixture
def cavities(uniform):
    n = 40
    return {
        "length": uniform(0.2, 3.0, n),
        "voltage": 10 ** uniform(5.5, 7.5, n),
        "phase": uniform(-80.0, 80.0, n),
        "frequency": 10 ** uniform(8.5, 10.0, n),
        "energy": 10 ** uniform(6.5, 8.0, n),
    }


def theirs(cheetah, cavities, cavity_type="standing_wave"):
    arguments = {name: value for name, value in cavities.items() if name != "energy"}
    return cheetah.Cavity(**arguments, cavity_type=cavity_type, dtype=F64)


@pytest.mark.parametrize("voltage", [1e-3, 1.0, 1e3, 1e6, 3e7], ids="{:g}V".format)
@pytest.mark.parametrize("phase", [-89.9, -20.0, 1e-6, 60.0], ids="{:g}deg".format)
@pytest.mark.parametrize("energy", [1.5e6, 2e8, 1e10], ids="{:g}eV".format)
def test_longitudinal_terms_are_cheetahs_without_cancellation(voltage, phase, energy):
    with mpmath.workdps(80):
        *terms, r55 = map(float, cheetahs_terms(1.3, voltage, phase, 2.9e9, energy))
    arguments = [torch.tensor(x, dtype=F64) for x in (1.3, voltage, phase, 2.9e9, energy)]
    for ours, reference in zip(optics.longitudinal_terms(*arguments, MASS), terms, strict=True):
        assert ours.item() == pytest.approx(reference, rel=1e-12)
    assert optics.cavity_matrix(*arguments, MASS)[4, 4].item() == pytest.approx(r55, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("cavity_type", TYPES)
@pytest.mark.parametrize("sign", [1.0, -0.02], ids=["accelerating", "decelerating"])
def test_matrix_equals_cheetahs(cavity_type, sign, cavities, cheetah, electron):
    cavities["voltage"] = sign * cavities["voltage"]
    reference = theirs(cheetah, cavities, cavity_type).first_order_transfer_map(cavities["energy"], electron)
    ours = optics.cavity_matrix(**cavities, mass=electron.mass_eV, cavity_type=cavity_type)
    difference = (ours - reference).abs() / (reference.abs() + 1e-3)
    # r55 - 1 is a difference of nearly equal numbers in Cheetah
    assert difference[..., 4, 4].max() < 1e-9
    difference[..., 4, 4] = 0.0
    assert difference.max() < 1e-12


@pytest.mark.parametrize("cavity_type", TYPES)
@pytest.mark.parametrize("sign", [1.0, -0.02], ids=["accelerating", "decelerating"])
def test_tracking_equals_cheetahs(cavity_type, sign, cavities, random_settings, cheetah, electron):
    cavities["voltage"] = sign * cavities["voltage"]
    beam = cheetah.ParticleBeam(random_settings.particles, cavities["energy"], species=electron)
    reference = theirs(cheetah, cavities, cavity_type).track(beam)
    particles, energy = optics.cavity_track(beam.particles, **cavities, mass=electron.mass_eV, cavity_type=cavity_type)
    torch.testing.assert_close(energy, reference.energy, rtol=1e-15, atol=0.0)
    difference = (particles - reference.particles).abs() / reference.particles.abs().amax(-2, keepdim=True)
    assert difference[..., 4].max() < 1e-7  # Cheetah's T terms cancel; exact ones are tested above
    difference[..., 4] = 0.0
    assert difference.max() < 1e-12


@pytest.mark.parametrize("cavity_type", TYPES)
@pytest.mark.parametrize("sign", [1.0, -0.02], ids=["accelerating", "decelerating"])
def test_moments_equal_cheetahs(cavity_type, sign, cavities, random_settings, cheetah, electron):
    cavities["voltage"] = sign * cavities["voltage"]
    mu, cov = random_settings.particles.mean(-2), torch.zeros(40, 7, 7, dtype=F64)
    cov[..., :6, :6] = torch.stack([p.T.cov() for p in random_settings.particles[..., :6]])
    beam = cheetah.ParameterBeam(mu, cov, cavities["energy"], species=electron)
    reference = theirs(cheetah, cavities, cavity_type).track(beam)
    mean, covariance, energy = optics.cavity_moments(
        mu, cov, **cavities, mass=electron.mass_eV, cavity_type=cavity_type
    )
    torch.testing.assert_close(energy, reference.energy, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(mean, reference.mu, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(covariance, reference.cov, rtol=1e-6, atol=1e-18)


@pytest.mark.parametrize("cavity_type", TYPES)
def test_zero_voltage_is_a_linear_map_as_in_a_segment(cavity_type, cavities, random_settings, cheetah, electron):
    cavities["voltage"] = 0.0 * cavities["voltage"]
    beam = cheetah.ParticleBeam(random_settings.particles, cavities["energy"], species=electron)
    reference = cheetah.Segment([theirs(cheetah, cavities, cavity_type)]).track(beam)
    arguments = {**cavities, "mass": electron.mass_eV, "cavity_type": cavity_type}
    particles, energy = optics.cavity_track(beam.particles, **arguments)
    torch.testing.assert_close(particles, reference.particles, rtol=1e-14, atol=1e-18)
    torch.testing.assert_close(energy, cavities["energy"])
    mu, cov = beam.particles[..., 0, :], torch.eye(7, dtype=F64).expand(40, 7, 7)
    matrix = optics.cavity_matrix(**arguments)
    mean, covariance, _ = optics.cavity_moments(mu, cov, **arguments)
    torch.testing.assert_close(mean, (matrix @ mu.unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(covariance, matrix @ cov @ matrix.mT)


def test_each_entry_of_a_batch_chooses_its_own_terms():
    voltage = torch.tensor([1e6, -1e6, 0.0], dtype=F64)
    rest = [torch.tensor(x, dtype=F64) for x in (1.0, 20.0, 1.3e9, 5e6)]
    batch = torch.stack(optics.longitudinal_terms(rest[0], voltage, *rest[1:], MASS))
    for i in range(3):
        alone = torch.stack(optics.longitudinal_terms(rest[0], voltage[i], *rest[1:], MASS))
        torch.testing.assert_close(batch[:, i], alone)
    assert (batch[1:, 1] == 0.0).all()
    assert batch[0, 1] > 0.0
    assert (batch[:, 2] == 0.0).all()


def test_second_order_slip_is_continuous_at_zero_gain():
    rest = [torch.tensor(x, dtype=F64) for x in (1.0, 0.0, 1.3e9, 5e6)]
    gaining, losing = (
        optics.longitudinal_terms(rest[0], torch.tensor(v, dtype=F64), *rest[1:], MASS)[0] for v in (1e-6, -1e-6)
    )
    assert gaining.item() == pytest.approx(losing.item(), rel=1e-11)


def test_positive_charges_gain_with_the_opposite_voltage():
    arguments = [torch.tensor(x, dtype=F64) for x in (5e6, -1e6, 0.0)]
    assert optics.cavity_reference_energy(*arguments, charge_number=1.0).item() == 6e6
    assert optics.cavity_reference_energy(*arguments).item() == 4e6


def test_zero_length_cavity_is_finite():
    zero, one = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)
    for cavity_type in TYPES:
        for voltage in (0.0, 1e6):
            matrix = optics.cavity_matrix(
                zero, voltage * one, 10.0 * one, 1e9 * one, 5e6 * one, MASS, -1.0, cavity_type
            )
            assert matrix.isfinite().all()


def test_an_unknown_type_is_refused():
    one = torch.tensor(1.0, dtype=F64)
    with pytest.raises(ValidationError, match="cavity_type = 'ring'"):
        optics.cavity_matrix(one, one, one, one, 1e8 * one, MASS, -1.0, "ring")


def test_vmap_equals_batch(cavities, random_settings):
    def one(particles, *values):
        return optics.cavity_track(particles, *values, MASS)

    batch = one(random_settings.particles, *cavities.values())
    mapped = torch.func.vmap(one)(random_settings.particles, *cavities.values())
    torch.testing.assert_close(mapped, batch)
