from __future__ import annotations

import mpmath
import pytest
import torch

from lume_diff.errors import ValidationError
from lume_diff.models import optics

F64 = torch.float64
MASS = 510998.95069

OURS_AND_CHEETAHS = {
    "drift": (
        lambda s, m: optics.second_order_drift(s.length, s.energy, m),
        lambda c, s: c.Drift(s.length, dtype=F64),
    ),
    "quadrupole": (
        lambda s, m: optics.second_order_quadrupole(s.length, s.k1, s.energy, m),
        lambda c, s: c.Quadrupole(s.length, s.k1, dtype=F64),
    ),
    "quadrupole-placed": (
        lambda s, m: optics.second_order_quadrupole(s.length, s.k1, s.energy, m, s.tilt, s.misalignment),
        lambda c, s: c.Quadrupole(s.length, s.k1, tilt=s.tilt, misalignment=s.misalignment, dtype=F64),
    ),
    "sextupole": (
        lambda s, m: optics.second_order_sextupole(s.length, s.k2, s.energy, m),
        lambda c, s: c.Sextupole(s.length, s.k2, dtype=F64),
    ),
    "sextupole-placed": (
        lambda s, m: optics.second_order_sextupole(s.length, s.k2, s.energy, m, s.tilt, s.misalignment),
        lambda c, s: c.Sextupole(s.length, s.k2, tilt=s.tilt, misalignment=s.misalignment, dtype=F64),
    ),
    "dipole": (
        lambda s, m: optics.second_order_dipole(s.length, s.angle, s.energy, m),
        lambda c, s: c.Dipole(s.length, s.angle, dtype=F64),
    ),
    "dipole-edges": (
        lambda s, m: optics.second_order_dipole(
            s.length, s.angle, s.energy, m, None, s.e1, s.e2, s.tilt, s.gap, s.fint, s.fintx
        ),
        lambda c, s: c.Dipole(
            s.length,
            s.angle,
            dipole_e1=s.e1,
            dipole_e2=s.e2,
            tilt=s.tilt,
            gap=s.gap,
            fringe_integral=s.fint,
            fringe_integral_exit=s.fintx,
            dtype=F64,
        ),
    ),
    "dipole-k1": (
        lambda s, m: optics.second_order_dipole(s.length, s.angle, s.energy, m, s.k1),
        lambda c, s: c.Dipole(s.length, s.angle, s.k1, dtype=F64),
    ),
}


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_map_equals_cheetahs(kind, random_settings, cheetah, electron):
    ours, theirs = OURS_AND_CHEETAHS[kind]
    t = ours(random_settings, electron.mass_eV)
    reference = theirs(cheetah, random_settings).second_order_transfer_map(random_settings.energy, electron)
    assert t.shape == reference.shape
    difference = (t - reference).abs() / reference.abs().amax((-3, -2, -1), keepdim=True)
    if kind == "dipole-k1":
        difference[..., 4, 5, 5] = 0.0  # contains J3
    assert difference.max() < 1e-13


@pytest.mark.parametrize("kind", [k for k in OURS_AND_CHEETAHS if k != "dipole-k1"])
def test_map_equals_cheetahs_at_zero_strength(kind, random_settings, cheetah, electron):
    for name in ("k1", "k2", "angle"):
        setattr(random_settings, name, 0.0 * getattr(random_settings, name))
    ours, theirs = OURS_AND_CHEETAHS[kind]
    t = ours(random_settings, electron.mass_eV)
    reference = theirs(cheetah, random_settings).second_order_transfer_map(random_settings.energy, electron)
    torch.testing.assert_close(t, reference, rtol=1e-13, atol=1e-15)


def second_order_defect(t: torch.Tensor) -> float:
    """Return by how much the Jacobian fails to be symplectic to first order in the coordinates."""
    form = torch.zeros(6, 6, dtype=F64)
    for i, sign in ((0, 1.0), (2, 1.0), (4, -1.0)):
        form[i, i + 1], form[i + 1, i] = sign, -sign
    r = (t[:6, 6, :6] + t[:6, :6, 6])[:, :6]
    slope = (t + t.mT)[:6, :6, :6]
    defect = [r.T @ form @ slope[..., k] + slope[..., k].T @ form @ r for k in range(6)]
    return (torch.stack(defect).abs().max() / (r.abs().max() * slope.abs().max())).item()


def exact_maps() -> dict[str, torch.Tensor]:
    one = torch.tensor(1.0, dtype=F64)
    length, energy = 0.7 * one, 3e6 * one
    bend = {"k1": -3.0 * one, "e1": 0.2 * one, "e2": -0.1 * one, "tilt": 0.4 * one}
    return {
        "drift": optics.second_order_drift(length, energy, MASS),
        "quadrupole": optics.second_order_quadrupole(length, 4.0 * one, energy, MASS, 0.3 * one),
        "sextupole": optics.second_order_sextupole(length, 30.0 * one, energy, MASS, 0.3 * one, None, "exact"),
        "dipole": optics.second_order_dipole(length, 0.5 * one, energy, MASS),
        "dipole-k1": optics.second_order_dipole(length, 0.5 * one, energy, MASS, **bend, integrals="exact"),
        "dipole-kx2-zero": optics.second_order_dipole(
            length, 0.5 * one, energy, MASS, -((0.5 * one / length) ** 2), integrals="exact"
        ),
    }


@pytest.mark.parametrize("kind", exact_maps())
def test_map_with_exact_integrals_is_symplectic(kind):
    assert second_order_defect(exact_maps()[kind]) < 1e-14


@pytest.mark.parametrize("kind", ["sextupole", "dipole-k1"])
def test_map_with_cheetahs_integrals_is_not_symplectic(kind):
    one = torch.tensor(1.0, dtype=F64)
    if kind == "sextupole":
        t = optics.second_order_sextupole(0.7 * one, 30.0 * one, 3e6 * one, MASS)
    else:
        t = optics.second_order_dipole(0.7 * one, 0.5 * one, 3e6 * one, MASS, -3.0 * one)
    assert second_order_defect(t) > 1e-3


@pytest.mark.parametrize("k", [-9.0, -0.3, -1e-9, 0.0, 1e-9, 1e-3, 1.7, 40.0], ids="k={:g}".format)
def test_dispersion_integrals_are_the_integrals(k):
    length = 0.6
    with mpmath.workdps(50):
        root = mpmath.sqrt(mpmath.mpc(k))

        def d(s):
            return s**2 / 2 if k == 0 else ((1 - mpmath.cos(root * s)) / k).real

        exact = [float(mpmath.quad(lambda s, n=n: d(s) ** n, [0, length])) for n in (2, 3)]
    ours = optics.dispersion_integrals(torch.tensor(length, dtype=F64), torch.tensor(k, dtype=F64))
    for value, reference in zip(ours, exact, strict=True):
        assert value.item() == pytest.approx(reference, rel=1e-12)


def test_unknown_integrals_are_refused():
    one = torch.tensor(1.0, dtype=F64)
    with pytest.raises(ValidationError, match="integrals = 'mad'"):
        optics.second_order_sextupole(one, one, 1e8 * one, MASS, integrals="mad")
    with pytest.raises(ValidationError, match="integrals = 'mad'"):
        optics.second_order_dipole(one, one, 1e8 * one, MASS, integrals="mad")


def test_apply_equals_einsum(random_settings):
    s = random_settings
    t = OURS_AND_CHEETAHS["quadrupole-placed"][0](s, MASS)
    reference = torch.einsum("...ijk,...nj,...nk->...ni", t, s.particles, s.particles)
    torch.testing.assert_close(optics.apply_second_order(t, s.particles), reference, rtol=1e-12, atol=1e-16)


def test_tracking_equals_cheetahs(random_settings, cheetah, electron):
    s = random_settings
    beam = cheetah.ParticleBeam(s.particles, s.energy, species=electron)
    quadrupole = cheetah.Quadrupole(s.length, s.k1, tracking_method="second_order", dtype=F64)
    t = optics.second_order_quadrupole(s.length, s.k1, s.energy, electron.mass_eV)
    reference = quadrupole.track(beam).particles
    torch.testing.assert_close(optics.apply_second_order(t, s.particles), reference, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_vmap_equals_batch(kind, random_settings):
    ours = OURS_AND_CHEETAHS[kind][0]
    names = list(vars(random_settings))

    def one(*values):
        settings = type(random_settings)(**dict(zip(names, values, strict=True)))
        return optics.apply_second_order(ours(settings, MASS), settings.particles)

    s = random_settings
    batch = optics.apply_second_order(ours(s, MASS), s.particles)
    torch.testing.assert_close(torch.func.vmap(one)(*vars(s).values()), batch, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("kind", OURS_AND_CHEETAHS)
def test_float32_is_kept(kind, random_settings):
    single = type(random_settings)(**{k: v.float() for k, v in vars(random_settings).items()})
    ours = OURS_AND_CHEETAHS[kind][0]
    t, exact = ours(single, MASS), ours(random_settings, MASS)
    assert t.dtype == torch.float32
    scale = exact.abs().amax((-3, -2, -1), keepdim=True)
    assert ((t.double() - exact).abs() / scale).max() < 1e-4
