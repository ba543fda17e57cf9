"""How good automatic difference steps are, and how honest their error estimates: analytic functions, pyAT and MAD-X.

    python benchmarks/differences.py [--cases 480] [--points 30] [--skip at madx]

A case is one derivative: of a smooth function with added noise of 1e-7 or 1e-4, or of a beta function or a tune of a
FODO cell with respect to k1. Wanted: in 95 % of the cases the error is within 3 times the least RMS error of a central
difference with any step; in 93 % the estimate covers it, and in 75 % it is at most 10 times too large.

The truth of a code is its own derivative, extrapolated (Romberg) from steps so large that noise hardly matters; the
least RMS error comes from 16 differences around each of 25 steps.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from _rows import Row, note

from lume_diff.blackbox.differences.noise import calibrate
from lume_diff.blackbox.differences.steps import StepCalibration

Array = np.ndarray
Code = Callable[[float], Array]

SHAPES: dict[str, Callable[[Array], Array]] = {
    "sin": np.sin,
    "exp": np.exp,
    "resonance": lambda z: 1 / (1 + z * z),
    "tanh": np.tanh,
    "log": lambda z: np.log(5.0 + z),
    "hyperbola": lambda z: np.sqrt(1 + z * z),
    "gauss": lambda z: np.exp(-z * z / 2),
    "z sin": lambda z: z * np.sin(z),
    "cubic": lambda z: 1 + z + z**2 / 2 - z**3 / 3,
    "quotient": lambda z: np.cos(z) / (1.5 + np.sin(z)),
    "two waves": lambda z: 3 + np.sin(2 * z) + 0.3 * np.cos(5 * z),
    "pole": lambda z: 1 / (5.0 + z),
}


@dataclass
class Table:
    """Collects cases and prints a line of them."""

    name: str
    error: list[Array] = field(default_factory=list)
    estimate: list[Array] = field(default_factory=list)
    best: list[Array] = field(default_factory=list)
    truth: list[Array] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def add(self, error: Array, estimate: Array, best: Array, truth: Array, runs: int, steps: int) -> None:
        """Add the derivatives of all outputs with respect to one input."""
        self.error.append(error)
        self.estimate.append(estimate)
        self.best.append(best)
        self.truth.append(truth)
        self.runs.append(runs)
        self.steps.append(steps)

    def extend(self, other: Table) -> None:
        """Add the cases of another table."""
        self.error += other.error
        self.estimate += other.estimate
        self.best += other.best
        self.truth += other.truth
        self.runs += other.runs
        self.steps += other.steps

    def row(self) -> str:
        """Return the line: number of cases, the three fractions, relative errors, runs."""
        error, estimate, best, truth = map(np.concatenate, (self.error, self.estimate, self.best, self.truth))
        relative = error / np.abs(truth)
        shares = {"error within 3 times the least": (error <= 3 * best, 95.0)}
        shares["estimate covers the error"] = (estimate >= error, 93.0)
        shares["estimate at most 10 times too large"] = (estimate <= 10 * error, 75.0)
        for what, (holds, wanted) in shares.items():
            note(
                Row(
                    f"derivatives, {self.name} ({len(error)})",
                    what,
                    100 * np.mean(holds),
                    "%",
                    wanted=wanted,
                    more=True,
                )
            )
        return (
            f"{self.name:<22}{len(error):>6}{100 * np.mean(error <= 3 * best):>9.1f}"
            f"{100 * np.mean(estimate >= error):>9.1f}{100 * np.mean(estimate <= 10 * error):>9.1f}"
            f"{np.median(relative):>11.1e}{np.max(relative):>10.1e}{np.median(best / np.abs(truth)):>10.1e}"
            f"{np.mean(self.runs):>7.1f}{max(self.runs):>5}{np.mean(self.steps):>7.2f}"
        )


HEADER = (
    f"{'':<22}{'':>6}{'within':>9}{'covers':>9}{'at most':>9}{'relative error':>21}{'best':>10}{'runs':>12}{'steps':>7}"
    f"\n{'':<22}{'cases':>6}{'3x best':>9}{'error':>9}{'10x':>9}{'median':>11}{'max':>10}{'median':>10}{'mean':>7}"
    f"{'max':>5}{'mean':>7}"
)


def differences(
    calibration: StepCalibration, evaluate: Callable[[Array], Array], scale: float, x: float = 0.0
) -> tuple[Array, Array, int]:
    """Return derivatives and their estimated errors from the plan of a calibration, and its number of steps.

    The steps are exact differences of numbers near x, so that the code gets the points that are meant.
    """
    count = len(calibration.noise)
    slope, error = np.empty(count), np.empty(count)
    unseen = np.full(count, np.nan)  # the value at the point itself, which a central difference leaves out
    plan = calibration.plan(scale, point=x)
    for part in plan:
        slope[part.outputs] = part.derivative(unseen, list(evaluate(part.offsets)))[part.outputs]
        error[part.outputs] = part.error
    return slope, error, len(plan)


@dataclass
class NoisyFunction:
    """``amplitude * shape(place + x / length)`` around x = 0, with Gaussian noise of a relative size."""

    shape: Callable[[Array], Array]
    place: float
    length: float
    amplitude: float
    relative_noise: float
    random: np.random.Generator

    @property
    def noise(self) -> float:
        """Standard deviation of the noise."""
        return self.relative_noise * abs(float(self.smooth(np.zeros(1))[0]))

    @property
    def slope(self) -> float:
        """The true derivative, by a complex step."""
        return self.amplitude / self.length * float(np.imag(self.shape(np.array(self.place + 1e-30j))) / 1e-30)

    def smooth(self, offsets: Array) -> Array:
        """Return the function without noise."""
        return self.amplitude * self.shape(self.place + offsets / self.length)

    def __call__(self, offsets: Array) -> Array:
        """Return the function with noise, ``(k, 1)``."""
        return (self.smooth(offsets) + self.noise * self.random.normal(size=offsets.shape))[:, None]

    def best(self, scale: float) -> float:
        """Return the least RMS error of a central difference with a step up to the scale."""
        steps = scale * np.geomspace(1e-6, 1.0, 600)
        bias = (self.smooth(steps) - self.smooth(-steps)) / (2 * steps) - self.slope
        return float(np.sqrt(bias**2 + (self.noise / steps) ** 2 / 2).min())


def noisy_functions(count: int, relative_noise: float, seed: int) -> Iterator[tuple[NoisyFunction, float]]:
    """Yield functions of all shapes at random places, lengths and sizes, with a scale of 0.3 to 3 lengths."""
    random = np.random.default_rng(seed)
    for index in range(count):
        shape = list(SHAPES.values())[index % len(SHAPES)]
        length, amplitude = 10 ** random.uniform(-2, 2), 10 ** random.uniform(-3, 3)
        scale = length * 10 ** random.uniform(-0.5, 0.5)
        noise = np.random.default_rng([seed, index])
        yield NoisyFunction(shape, random.uniform(-1.5, 1.5), length, amplitude, relative_noise, noise), scale


def analytic_table(count: int, relative_noise: float, seed: int = 1) -> Table:
    """Return the table of the noisy functions."""
    table = Table(f"analytic, noise {relative_noise:.0e}")
    for function, scale in noisy_functions(count, relative_noise, seed):
        calibration = calibrate(function, scale)
        slope, estimate, steps = differences(calibration, function, scale)
        truth, best = np.array([function.slope]), np.array([function.best(scale)])
        table.add(np.abs(slope - truth), estimate, best, truth, calibration.runs, steps)
    return table


def romberg(code: Code, x: float, widest: float, levels: int = 7) -> Array:
    """Return the derivatives of a code, extrapolated from central differences whose step halves."""
    slopes = [(code(x + h) - code(x - h)) / (2 * h) for h in widest / 2.0 ** np.arange(levels)]
    best, change = slopes[0], np.full(slopes[0].shape, np.inf)
    for order in range(1, levels):
        finer = [b + (b - a) / (4.0**order - 1) for a, b in itertools.pairwise(slopes)]
        for old, new in zip(slopes[1:], finer, strict=True):
            moved = np.abs(new - old)
            best, change = np.where(moved < change, new, best), np.minimum(moved, change)
        slopes = finer
    return best


def best_of_code(code: Code, x: float, truth: Array, scale: float, random: np.random.Generator) -> Array:
    """Return the least RMS error over steps, each tried 16 times a little changed."""
    found = np.full(truth.shape, np.inf)
    for step in scale * np.geomspace(1e-6, 0.1, 25):
        near = step * random.uniform(0.97, 1.03, 16)
        slopes = np.array([(code(x + h) - code(x - h)) / ((x + h) - (x - h)) for h in near])
        found = np.minimum(found, np.sqrt(np.mean((slopes - truth) ** 2, axis=0)))
    return found


def code_tables(name: str, codes: dict[str, Code], kinds: dict[str, slice], points: int, seed: int = 1) -> list[Table]:
    """Return a table for each kind of output of a code, over all its knobs and a number of settings of each."""
    tables = {kind: Table(f"{name} {kind}") for kind in kinds}
    random = np.random.default_rng(seed)
    scale = 0.3
    for knob, code in codes.items():
        for x in random.uniform(1.7, 2.7, points) * (-1 if knob == "QD" else 1):

            def evaluate(offsets: Array, code: Code = code, x: float = x) -> Array:
                return np.array([code(x + offset) for offset in offsets])

            calibration = calibrate(evaluate, scale)
            slope, estimate, steps = differences(calibration, evaluate, scale, float(x))
            truth = np.median([romberg(code, x, width) for width in (0.04, 0.05, 0.06)], axis=0)
            best = best_of_code(code, x, truth, scale, random)
            for kind, part in kinds.items():
                error = np.abs(slope - truth)[part]
                tables[kind].add(error, estimate[part], best[part], truth[part], calibration.runs, steps)
    return list(tables.values())


def at_cell() -> dict[str, Code]:
    """Return beta_x and beta_y at three places and both tunes of a FODO cell in pyAT, as functions of k1 [m^-2]."""
    import at

    focusing = [at.Quadrupole("QF", 0.15, 2.0), at.Quadrupole("QF", 0.15, 2.0)]
    defocusing = [at.Quadrupole("QD", 0.3, -2.0)]
    drifts = [at.Drift("D1", 1.0), at.Drift("D2", 1.0)]
    cell = [focusing[0], drifts[0], defocusing[0], drifts[1], focusing[1]]
    ring = at.Lattice(cell, energy=1e9, periodicity=1)

    def code(knobs: list[at.Element], k1: float) -> Array:
        before = knobs[0].PolynomB[1]
        for knob in knobs:
            knob.PolynomB[1] = k1
        _, data, optics = ring.linopt6(refpts=[0, 2, 3])
        for knob in knobs:
            knob.PolynomB[1] = before
        return np.concatenate([optics.beta.ravel(), data.tune[:2]])

    return {"QF": lambda k1: code(focusing, k1), "QD": lambda k1: code(defocusing, k1)}


def madx_cell() -> dict[str, Code]:
    """Return the same of the same cell in MAD-X."""
    from cpymad.madx import Madx

    madx = Madx(stdout=False)
    madx.input("""
        kf = 2; kd = -2;
        qf: quadrupole, l=0.15, k1:=kf; qd: quadrupole, l=0.3, k1:=kd;
        cell: sequence, l=2.6, refer=entry;
        f1: qf, at=0; m1: marker, at=1.15; d1: qd, at=1.15; m2: marker, at=1.45; f2: qf, at=2.45;
        endsequence;
        beam, particle=electron, energy=1; use, sequence=cell;
    """)

    def code(knob: str, k1: float) -> Array:
        before = madx.globals[knob]
        madx.globals[knob] = k1
        twiss = madx.twiss()
        madx.globals[knob] = before
        rows = [list(twiss.name).index(name) for name in ("cell$start:1", "m1:1", "m2:1")]
        return np.concatenate([twiss.betx[rows], twiss.bety[rows], [twiss.summary.q1, twiss.summary.q2]])

    return {"QF": lambda k1: code("kf", k1), "QD": lambda k1: code("kd", k1)}


def all_tables(cases: int, points: int, skip: list[str]) -> Iterator[Table]:
    """Yield the tables of the noisy functions and of the codes that are not skipped."""
    for relative_noise in (1e-7, 1e-4):
        yield analytic_table(cases, relative_noise)
    kinds = {"beta": slice(0, 6), "tune": slice(6, 8)}
    if "at" not in skip:
        yield from code_tables("pyAT", at_cell(), kinds, points)
    if "madx" not in skip:
        yield from code_tables("MAD-X", madx_cell(), kinds, points)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=480, help="analytic cases for each noise level")
    parser.add_argument("--points", type=int, default=30, help="settings of each of the two knobs of a code")
    parser.add_argument("--skip", nargs="*", default=[], choices=["at", "madx"])
    arguments = parser.parse_args()
    print(HEADER)
    everything = Table("all")
    for table in all_tables(arguments.cases, arguments.points, arguments.skip):
        print(table.row(), flush=True)
        everything.extend(table)
    print(everything.row())


if __name__ == "__main__":
    main()
