"""Derivatives of the optics against an independent reference, at, near and away from their removable singularities."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import mpmath
import pytest
import torch

from lume_diff.models import optics

F64 = torch.float64
MASS = 510998.95069

pytestmark = pytest.mark.gradient


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=F64)


def bunch(n: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    coordinates = 2e-3 * torch.randn(n, 6, generator=generator, dtype=F64)
    return torch.cat((coordinates, torch.ones(n, 1, dtype=F64)), dim=-1)


L, E, ONE, ZERO = number(0.7), number(2e7), number(1.0), number(0.0)
P = bunch()
PLACED = (number(0.3), torch.tensor([1e-3, -2e-3], dtype=F64))

# name: function of one parameter, and the size of a typical change of it
CASES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "drift-length": (lambda x: optics.drift(x, E, MASS), 1.0),
    "quadrupole-k1": (lambda x: optics.quadrupole(L, x, E, MASS), 5.0),
    "quadrupole-k1-placed": (lambda x: optics.quadrupole(L, x, E, MASS, *PLACED), 5.0),
    "quadrupole-length": (lambda x: optics.quadrupole(x, number(3.0), E, MASS), 1.0),
    "quadrupole-tilt": (lambda x: optics.quadrupole(L, number(3.0), E, MASS, x), 1.0),
    "quadrupole-tilt-at-k1-zero": (lambda x: optics.quadrupole(L, ZERO, E, MASS, x), 1.0),
    "quadrupole-dx": (lambda x: optics.quadrupole(L, 3 * ONE, E, MASS, None, torch.stack((x, ZERO))), 1.0),
    "dipole-angle": (lambda x: optics.dipole(L, x, E, MASS), 1.0),
    "dipole-angle-edges": (
        lambda x: optics.dipole(L, x, E, MASS, ONE, 0.2 * ONE, 0.1 * ONE, 0.3 * ONE, 0.02 * ONE, 0.5 * ONE),
        1.0,
    ),
    "dipole-k1": (lambda x: optics.dipole(L, 0.3 * ONE, E, MASS, x), 5.0),
    "dipole-k1-about-no-focusing": (lambda x: optics.dipole(L, 0.7 * ONE, E, MASS, x - 1.0), 5.0),
    "dipole-k1-at-angle-zero": (lambda x: optics.dipole(L, ZERO, E, MASS, x), 5.0),
    "dipole-e1": (lambda x: optics.dipole(L, 0.3 * ONE, E, MASS, None, x, x), 1.0),
    "dipole-tilt": (lambda x: optics.dipole(L, 0.3 * ONE, E, MASS, None, None, None, x), 1.0),
    "rbend-angle": (lambda x: optics.rbend(L, x, E, MASS), 1.0),
    "solenoid-k": (lambda x: optics.solenoid(L, x, E, MASS, PLACED[1]), 2.0),
    "solenoid-length": (lambda x: optics.solenoid(x, ONE, E, MASS), 1.0),
    "corrector-angle": (lambda x: optics.corrector(L, E, MASS, x, 2.0 * x), 1.0),
    "undulator-k": (lambda x: optics.undulator(L, E, MASS, 0.05 * ONE, x, 2.0 * x), 0.3),
    "cavity-voltage": (lambda x: optics.cavity_matrix(L, x, 30 * ONE, 1.3e9 * ONE, E, MASS), 3e6),
    "cavity-voltage-traveling": (
        lambda x: optics.cavity_matrix(L, x, 30 * ONE, 1.3e9 * ONE, E, MASS, -1.0, "traveling_wave"),
        3e6,
    ),
    "cavity-phase": (lambda x: optics.cavity_matrix(L, 5e6 * ONE, x, 1.3e9 * ONE, E, MASS), 60.0),
    "cavity-phase-at-zero-gain": (lambda x: optics.cavity_matrix(L, 5e6 * ONE, 90 + x, 1.3e9 * ONE, E, MASS), 60.0),
    "cavity-frequency": (lambda x: optics.cavity_matrix(L, 5e6 * ONE, 20 * ONE, x, E, MASS), 1e9),
    "cavity-terms-phase": (
        lambda x: torch.stack(optics.longitudinal_terms(L, 5e6 * ONE, x, 1.3e9 * ONE, E, MASS)),
        60.0,
    ),
    "cavity-terms-voltage": (
        lambda x: torch.stack(optics.longitudinal_terms(L, x + 5e6, 20 * ONE, 1.3e9 * ONE, E, MASS)),
        3e6,
    ),
    "cavity-track-phase": (
        lambda x: optics.cavity_track(P, L, 5e6 * ONE, x, 1.3e9 * ONE, E, MASS)[0],
        60.0,
    ),
    "second-order-quadrupole-k1": (lambda x: optics.second_order_quadrupole(L, x, E, MASS, *PLACED), 5.0),
    "second-order-dipole-angle": (
        lambda x: optics.second_order_dipole(L, x, E, MASS, ONE, 0.2 * ONE, 0.1 * ONE, integrals="exact"),
        1.0,
    ),
    "second-order-dipole-angle-pure": (lambda x: optics.second_order_dipole(L, x, E, MASS), 1.0),
    "second-order-dipole-k1": (
        lambda x: optics.second_order_dipole(L, 0.7 * ONE, E, MASS, x - 1.0, integrals="exact"),
        5.0,
    ),
    "second-order-dipole-k1-cheetah": (lambda x: optics.second_order_dipole(L, 0.7 * ONE, E, MASS, x - 1.0), 5.0),
    "second-order-sextupole-k2": (lambda x: optics.second_order_sextupole(L, x, E, MASS, *PLACED), 10.0),
    "apply-second-order-k2": (
        lambda x: optics.apply_second_order(optics.second_order_sextupole(L, x, E, MASS), P),
        10.0,
    ),
    "track-drift-length": (lambda x: optics.track_drift(P, x, E, MASS), 1.0),
    "track-quadrupole-k1": (lambda x: optics.track_quadrupole(P, L, x, E, MASS, *PLACED, 2), 5.0),
    "track-quadrupole-length": (lambda x: optics.track_quadrupole(P, x, 3 * ONE, E, MASS), 1.0),
    "track-dipole-angle": (lambda x: optics.track_dipole(P, L, x, E, MASS), 0.5),
    "track-dipole-angle-edges": (
        lambda x: optics.track_dipole(P, L, x, E, MASS, 0.2 * ONE, x, 0.1 * ONE, 0.02 * ONE, None, 0.5 * ONE),
        0.5,
    ),
    "track-dipole-angle-large": (lambda x: optics.track_dipole(P, L, x + 2.0, E, MASS), 0.5),
    "track-deflecting-cavity-voltage": (
        lambda x: optics.track_transverse_deflecting_cavity(P, L, x, 0.1 * ONE, 3e9 * ONE, E, MASS, -1.0, *PLACED),
        1e6,
    ),
    "track-deflecting-cavity-phase": (
        lambda x: optics.track_transverse_deflecting_cavity(P, L, 1e6 * ONE, x, 3e9 * ONE, E, MASS),
        0.1,
    ),
}

FIRST = (1 / 280, -4 / 105, 1 / 5, -4 / 5, 0.0, 4 / 5, -1 / 5, 4 / 105, -1 / 280)
SECOND = (-1 / 560, 8 / 315, -1 / 5, 8 / 5, -205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560)


def differences(function, x: torch.Tensor, h: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return first and second derivatives by central differences of eighth order."""
    values = [function(x + i * h) for i in range(-4, 5)]
    first = sum(c * v for c, v in zip(FIRST, values, strict=True)) / h
    second = sum(c * v for c, v in zip(SECOND, values, strict=True)) / h**2
    return first, second


@pytest.mark.parametrize("at", [0.0, 1e-12, -1e-8, 1e-4, 1e-2, 0.3], ids="at={:g}".format)
@pytest.mark.parametrize("name", CASES)
def test_first_and_second_derivative_equal_differences(name, at):
    function, scale = CASES[name]
    x, step = number(at * scale), 0.02 * scale
    value = function(x)
    first = torch.func.jacfwd(function)(x)
    second = torch.func.jacfwd(torch.func.jacrev(function))(x)
    reference = differences(function, x, step)
    for order, (ours, expected) in enumerate(zip((first, second), reference, strict=True), start=1):
        assert ours.isfinite().all()
        # the differences carry the round-off of the largest entries
        noise = 1e-9 * (value.abs().max() + expected.abs().max() * scale**order) / scale**order
        assert ((ours - expected).abs() <= 1e-6 * expected.abs() + noise).all(), order


def project(function):
    """Return a few random combinations of the outputs: nested reverse mode over 343 of them is slow."""
    weights = torch.randn(function(number(0.0)).numel(), 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    return lambda x: function(x).flatten() @ weights


@pytest.mark.parametrize("name", CASES)
def test_all_modes_agree_at_zero(name):
    function, scale = CASES[name]
    function = project(function)
    x = number(0.0)
    reverse = torch.func.jacrev(function)(x)
    torch.testing.assert_close(torch.func.jacfwd(function)(x), reverse, rtol=1e-12, atol=1e-15)
    second = torch.func.jacfwd(torch.func.jacrev(function))(x)
    for nesting in (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
        other = nesting(function)(x)
        size = second.abs().max() + reverse.abs().max() / scale
        assert ((other - second).abs() <= 1e-11 * size + 1e-300).all()
    batch = torch.func.vmap(torch.func.jacrev(function))(torch.stack((x, x + 0.1 * scale)))
    torch.testing.assert_close(batch[0], reverse, rtol=1e-11, atol=1e-14 * float(reverse.abs().max()) + 1e-300)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_at_zero(name):
    function, scale = CASES[name]

    projected = project(function)
    size = 1.0 + function(number(0.0)).abs().max()

    def scaled(u):
        return projected(scale * u) / size

    u = torch.zeros((), dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(scaled, (u,), check_forward_ad=True, check_batched_grad=True, atol=1e-6)
    assert torch.autograd.gradgradcheck(scaled, (u,), atol=1e-5)


def exact_quadrupole(k: mpmath.mpf, length: float) -> list[mpmath.mpf]:
    root = mpmath.sqrt(mpmath.mpc(k))
    cx, cy = mpmath.cos(root * length).real, mpmath.cosh(root * length).real
    sx = (mpmath.sin(root * length) / root).real if k != 0 else mpmath.mpf(length)
    sy = (mpmath.sinh(root * length) / root).real if k != 0 else mpmath.mpf(length)
    return [cx, sx, -k * sx, cy, sy, k * sy]


def exact_derivative(k: float, length: float, order: int) -> list[float]:
    """Differentiate the entries of a quadrupole's map, from their Taylor series about k = 0."""
    with mpmath.workdps(80):
        x = mpmath.mpf(k)
        results = []
        for parity, sign, shift in ((0, -1, 0), (1, -1, 0), (1, -1, 1), (0, 1, 0), (1, 1, 0), (1, 1, 1)):
            total = mpmath.mpf(0)
            for n in range(60):
                power = n + shift
                if power >= order:
                    coefficient = sign**n * mpmath.mpf(length) ** (2 * n + parity) / mpmath.factorial(2 * n + parity)
                    total += coefficient * mpmath.ff(power, order) * x ** (power - order)
            results.append(float(-total if (shift and sign < 0) else total))
        return results


@pytest.mark.parametrize("k1", [0.0, 1e-12, -1e-12, 1e-8, 1e-4, -1e-2, 3.0, -20.0], ids="k1={:g}".format)
def test_quadrupole_derivatives_are_exact(k1):
    x, length = number(k1), 0.7
    cells = ([0, 0, 1, 2, 2, 3], [0, 1, 0, 2, 3, 2])

    def entries(k):
        return optics.quadrupole(number(length), k, E, MASS)[cells]

    if k1 != 0.0:
        with mpmath.workdps(50):
            closed = [float(v) for v in exact_quadrupole(mpmath.mpf(k1), mpmath.mpf(length))]
        assert exact_derivative(k1, length, 0) == pytest.approx(closed, rel=1e-13)
    ours = (entries(x), torch.func.jacfwd(entries)(x), torch.func.jacrev(torch.func.jacrev(entries))(x))
    for order, values in enumerate(ours):
        assert values.tolist() == pytest.approx(exact_derivative(k1, length, order), rel=1e-12), order


@pytest.mark.parametrize("k1", [0.0, 1e-12, 1e-10, 1e-8, 1e-6, 1e-4], ids="k1={:g}".format)
def test_second_derivative_of_a_beam_size_is_smooth_near_zero(k1):
    """Compare with the value at k1 = 1e-2, where nothing is singular; Cheetah 0.8.4 is off by 1e7 at 1e-12."""
    cov = torch.diag(torch.tensor([1e-8, 1e-10, 1e-8, 1e-10, 1e-10, 1e-6, 0.0], dtype=F64))

    def sigma(k):
        matrix = optics.drift(2.0 * ONE, E, MASS) @ optics.quadrupole(0.2 * ONE, k, E, MASS)
        return (matrix @ cov @ matrix.mT)[0, 0].sqrt()

    second = torch.func.grad(torch.func.grad(sigma))
    reference = differences(sigma, number(k1), 0.05)[1]
    assert second(number(k1)).item() == pytest.approx(reference.item(), rel=1e-6)


@pytest.mark.parametrize("phase", [-80.0, 15.0, 89.0], ids="{:g}deg".format)
@pytest.mark.parametrize("voltage", [1e-2, 1.0, 1e3, 1e7], ids="{:g}V".format)
def test_cavity_terms_have_exact_derivatives_at_small_gain(voltage, phase):
    """T566 from Cheetah's own quotient in high precision."""

    def exact(v):
        phi, mass = mpmath.mpf(phase) * mpmath.pi / 180, mpmath.mpf(MASS)
        g0 = mpmath.mpf(2e7) / mass
        g1 = g0 + v * mpmath.cos(phi) / mass
        a, b = mpmath.sqrt(g0**2 - 1), mpmath.sqrt(g1**2 - 1)
        return mpmath.mpf(0.7) * (a**3 - b**3) / (2 * a * b**3 * (g0 - g1))

    def t566(v):
        return optics.longitudinal_terms(L, v, number(phase), 1.3e9 * ONE, E, MASS)[0]

    with mpmath.workdps(80):
        expected = [float(mpmath.diff(exact, mpmath.mpf(voltage), n)) for n in range(3)]
    v = number(voltage)
    ours = [t566(v), torch.func.grad(t566)(v), torch.func.grad(torch.func.grad(t566))(v)]
    assert [x.item() for x in ours] == pytest.approx(expected, rel=1e-11)


def test_particle_gradients_are_finite_on_axis_and_at_zero_strength():
    particles = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)
    for track in (
        lambda p: optics.track_drift(p, L, E, MASS),
        lambda p: optics.track_quadrupole(p, L, ZERO, E, MASS),
        lambda p: optics.track_dipole(p, L, ZERO, E, MASS),
        lambda p: optics.track_transverse_deflecting_cavity(p, L, ZERO, ZERO, 3e9 * ONE, E, MASS),
        lambda p: optics.cavity_track(p, L, ZERO, ZERO, 3e9 * ONE, E, MASS)[0],
    ):
        jacobian = torch.func.jacrev(track)(particles).squeeze()[:6, :6]
        torch.testing.assert_close(jacobian, optics.drift(L, E, MASS)[:6, :6], rtol=1e-12, atol=1e-12)
        assert torch.func.jacfwd(torch.func.jacrev(track))(particles).isfinite().all()


def test_linear_maps_are_the_jacobians_of_tracking():
    particles = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]], dtype=F64)
    k1, angle = number(3.0), number(0.4)
    edges = (number(0.2), number(0.1))
    for track, matrix in (
        (lambda p: optics.track_quadrupole(p, L, k1, E, MASS, PLACED[0]), optics.quadrupole(L, k1, E, MASS, PLACED[0])),
        (lambda p: optics.track_dipole(p, L, angle, E, MASS, *edges), optics.dipole(L, angle, E, MASS, None, *edges)),
    ):
        jacobian = torch.func.jacrev(track)(particles).squeeze()[:6, :6]
        torch.testing.assert_close(jacobian, matrix[:6, :6], rtol=1e-11, atol=1e-12)


def test_constants_made_inside_a_transform_do_not_outlive_it():
    """A tensor cached on first use inside a transform would poison later calls."""
    code = """
import torch
from lume_diff.models import optics

one = torch.tensor(1.0, dtype=torch.float64)

def f(k):
    bend = optics.second_order_dipole(one, 0.1 * k, 1e8 * one, 5e5, k)
    return optics.stumpff(k, (4, 6))[0] + bend.sum() + optics.quadrupole(one, k, 1e8 * one, 5e5).sum()

torch.func.hessian(f)(one)
with torch.inference_mode():
    f(2.0 * one)
k = one.clone().requires_grad_()
f(k).backward()
assert k.grad.isfinite()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
