"""Speed of CheetahModel against Cheetah itself on a 60-element line, in one run on one thread.

Prints a table of times and ratios; ``--particles`` and ``--rounds`` change the size and the care taken.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import cheetah
import torch

import lume_diff as ld

D = torch.float64


def number(value: float) -> torch.Tensor:
    """Return a float64 tensor."""
    return torch.tensor(value, dtype=D)


def fodo_line() -> cheetah.Segment:
    """Return 20 cells of a quadrupole and two drifts, the last drift being a screen: 60 elements."""
    elements: list[cheetah.Element] = []
    for cell in range(20):
        strength = 2.0 * (-1.0) ** cell
        elements.append(cheetah.Quadrupole(number(0.1), number(strength), name=f"Q{cell}", dtype=D))
        elements.append(cheetah.Drift(number(0.4), name=f"D{cell}", dtype=D))
        elements.append(cheetah.Drift(number(0.1), name=f"E{cell}", dtype=D))
    elements[-1] = cheetah.Screen((200, 200), torch.tensor([2e-5, 2e-5], dtype=D), is_active=True, name="SCR1", dtype=D)
    return cheetah.Segment(elements, name="fodo").to(D)


def bunch(particles: int) -> cheetah.ParticleBeam:
    """Return a Gaussian bunch at 100 MeV."""
    sizes = {name: number(1e-4) for name in ("sigma_x", "sigma_y", "sigma_tau")}
    angles = {name: number(1e-5) for name in ("sigma_px", "sigma_py")}
    return cheetah.ParticleBeam.from_parameters(
        num_particles=particles, **sizes, **angles, sigma_p=number(1e-3), energy=number(1e8), dtype=D
    )


def best_of(rounds: int, function: Callable[[], object]) -> float:
    """Return the least time of a call [s], after a warm-up."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    segment, beam = fodo_line(), bunch(options.particles)
    names = [f"Q{cell}.k1" for cell in range(20)]
    strengths = {name: number(2.0 * (-1.0) ** cell).requires_grad_() for cell, name in enumerate(names)}

    def raw(count: int) -> torch.Tensor:
        # A fresh non-leaf each time, because Cheetah's cache of transfer maps would hand out a freed graph.
        for name in names[:count]:
            getattr(segment, name.removesuffix(".k1")).k1 = strengths[name] * 1.0
        segment.track(beam)
        return segment.SCR1.reading.square().sum()

    everything = ld.CheetahModel(segment.clone(), beam, controls=names, outputs=["SCR1.image", "final.sigma_x"])

    def ours(count: int, first: int = 0) -> torch.Tensor:
        inputs = {name: strengths[name] for name in names[first : first + count]}
        return everything(inputs, outputs=["SCR1.image"])["SCR1.image"].square().sum()

    def size() -> torch.Tensor:
        return everything({name: strengths[name] for name in names}, outputs=["final.sigma_x"])["final.sigma_x"]

    difference = (ours(20) - raw(20)).abs() / raw(20)
    reference = {
        "forward": best_of(options.rounds, lambda: raw(20)),
        "backward": best_of(options.rounds, lambda: raw(20).backward()),
    }
    rows = [
        ("20 knobs, forward", lambda: ours(20), "forward", 1.05),
        ("20 knobs, forward and backward", lambda: ours(20).backward(), "backward", 1.05),
        ("5 knobs, forward and backward", lambda: ours(5).backward(), "backward", 0.5),
        ("the last 5 of the knobs, forward and backward", lambda: ours(5, 15).backward(), "backward", 0.25),
        ("beam size instead of the screen, forward", size, "forward", None),
    ]
    print(f"60 elements, {options.particles} particles, float64, one thread, torch {torch.__version__}")
    print(
        f"raw Cheetah: forward {1e3 * reference['forward']:.2f} ms, with backward {1e3 * reference['backward']:.2f} ms"
    )
    print(f"same loss to {difference.item():.1e}\n")
    print(f"{'CheetahModel':46}  {'time [ms]':>9}  {'/ Cheetah':>9}  {'goal':>5}")
    for label, function, against, goal in rows:
        seconds = best_of(options.rounds, function)
        ratio = seconds / reference[against]
        print(f"{label:46}  {1e3 * seconds:9.2f}  {ratio:9.3f}  {'' if goal is None else f'{goal:5.2f}'}")


if __name__ == "__main__":
    main()
