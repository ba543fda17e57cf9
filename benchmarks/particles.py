"""Time the statistics of a bunch of 100 000 particles beside ParticleGroup's own, on one torch thread.

    python benchmarks/particles.py [--particles 100000] [--rounds 30]

Each row is a ratio within one run: below 1 we are faster. The two are timed in turns, so that what else the
machine does hits both alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _rows import Row, note

from lume_diff.particles import TorchParticleGroup
from lume_diff.particles.constants import load_beamphysics

KEYS = (
    "mean_x",
    "sigma_x",
    "sigma_t",
    "min_x",
    "ptp_x",
    "cov_x__px",
    "energy",
    "mean_energy",
    "sigma_energy",
    "mean_gamma",
    "norm_emit_x",
    "norm_emit_4d",
    "twiss_beta_x",
    "higher_order_energy_spread",
    "charge",
    "average_current",
    "sigma_r",
    "mean_theta",
    "mean_Jx",
)
TYPICAL = (
    "mean_x",
    "mean_y",
    "mean_t",
    "mean_energy",
    "sigma_x",
    "sigma_y",
    "sigma_t",
    "sigma_px",
    "sigma_py",
    "sigma_energy",
    "norm_emit_x",
    "norm_emit_y",
    "twiss_beta_x",
    "twiss_alpha_x",
    "twiss_beta_y",
    "twiss_alpha_y",
    "cov_x__px",
    "cov_y__py",
    "charge",
    "n_alive",
)


def make_bunch(n: int, seed: int = 0) -> Any:
    """Return a ParticleGroup of n electrons at 100 MeV on a z-plane."""
    rng = np.random.default_rng(seed)
    return load_beamphysics().ParticleGroup(
        data={
            "x": rng.normal(0.0, 1e-4, n),
            "y": rng.normal(0.0, 1e-4, n),
            "z": np.full(n, 1.0),
            "px": rng.normal(0.0, 1e3, n),
            "py": rng.normal(0.0, 1e3, n),
            "pz": rng.normal(1e8, 1e5, n),
            "t": rng.normal(0.0, 1e-12, n),
            "weight": rng.uniform(0.5, 1.5, n) * 1e-9 / n,
            "status": np.ones(n, dtype=int),
            "species": "electron",
        }
    )


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Return our median CPU time [s], theirs, and the ratio, timed in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 3):
        for function, record in zip((ours, theirs), times, strict=True):
            start = time.process_time()
            function()
            record.append(time.process_time() - start)
    ours_s, theirs_s = (float(np.median(record[3:])) for record in times)
    return ours_s, theirs_s, ours_s / theirs_s


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    theirs = make_bunch(arguments.particles)
    ours = TorchParticleGroup.from_particle_group(theirs)

    rows: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        (key, lambda key=key: ours[key], lambda key=key: theirs[key]) for key in KEYS
    ]
    rows.append((f"{len(TYPICAL)} at once", lambda: ours.statistics(TYPICAL), lambda: theirs.statistics(*TYPICAL)))
    rows.append(("20, one by one", lambda: [ours[key] for key in TYPICAL], lambda: [theirs[key] for key in TYPICAL]))
    print(f"{arguments.particles} particles, torch {torch.__version__}, {torch.get_num_threads()} thread")
    print(f"{'statistic':<28}{'ours [ms]':>12}{'ParticleGroup [ms]':>20}{'ratio':>8}")
    for name, f, g in rows:
        a, b, r = ratio(f, g, arguments.rounds)
        title = f"statistics of {arguments.particles} particles"
        note(Row(title, name, 1e3 * a, "ms", "ParticleGroup", 1e3 * b))
        print(f"{name:<28}{1e3 * a:>12.3f}{1e3 * b:>20.3f}{r:>8.2f}")


if __name__ == "__main__":
    main()
