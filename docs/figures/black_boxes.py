"""Draw the figures of docs/explanations/black-boxes.md: errors of differences against step and noise.

    python docs/figures/black_boxes.py [--folder docs/images]

The function is a resonance, 1 / (1 + x^2), at forty places with Gaussian noise of known size; every derivative is taken
by ``BlackBoxModel`` and ``FiniteDifference`` as a user takes it, and compared with the derivative on paper.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch

import lume_diff as ld

matplotlib.use("svg")
from matplotlib import pyplot as plt

NOISES = (1e-10, 1e-7, 1e-4)
COLOURS = {1e-10: "#3d8b5f", 1e-7: "#1f5fa8", 1e-4: "#b5530a"}
STEPS = np.geomspace(1e-9, 1.0, 28)
SCALE = 0.3


@dataclass
class Resonance:
    """``1 / (1 + x^2)`` with Gaussian noise."""

    noise: float
    random: np.random.Generator

    def __call__(self, x: float) -> float:
        """Return a noisy value."""
        return 1.0 / (1.0 + x * x) + self.noise * self.random.standard_normal()


def slope(x: float) -> float:
    """Return the derivative on paper."""
    return -2.0 * x / (1.0 + x * x) ** 2


def derivative(noise: float, x: float, seed: int, gradient: ld.FiniteDifference) -> tuple[float, float, float, int]:
    """Return the error of a derivative, what it is estimated to be, the step, and the runs it took."""
    model = ld.BlackBoxModel.from_function(
        Resonance(noise, np.random.default_rng(seed)),
        inputs=[ld.TorchScalarVariable(name="x", default_value=0.0, scale=SCALE)],
        outputs=[ld.TorchScalarVariable(name="y")],
        gradient=gradient,
    )
    found = float(model.jacobian(["y"], ["x"], at={"x": x})["y"]["x"])
    entry = model.gradient_report().entries[0]
    return abs(found - slope(x)), entry.error or float("nan"), entry.step or float("nan"), model.runs


def error_against_step(folder: Path, cases: int) -> None:
    """Draw the typical error of fixed steps, and where automatic ones land."""
    figure, ax = plt.subplots(figsize=(8.0, 4.6), layout="constrained")
    places = np.random.default_rng(0).uniform(0.3, 1.5, cases)
    for noise in NOISES:
        fixed = [
            np.median(
                [derivative(noise, x, seed, ld.FiniteDifference(step=step / SCALE))[0] for seed, x in enumerate(places)]
            )
            for step in STEPS
        ]
        ax.plot(STEPS, fixed, color=COLOURS[noise], lw=1.6, label=f"noise {noise:.0e}".replace("e-0", "e-"))
        chosen = np.array([derivative(noise, x, seed, ld.FiniteDifference())[:3] for seed, x in enumerate(places)])
        ax.plot(chosen[:, 2], chosen[:, 0], "o", color=COLOURS[noise], ms=4, mec="white", mew=0.5)
    ax.set(xscale="log", yscale="log", xlabel="step [unit of the input]", ylabel="error of the derivative")
    ax.set_title("No one step is good: the best one follows from the noise", loc="left", fontsize=11)
    ax.set_ylim(1e-10, 1e3)
    ax.text(
        0.01, 0.02, "lines: a fixed step, median error\ndots: the step that lume_diff measures", transform=ax.transAxes
    )
    finish(ax)
    ax.legend(frameon=False, loc="upper right")
    figure.savefig(folder / "difference_steps.svg", metadata={"Date": None})


def error_against_noise(folder: Path, cases: int) -> None:
    """Draw errors against noise for schemes and for a naive step, and how honest estimates are."""
    widths = {"width_ratios": (1.25, 1.0)}
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.6), layout="constrained", gridspec_kw=widths)
    noises = np.geomspace(1e-12, 1e-2, 11)
    places = np.random.default_rng(1).uniform(0.3, 1.5, cases)
    methods = {
        "central, step 1e-6": (ld.FiniteDifference(step=1e-6 / SCALE), "0.45", ":"),
        "forward, measured step": (ld.FiniteDifference("forward"), "#b5530a", "--"),
        "central, measured step": (ld.FiniteDifference(), "#1f5fa8", "-"),
        "fourth order, measured step": (ld.FiniteDifference("fourth"), "#3d8b5f", "-."),
    }
    for label, (method, colour, line) in methods.items():
        errors = [np.median([derivative(n, x, i, method)[0] for i, x in enumerate(places)]) for n in noises]
        left.plot(noises, errors, line, color=colour, label=label, lw=1.7)
    left.set(xscale="log", yscale="log", xlabel="noise of the code", ylabel="error of the derivative, median")
    left.set_title("What noise costs", loc="left", fontsize=11)
    left.legend(fontsize=8, frameon=False)
    finish(left)

    covered = tight = total = 0
    for noise in NOISES:
        found = np.array([derivative(noise, x, 1000 + i, ld.FiniteDifference())[:2] for i, x in enumerate(places)])
        right.plot(
            found[:, 0],
            found[:, 1],
            "o",
            ms=4,
            color=COLOURS[noise],
            mec="white",
            mew=0.4,
            label=f"noise {noise:.0e}".replace("e-0", "e-"),
        )
        covered += int((found[:, 1] >= found[:, 0]).sum())
        tight += int((found[:, 1] <= 10.0 * found[:, 0]).sum())
        total += len(found)
    line = np.array([1e-10, 1.0])
    right.plot(line, line, color="0.3", lw=1.0)
    right.fill_between(line, line, 10.0 * line, color="0.92", lw=0, zorder=0)
    right.text(0.62, 0.5, "too small", fontsize=9, color="0.3", transform=right.transAxes)
    right.text(
        0.25, 0.9, "more than 10 times too large", fontsize=9, color="0.3", ha="center", transform=right.transAxes
    )
    right.set(xscale="log", yscale="log", xlabel="true error", ylabel="estimated error")
    right.set(xlim=(1e-10, 1.0), ylim=(1e-10, 1.0), aspect="equal")
    right.set_title("What lume_diff says of its own error", loc="left", fontsize=11)
    right.legend(fontsize=8, frameon=False, loc="lower right")
    finish(right)
    figure.savefig(folder / "difference_noise.svg", metadata={"Date": None})
    shares = f"covers {covered / total:.1%}, is at most 10 times too large in {tight / total:.1%}"
    print(f"{total} derivatives: the estimate {shares}")


def finish(ax: plt.Axes) -> None:
    """Make a panel plain."""
    ax.grid(color="0.9", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "images")
    parser.add_argument("--cases", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plt.rcParams["svg.fonttype"] = "none"
    plt.rcParams["svg.hashsalt"] = "lume_diff"  # the same figure is the same file
    error_against_step(options.folder, options.cases)
    error_against_noise(options.folder, options.cases)


if __name__ == "__main__":
    main()
