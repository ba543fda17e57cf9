"""Whether errors are near the least possible and their estimates honest: functions, pyAT, MAD-X."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from lume_diff.blackbox.differences.noise import calibrate

Array = np.ndarray


def differentiate(probe: Callable[[Array], Array], scale: float, point: float) -> tuple[Array, Array, int]:
    """Return derivatives, their estimated errors as the plan has them, and the runs of the calibration."""
    calibration = calibrate(probe, scale)
    found, error = np.full((2, len(calibration.noise)), np.nan)
    for part in calibration.plan(scale, point=point):
        centre, *values = probe(np.array([0.0, *part.offsets]))
        found[part.outputs], error[part.outputs] = part.derivative(centre, values)[part.outputs], part.error
    return found, error, calibration.runs


# -- statistics ----------------------------------------------------------------------------------------------


SHAPES: dict[str, Callable[[Array], Array]] = {
    "sin": np.sin,
    "exp": np.exp,
    "resonance": lambda z: 1 / (1 + z * z),
    "tanh": np.tanh,
    "log": lambda z: np.log(5.0 + z),
    "hyperbola": lambda z: np.sqrt(1 + z * z),
    "gauss": lambda z: np.exp(-z * z / 2),
    "cubic": lambda z: 1 + z + z**2 / 2 - z**3 / 3,
    "quotient": lambda z: np.cos(z) / (1.5 + np.sin(z)),
    "two waves": lambda z: 3 + np.sin(2 * z) + 0.3 * np.cos(5 * z),
}


@pytest.mark.parametrize("relative_noise", [1e-7, 1e-4])
def test_error_is_near_the_least_possible_and_the_estimate_is_honest(relative_noise: float) -> None:
    """100 functions of random place, length, size and scale; benchmarks/differences.py has many more and real codes."""
    random = np.random.default_rng(12)
    errors, estimates, least = np.empty((3, 100))
    for index in range(100):
        shape = list(SHAPES.values())[index % len(SHAPES)]
        place, length, size = random.uniform(-1.5, 1.5), 10 ** random.uniform(-2, 2), 10 ** random.uniform(-3, 3)
        scale = length * 10 ** random.uniform(-0.5, 0.5)
        noise = relative_noise * abs(size * float(shape(np.array(place))))

        def smooth(
            x: Array, shape: Callable = shape, place: float = place, length: float = length, size: float = size
        ) -> Array:
            return size * shape(place + x / length)

        def probe(offsets: Array, smooth: Callable = smooth, noise: float = noise) -> Array:
            return (smooth(offsets) + noise * random.normal(size=offsets.shape))[:, None]

        slope, estimate, _ = differentiate(probe, scale, 0.0)
        truth = size / length * float(np.imag(shape(np.array(place + 1e-30j))) / 1e-30)
        steps = scale * np.geomspace(1e-6, 1.0, 400)
        bias = (smooth(steps) - smooth(-steps)) / (2 * steps) - truth
        least[index] = np.sqrt(bias**2 + (noise / steps) ** 2 / 2).min()
        errors[index], estimates[index] = abs(slope[0] - truth), estimate[0]
    assert np.mean(errors <= 3 * least) >= 0.95
    assert np.mean(estimates >= errors) >= 0.93
    assert np.mean(estimates <= 10 * errors) >= 0.75


# -- real codes ----------------------------------------------------------------------------------------------


def romberg(code: Callable[[float], Array], x: float, widest: float, levels: int = 7) -> Array:
    """Return the derivatives of a code itself, extrapolated from central differences whose step halves."""
    rows = [(code(x + h) - code(x - h)) / (2 * h) for h in widest / 2.0 ** np.arange(levels)]
    best, change = rows[0], np.full(rows[0].shape, np.inf)
    for order in range(1, levels):
        finer = [b + (b - a) / (4.0**order - 1) for a, b in itertools.pairwise(rows)]
        for old, new in zip(rows[1:], finer, strict=True):
            best, change = np.where(np.abs(new - old) < change, new, best), np.minimum(np.abs(new - old), change)
        rows = finer
    return best


def relative_errors(code: Callable[[float], Array], k1: float) -> tuple[Array, Array, int]:
    """Return true and estimated relative errors of all outputs, and the runs of the calibration."""
    slope, error, runs = differentiate(lambda offsets: np.array([code(k1 + offset) for offset in offsets]), 0.3, k1)
    truth = np.median([romberg(code, k1, width) for width in (0.04, 0.05, 0.06)], axis=0)
    return np.abs(slope - truth) / np.abs(truth), error / np.abs(truth), runs


def test_pyat_beta_and_tune_to_1e_8() -> None:
    at = pytest.importorskip("at")
    knobs = [at.Quadrupole("QF", 0.15, 2.0), at.Quadrupole("QF", 0.15, 2.0)]
    cell = [knobs[0], at.Drift("D1", 1.0), at.Quadrupole("QD", 0.3, -2.0), at.Drift("D2", 1.0), knobs[1]]
    ring = at.Lattice(cell, energy=1e9, periodicity=1)

    def code(k1: float) -> Array:
        for knob in knobs:
            knob.PolynomB[1] = k1
        _, data, optics = ring.linopt6(refpts=[0, 2])
        return np.concatenate([optics.beta.ravel(), data.tune[:2]])

    for k1 in (1.8, 2.0, 2.3):
        errors, estimates, runs = relative_errors(code, k1)
        assert runs <= 16
        assert errors.max() <= 1e-8
        assert np.all(errors <= 3 * estimates)
        assert estimates.max() <= 1e-8


@pytest.mark.system
def test_madx_beta_to_1e_8_and_tune_to_3e_6() -> None:
    """The tune is read as it is printed, to 11 digits: on an even grid its noise may not show at all."""
    madx = pytest.importorskip("cpymad.madx").Madx(stdout=False)
    madx.input("""
        kf = 2;
        qf: quadrupole, l=0.15, k1:=kf; qd: quadrupole, l=0.3, k1=-2;
        cell: sequence, l=2.6, refer=entry; qf, at=0; m1: marker, at=1.15; qd, at=1.15; qf, at=2.45; endsequence;
        beam, particle=electron, energy=1; use, sequence=cell;
    """)

    def code(k1: float) -> Array:
        madx.globals["kf"] = k1
        twiss = madx.twiss()
        rows = [list(twiss.name).index(name) for name in ("cell$start:1", "m1:1")]
        return np.concatenate([twiss.betx[rows], twiss.bety[rows], [twiss.summary.q1, twiss.summary.q2]])

    for k1 in (1.8, 2.0, 2.3):
        errors, estimates, runs = relative_errors(code, k1)
        assert runs <= 16
        assert errors[:4].max() <= 1e-8
        assert errors[4:].max() <= 3e-6
        assert np.all(errors <= 3 * estimates)
    madx.exit()


def test_eight_digits_are_noise_also_where_the_last_one_stands_still_close_by() -> None:
    """A printed number that changes by less than its last digit between the closest runs looks like a constant."""
    errors, estimates = np.empty((2, 20))
    for index, place in enumerate(np.linspace(0.03, 0.05, 20)):

        def probe(offsets: Array, place: float = place) -> Array:
            x = place + offsets - 0.04
            return np.array([[float(f"{value:.7e}")] for value in 2.3e-3 * (1 + 0.49 * x + 0.3 * x**2)])

        slope, estimate, _ = differentiate(probe, 0.01, place)
        errors[index], estimates[index] = abs(slope[0] - 2.3e-3 * (0.49 + 0.6 * (place - 0.04))), estimate[0]
    assert np.mean(estimates >= errors) >= 0.9
    assert errors.max() < 1e-3 * 2.3e-3 * 0.49
