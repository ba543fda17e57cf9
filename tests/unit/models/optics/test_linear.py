from __future__ import annotations

import pytest
import torch

from lume_diff.models import optics

F64 = torch.float64
MASS = 510998.95069


def assert_equal_maps(ours: torch.Tensor, reference: torch.Tensor, rtol: float = 1e-12) -> None:
    """Compare entry by entry, entries that are round-off of the map's largest left out."""
    assert ours.shape == reference.shape
    scale = reference.abs().amax((-2, -1), keepdim=True)
    assert ((ours - reference).abs() <= rtol * reference.abs() + 2e-15 * scale).all()


OURS_AND_CHEETAHS = {
    "drift": (
        lambda s, m: optics.drift(s.length, s.energy, m),
        lambda c, s: c.Drift(s.length, dtype=F64),
    ),
    "sextupole": (
        lambda s, m: optics.sextupole(s.length, s.energy, m),
        lambda c, s: c.Sextupole(s.length, s.k2, tilt=s.tilt, dtype=F64),
    ),
    "quadrupole": (
        lambda s, m: optics.quadrupole(s.length, s.k1, s.energy, m),
        lambda c, s: c.Quadrupole(s.length, s.k1, dtype=F64),
    ),
    "quadrupole-placed": (
        lambda s, m: optics.quadrupole(s.length, s.k1, s.energy, m, s.tilt, s.misalignment),
        lambda c, s: c.Quadrupole(s.length, s.k1, tilt=s.tilt, misalignment=s.misalignment, dtype=F64),
    ),
    "quadrupole-backwards": (
        lambda s, m: optics.quadrupole(-s.length, s.k1, s.energy, m),
        lambda c, s: c.Quadrupole(-s.length, s.k1, dtype=F64),
    ),
    "dipole": (
        lambda s, m: optics.dipole(s.length, s.angle, s.energy, m),
        lambda c, s: c.Dipole(s.length, s.angle, dtype=F64),
    ),
    "dipole-full": (
        lambda s, m: optics.dipole(s.length, s.angle, s.energy, m, s.k1, s.e1, s.e2, s.tilt, s.gap, s.fint, s.fintx),
        lambda c, s: c.Dipole(
            s.length,
            s.angle,
            s.k1,
            s.e1,
            s.e2,
            s.tilt,
            gap=s.gap,
            gap_exit=s.gap_exit,
            fringe_integral=s.fint,
            fringe_integral_exit=s.fintx,
            fringe_at="neither",
            dtype=F64,
        ),
    ),
    "rbend": (
        lambda s, m: optics.rbend(s.length, s.angle, s.energy, m, s.k1, s.e1, s.e2, s.tilt, s.gap, s.fint),
        lambda c, s: c.RBend(s.length, s.angle, s.k1, s.e1, s.e2, s.tilt, gap=s.gap, fringe_integral=s.fint, dtype=F64),
    ),
    "solenoid": (
        lambda s, m: optics.solenoid(s.length, s.k, s.energy, m, s.misalignment),
        lambda c, s: c.Solenoid(s.length, s.k, s.misalignment, dtype=F64),
    ),
    "horizontal-corrector": (
        lambda s, m: optics.corrector(s.length, s.energy, m, s.angle),
        lambda c, s: c.HorizontalCorrector(s.length, s.angle, dtype=F64),
    ),
    "vertical-corrector": (
        lambda s, m: optics.corrector(s.length, s.energy, m, None, s.angle),
        lambda c, s: c.VerticalCorrector(s.length, s.angle, dtype=F64),
    ),
    "combined-corrector": (
        lambda s, m: optics.corrector(s.length, s.energy, m, s.angle, s.tilt),
        lambda c, s: c.CombinedCorrector(s.length, s.angle, s.tilt, dtype=F64),
    ),
    "undulator": (
        lambda s, m: optics.undulator(s.length, s.energy, m, s.period, s.kx, s.ky),
        lambda c, s: c.Undulator(s.length, s.period, s.kx, s.ky, dtype=F64),
    ),
}


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_map_equals_cheetahs(kind, settings, cheetah, electron):
    ours, theirs = OURS_AND_CHEETAHS[kind]
    reference = theirs(cheetah, settings).first_order_transfer_map(settings.energy, electron)
    assert_equal_maps(ours(settings, electron.mass_eV), reference)


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_batch_equals_loop(kind, random_settings):
    ours = OURS_AND_CHEETAHS[kind][0]
    batch = ours(random_settings, MASS)
    for i in (0, 7, 39):
        one = type(random_settings)(**{name: value[i] for name, value in vars(random_settings).items()})
        torch.testing.assert_close(batch[i], ours(one, MASS), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_vmap_equals_batch(kind, random_settings):
    ours = OURS_AND_CHEETAHS[kind][0]
    names = list(vars(random_settings))

    def one(*values):
        return ours(type(random_settings)(**dict(zip(names, values, strict=True))), MASS)

    mapped = torch.func.vmap(one)(*vars(random_settings).values())
    torch.testing.assert_close(mapped, ours(random_settings, MASS), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_float32_is_kept_and_accurate(kind, random_settings):
    ours = OURS_AND_CHEETAHS[kind][0]
    exact = ours(random_settings, MASS)
    single = ours(type(random_settings)(**{k: v.float() for k, v in vars(random_settings).items()}), MASS)
    assert single.dtype == torch.float32
    scale = exact.abs().amax((-2, -1), keepdim=True)
    assert ((single.double() - exact).abs() / scale).max() < 2e-5


@pytest.mark.parametrize("function", [optics.drift, optics.sextupole], ids=["drift", "sextupole"])
def test_parameters_broadcast_over_elements_and_settings(function):
    length = torch.ones(4, 1, dtype=F64)
    energy = torch.full((5,), 1e8, dtype=F64)
    assert function(length, energy, MASS).shape == (4, 5, 7, 7)


def test_misalignment_broadcasts_against_strength():
    k1 = torch.ones(4, 1, dtype=F64)
    misalignment = torch.zeros(5, 2, dtype=F64)
    one = torch.tensor(1.0, dtype=F64)
    assert optics.quadrupole(one, k1, 1e8 * one, MASS, None, misalignment).shape == (4, 5, 7, 7)
    assert optics.solenoid(one, k1, 1e8 * one, MASS, misalignment).shape == (4, 5, 7, 7)


def test_zero_length_is_the_identity():
    zero, one = torch.tensor(0.0, dtype=F64), torch.tensor(1.0, dtype=F64)
    identity = optics.identity(one)
    for matrix in (
        optics.drift(zero, 1e8 * one, MASS),
        optics.quadrupole(zero, 3.0 * one, 1e8 * one, MASS, one, torch.ones(2, dtype=F64)),
        optics.solenoid(zero, 3.0 * one, 1e8 * one, MASS),
        optics.undulator(zero, 1e8 * one, MASS, 0.03 * one, one, one),
    ):
        torch.testing.assert_close(matrix, identity, rtol=0.0, atol=1e-15)


def test_halves_make_the_whole(random_settings):
    s = random_settings
    half = 0.5 * s.length
    for whole, part in (
        (optics.quadrupole(s.length, s.k1, s.energy, MASS), optics.quadrupole(half, s.k1, s.energy, MASS)),
        (optics.dipole(s.length, s.angle, s.energy, MASS), optics.dipole(half, 0.5 * s.angle, s.energy, MASS)),
        (optics.solenoid(s.length, s.k, s.energy, MASS), optics.solenoid(half, s.k, s.energy, MASS)),
    ):
        scale = part.abs().amax((-2, -1), keepdim=True) ** 2
        assert ((part @ part - whole).abs() / scale).max() < 1e-13
