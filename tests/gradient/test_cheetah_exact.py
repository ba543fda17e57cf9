"""Cavities and exact quadrupoles against their formulas in fifty digits, where Cheetah cancels or expands.

Cheetah's longitudinal terms of a cavity are differences of nearly equal numbers, and its drift-kick-drift quadrupole
takes the velocity to third order in momentum: tau is off by up to 1e-7 of itself, and its derivatives by more.
"""

from __future__ import annotations

from collections.abc import Callable

import cheetah
import mpmath
import pytest
import torch
from mpmath import mpf

from lume_diff import CheetahModel, TorchParticleGroup

F64 = torch.float64
pytestmark = pytest.mark.gradient
MASS = cheetah.Species("electron", dtype=F64).mass_eV.item()
LIGHT = 299792458
COORDINATES = ("x", "px", "y", "py", "tau", "p")
PARTICLES = (
    (3e-4, -1e-4, -2e-4, 5e-5, 1e-4, 1e-3),
    (-1e-4, 2e-4, 3e-4, -1e-4, -2e-4, -2e-3),
)
DIRECTION = (1e-4, 2e-4, -1e-4, 1e-4, 5e-5, 1e-3)
Row = list[mpf]
Track = Callable[[dict[str, mpf], mpf, Row], Row]


def cosine_and_sine(k: mpf, length: mpf) -> tuple[mpf, mpf]:
    """Return cos(sqrt(k) L) and sin(sqrt(k) L) / sqrt(k), for k of either sign."""
    if k == 0:
        return mpf(1), length
    root = mpmath.sqrt(mpmath.mpc(k))
    return mpmath.cos(root * length).real, (mpmath.sin(root * length) / root).real


def standing_wave(n: dict[str, mpf], energy: mpf, row: Row) -> tuple[Row, mpf, mpf]:
    """Return the linear part, as J. Rosenzweig and L. Serafini (1994) have it."""
    length, voltage, phi = n["length"], n["voltage"], n["phase"] * mpmath.pi / 180
    gain, wave = voltage * mpmath.cos(phi), 2 * mpmath.pi * n["frequency"] / LIGHT
    g0, g1 = energy / MASS, (energy + gain) / MASS
    b0, b1 = (mpmath.sqrt(1 - 1 / g**2) for g in (g0, g1))
    alpha = mpmath.sqrt(mpf(1) / 8) * voltage / gain * mpmath.log((energy + gain) / energy)
    skew = mpmath.sqrt(2) * mpmath.cos(phi) * mpmath.sin(alpha)
    r11, r22 = mpmath.cos(alpha) - skew, g0 / g1 * (mpmath.cos(alpha) + skew)
    r12 = mpmath.sin(alpha) / alpha * energy / gain * mpmath.log((energy + gain) / energy) * length
    r21 = -voltage / ((energy + gain) * mpmath.sqrt(2) * length)
    r21 *= (mpf(1) / 2 + mpmath.cos(phi) ** 2) * mpmath.sin(alpha)
    r55 = 1 + wave * length * b0 * mpmath.tan(phi) * (g0 * g1 * (b0 * b1 - 1) + 1) / (b1 * g1 * (g1 - g0))
    r56 = -length / (g1**2 * g0 * b1) * (g1 + g0) / (b1 + b0)
    x, px, y, py, tau, p = row
    return [r11 * x + r12 * px, r21 * x + r22 * px, r11 * y + r12 * py, r21 * y + r22 * py, r55 * tau + r56 * p], g0, g1


def traveling_wave(n: dict[str, mpf], energy: mpf, row: Row) -> tuple[Row, mpf, mpf]:
    """Return the linear part: a focusing edge, the body, and a defocusing edge."""
    length, phi = n["length"], n["phase"] * mpmath.pi / 180
    gain = n["voltage"] * mpmath.cos(phi)
    g0, g1 = energy / MASS, (energy + gain) / MASS
    x, px, y, py, tau, _ = row
    out = []
    for position, slope in ((x, px), (y, py)):
        slope -= gain / (2 * energy * length) * position
        position += energy / gain * mpmath.log(g1 / g0) * length * slope
        slope = slope * g0 / g1 + gain / (2 * (energy + gain) * length) * position
        out += [position, slope]
    return [*out, tau], g0, g1


def cavity(linear: Callable[..., tuple[Row, mpf, mpf]], is_gaining: bool, is_on: bool) -> Track:
    """Return the track of one particle; the second-order terms jump in with the voltage and with the gain."""

    def track(n: dict[str, mpf], energy: mpf, row: Row) -> Row:
        out, g0, g1 = linear(n, energy, row)
        length, voltage, phi = n["length"], n["voltage"], n["phase"] * mpmath.pi / 180
        tau, p = row[4:]
        b0, b1 = (mpmath.sqrt(1 - 1 / g**2) for g in (g0, g1))
        wave, dg = 2 * mpmath.pi * n["frequency"] / LIGHT, voltage / MASS
        t566 = 3 * length / (2 * g0**2 * b0**3) if is_on else mpf(0)
        t556 = t555 = mpf(0)
        if is_gaining and is_on:
            t566 = length * (b0**3 * g0**3 - b1**3 * g1**3) / (2 * b0 * b1**3 * g0 * (g0 - g1) * g1**3)
            t556 = b0 * wave * length * dg * g0 * (b1**3 * g1**3 + b0 * (g0 - g1**3)) * mpmath.sin(phi)
            t556 /= b1**3 * g1**3 * (g0 - g1) ** 2
            skew = dg * (2 * g0 * g1**3 * (b0 * b1**3 - 1) + g0**2 + 3 * g1**2 - 2) / (b1**3 * g1**3 * (g0 - g1) ** 3)
            crest = (g1 * g0 * (b1 * b0 - 1) + 1) / (b1 * g1 * (g0 - g1) ** 2)
            t555 = (b0 * wave) ** 2 * length * dg / 2
            t555 *= skew * mpmath.sin(phi) ** 2 - crest * mpmath.cos(phi)
        out[4] += t566 * p**2 + t556 * tau * p + t555 * tau**2
        kick = voltage * b0 * (mpmath.cos(phi - tau * b0 * wave) - mpmath.cos(phi))
        return [*out, (p * energy * b0 + kick) / (g1 * MASS * b1)]

    return track


def quadrupole(num_steps: int) -> Track:
    """Return the track of one particle by Bmad's formulas, with the velocity as it is."""

    def track(n: dict[str, mpf], energy: mpf, row: Row) -> Row:
        x, px, y, py, tau, p = row
        p0 = mpmath.sqrt(energy**2 - mpf(MASS) ** 2)
        total = energy + p * p0
        momentum = mpmath.sqrt(total**2 - mpf(MASS) ** 2)
        rel_p, beta, beta0 = momentum / p0, momentum / total, p0 / energy
        c, s = mpmath.cos(n["tilt"]), mpmath.sin(n["tilt"])
        x, y = x - n["misalignment_x"], y - n["misalignment_y"]
        x, y, px, py = x * c + y * s, y * c - x * s, px * c + py * s, py * c - px * s
        z, k, step = -beta * tau, n["k1"] / rel_p, n["length"] / num_steps
        for _ in range(num_steps):
            moved = []
            for u, pu, ku in ((x, px, k), (y, py, -k)):
                cu, su = cosine_and_sine(ku, step)
                au = pu / rel_p
                z -= (ku * (step - cu * su) * u**2 - 2 * ku * su**2 * u * au + (step + cu * su) * au**2) / 4
                moved += [cu * u + su * au, rel_p * (cu * au - ku * su * u)]
            x, px, y, py = moved
            z += step * (beta / beta0 - 1)
        x, y, px, py = x * c - y * s, y * c + x * s, px * c - py * s, py * c + px * s
        return [x + n["misalignment_x"], px, y + n["misalignment_y"], py, -z / beta, p]

    return track


CAVITY = ("length", "voltage", "phase", "frequency")
#: Size of a typical change.
SCALES = {
    **{"value": 1.0, "particle": 1.0, "length": 0.3, "voltage": 5e6, "phase": 40.0, "frequency": 2e9},
    **{"k1": 5.0, "tilt": 1.0, "misalignment_x": 5e-4, "misalignment_y": 5e-4},
}
MAGNET = ("length", "k1", "tilt", "misalignment_x", "misalignment_y")
#: Energy [eV] and numbers.
CAVITIES = {
    "on-crest": (5e6, (1.0, 2e7, 0.0, 2.9985e9)),
    "off-crest": (2e7, (1.0, 5e6, 35.0, 1.3e9)),
    "far-off-crest": (2e7, (0.6, 8e6, -85.0, 1.3e9)),
    "losing": (1e8, (1.0, 2e7, 160.0, 1.3e9)),
    "negative": (1e8, (1.0, -2e7, 20.0, 1.3e9)),
    "slow": (1.2e6, (0.2, 3e6, 10.0, 2.9985e9)),
    "fast": (1.5e10, (1.0, 2e7, 20.0, 1.3e9)),
    "tiny": (2e7, (1.0, 5e-3, 35.0, 1.3e9)),
    "zero": (2e7, (1.0, 0.0, 35.0, 1.3e9)),
}
QUADRUPOLES = {
    "focusing": (2.5e7, (0.3, 4.2, 0.3, 1e-4, -2e-4)),
    "defocusing": (2.5e7, (0.3, -7.0, 0.0, 0.0, 0.0)),
    "strong-slow": (3e6, (0.8, 30.0, -0.8, 1e-4, -2e-4)),
    "fast": (1.5e10, (0.3, 4.2, 0.3, 1e-4, -2e-4)),
    "tiny": (2.5e7, (0.3, 4e-9, 0.3, 1e-4, -2e-4)),
    "zero": (2.5e7, (0.3, 0.0, 0.3, 1e-4, -2e-4)),
    "nothing": (2.5e7, (0.3, 0.0, 0.0, 0.0, 0.0)),
}


def cases() -> dict[str, tuple[cheetah.accelerator.Element, Track, tuple[str, ...], float, tuple[float, ...]]]:
    """Return Cheetah's element, the formulas, and the setting."""
    found = {}
    for kind, linear in (("standing_wave", standing_wave), ("traveling_wave", traveling_wave)):
        for name, (energy, values) in CAVITIES.items():
            track = cavity(linear, name not in ("losing", "negative"), name != "zero")
            numbers = {n: torch.tensor(v, dtype=F64) for n, v in zip(CAVITY, values, strict=True)}
            native = cheetah.Cavity(**numbers, cavity_type=kind, name="E", dtype=F64)
            found[f"{kind}-{name}"] = native, track, CAVITY, energy, values
    for steps in (1, 3):
        for name, (energy, values) in QUADRUPOLES.items():
            length, k1, tilt, *misalignment = (torch.tensor(v, dtype=F64) for v in values)
            options = {"tracking_method": "drift_kick_drift", "num_steps": steps, "name": "E", "dtype": F64}
            native = cheetah.Quadrupole(length, k1, torch.stack(misalignment), tilt, **options)
            found[f"quadrupole-{steps}-{name}"] = native, quadrupole(steps), MAGNET, energy, values
    return found


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_coordinates_and_derivatives_are_exact(case: str) -> None:
    """Each coordinate of two particles: its value, its derivative to every number, and along a step of the particle."""
    native, track, names, energy, values = CASES[case]
    start = torch.tensor([(*row, 1.0) for row in PARTICLES], dtype=F64)

    def beam_of(coordinates: torch.Tensor) -> cheetah.ParticleBeam:
        species = cheetah.Species("electron", dtype=F64)
        return cheetah.ParticleBeam(coordinates, torch.tensor(energy, dtype=F64), species=species)

    model = CheetahModel(cheetah.Segment([native]), beam_of(start), outputs=["final_particles"])
    step = torch.tensor((*DIRECTION, 0.0), dtype=F64)

    def ours(*given: torch.Tensor) -> torch.Tensor:
        knobs = {f"E.{name}": value for name, value in zip(names, given, strict=False)}
        bunch = TorchParticleGroup.from_cheetah(beam_of(start + given[-1] * step))
        return model({**knobs, "initial_particles": bunch})["final_particles"].to_cheetah().particles[:, :6]

    point = tuple(torch.tensor(value, dtype=F64) for value in (*values, 0.0))
    found = [ours(*point), *torch.func.jacfwd(ours, argnums=tuple(range(len(point))))(*point)]
    reverse = torch.func.jacrev(ours, argnums=tuple(range(len(point))))(*point)
    for forward, backward in zip(found[1:], reverse, strict=True):
        torch.testing.assert_close(backward, forward, rtol=1e-9, atol=1e-12 * forward.abs().max().item() + 2e-15)

    for index, row in enumerate(PARTICLES):
        for column, coordinate in enumerate(COORDINATES):

            def exact(*given: mpf, column: int = column, row: tuple[float, ...] = row) -> mpf:
                shifted = [mpf(a) + given[-1] * mpf(b) for a, b in zip(row, DIRECTION, strict=True)]
                return track(dict(zip(names, given, strict=False)), mpf(energy), shifted)[column]

            with mpmath.workdps(60):
                # A quotient that is 0 / 0 at zero voltage has its limit by 1e-25 V.
                at = [mpf(v) if v or n != "voltage" else mpf("1e-25") for n, v in zip(names, values, strict=True)]
                at.append(mpf(0))
                expected = [exact(*at)]
                for place in range(len(at)):
                    orders = tuple(int(other == place) for other in range(len(at)))
                    expected.append(mpmath.diff(exact, tuple(at), orders, h=mpf("1e-28")))
            for order, name in enumerate(("value", *names, "particle")):
                value, tolerance = found[order][index, column].item(), 1e-8 if order else 1e-10
                # Round-off, as a share of one micrometre or one microradian, and of the clock that tau is read from.
                floor = 1e-18 / SCALES[name] + (2e-15 if name == "length" and coordinate == "tau" else 0.0)
                assert abs(value - expected[order]) <= tolerance * abs(expected[order]) + floor, (
                    f"{name} of {coordinate}: {value!r}, exact {mpmath.nstr(expected[order], 15)}"
                )
