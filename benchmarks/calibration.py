"""Fit a line with hidden errors many times over, and count how often its error bars hold; on one torch thread.

    python benchmarks/calibration.py [--repeats 50] [--likelihood moments|images|profiles] [--particles 2000]

Five quadrupoles are off by 2 %, two of them are misaligned, the beam's energy is off by 1 % and its Twiss parameters
are unknown. Each repeat draws all of them from their priors, takes a noisy image at each of 12 settings with a bunch of
other particles than the fit's, and fits. The corrector's field is known, so that it tells the energy.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import cheetah
import numpy as np
import torch
from _rows import Row, note

from lume_diff.calibration import (
    BeamMomentum,
    Calibration,
    CalibrationResult,
    Images,
    Likelihood,
    LogNormal,
    Moments,
    Normal,
    Offset,
    Parameter,
    Profiles,
    Scale,
    ScreenDataset,
    Value,
)
from lume_diff.models import BunchFromMoments, CheetahModel, StagedModel

D = torch.float64
ENERGY, PIXEL, SHAPE = 1e8, 1e-4, (100, 100)
QUADRUPOLES = [f"Q{i}" for i in range(1, 6)]
DESIGN = {"Q1": 4.0, "Q2": -5.0, "Q3": 4.0, "Q4": -4.0, "Q5": 3.0}  # [1/m^2]
TWISS = {"beta_x": 6.0, "alpha_x": 0.5, "norm_emit_x": 1e-5, "beta_y": 4.0, "alpha_y": -0.3, "norm_emit_y": 8e-6}
PEAK, NOISE, GAIN = 1000.0, 3.0, 0.5  # [counts], of the brightest image


def number(value: float) -> torch.Tensor:
    """Return a float64 tensor."""
    return torch.tensor(value, dtype=D)


def line(particles: int, seed: int) -> StagedModel:
    """Return a bunch from moments, five quadrupoles, a corrector and a screen."""
    gun = BunchFromMoments(particles, seed, mean_energy=ENERGY, sigma_energy=1e4, sigma_t=1e-12, charge=1e-10, **TWISS)
    elements: list[cheetah.Element] = [
        cheetah.HorizontalCorrector(number(0.05), number(0.0), name="C1", dtype=D),
        cheetah.Drift(number(0.3), name="DC1", dtype=D),
    ]
    for name in QUADRUPOLES:
        elements.append(cheetah.Quadrupole(number(0.1), number(DESIGN[name]), name=name, dtype=D))
        elements.append(cheetah.Drift(number(0.4), name=f"D{name}", dtype=D))
    elements.append(cheetah.Drift(number(1.0), name="D", dtype=D))
    pixel = torch.tensor([PIXEL, PIXEL], dtype=D)
    elements.append(cheetah.Screen(SHAPE, pixel, is_active=True, name="SCR", dtype=D))
    segment = cheetah.Segment(elements, name="line")
    return StagedModel({"beam": gun, "line": CheetahModel(segment, gun.get("final_particles"))})


def scan(settings: int, scanned: list[str] | None = None, corrector: float = 5e-4, seed: int = 0) -> dict[str, Any]:
    """Return settings of the quadrupoles that are scanned [1/m^2] and of the corrector [rad], ``(settings,)`` each."""
    generator = np.random.default_rng(seed)
    names = QUADRUPOLES if scanned is None else scanned
    found = {f"{n}.k1": DESIGN[n] + 3.0 * generator.uniform(-1.0, 1.0, settings) for n in names}
    return {**found, "C1.angle": corrector * np.where(np.arange(settings) % 2, 1.0, -1.0)}


def unknowns() -> list[Parameter]:
    """Return all parameters: 5 scales, 2 misalignments, the momentum and 6 Twiss parameters."""
    strengths = [f"{name}.k1" for name in QUADRUPOLES]
    energies = ["mean_energy", "beam/reference_energy", "line/reference_energy"]
    return [
        *(Scale(name, Normal(1.0, 0.02)) for name in strengths),
        Offset("Q2.misalignment_x", Normal(0.0, 2e-4)),
        Offset("Q4.misalignment_y", Normal(0.0, 2e-4)),
        BeamMomentum([*strengths, "C1.angle"], Normal(1.0, 0.01), energy=energies),
        *(
            Value(name, Normal(value, 0.3) if name.startswith("alpha") else LogNormal(value, 1.2))
            for name, value in TWISS.items()
        ),
    ]


def measured(machine: StagedModel, settings: dict[str, Any], truth: dict[str, float], seed: int) -> ScreenDataset:
    """Return one noisy image [counts] a setting of a machine that is off by known errors.

    The physics is written out rather than taken from the parameters that are fitted.
    """
    momentum = truth["beam momentum"]
    inputs: dict[str, Any] = {name: torch.as_tensor(values) / momentum for name, values in settings.items()}
    for name in QUADRUPOLES:
        knob = f"{name}.k1"
        inputs[knob] = torch.as_tensor(settings.get(knob, DESIGN[name])) / momentum * truth[f"scale of {knob}"]
    for name in ("Q2.misalignment_x", "Q4.misalignment_y"):
        inputs[name] = truth[f"offset of {name}"]
    energy = (momentum**2 * (ENERGY**2 - 510998.95069**2) + 510998.95069**2) ** 0.5
    inputs |= dict.fromkeys(("mean_energy", "beam/reference_energy", "line/reference_energy"), energy)
    inputs |= {name: truth[name] for name in TWISS}
    with torch.no_grad():
        light = machine(inputs, outputs=["SCR.image"])["SCR.image"].numpy()
    light = PEAK * light / light.max()
    noise = np.random.default_rng(seed).standard_normal(light.shape) * np.sqrt(NOISE**2 + GAIN * light)
    return ScreenDataset(settings, light + noise, "SCR.image", PIXEL)


def drawn(parameters: list[Parameter], seed: int) -> dict[str, float]:
    """Return true values, drawn from the priors."""
    generator = torch.Generator().manual_seed(seed)
    return {p.name: float(p.prior.at(torch.randn((), dtype=D, generator=generator))) for p in parameters}


def repeat(model: StagedModel, machine: StagedModel, likelihood: Likelihood, seed: int, settings: int = 12) -> Any:
    """Return the result of one fit and the true values."""
    parameters = unknowns()
    truth = drawn(parameters, seed)
    data = measured(machine, scan(settings), truth, seed)
    result = Calibration(model, data, parameters, likelihood).run(progress=False)
    return result, truth


def pulls(result: CalibrationResult, truth: dict[str, float]) -> dict[str, float]:
    """Return how far estimates are off in their standard errors, in the coordinates in which priors are normal."""
    pairs = zip(result.parameters, result.u.tolist(), result.laplace.errors.tolist(), strict=True)
    return {p.name: (u - p.prior.coordinate(truth[p.name])) / error for p, u, error in pairs if result.resolved[p.name]}


def main() -> None:
    """Print how often the 68 % intervals cover the truth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--likelihood", choices=("moments", "images", "profiles"), default="moments")
    parser.add_argument("--particles", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    likelihood = {"moments": Moments, "images": Images, "profiles": Profiles}[arguments.likelihood]()
    # A real beam has no grains, which are noise to images but not to moments.
    model, machine = line(arguments.particles, 0), line(20_000 if arguments.likelihood == "moments" else 300_000, 1)
    found: dict[str, list[float]] = {}
    began, chi = time.perf_counter(), []
    for seed in range(arguments.repeats):
        result, truth = repeat(model, machine, likelihood, seed)
        chi.append(result.reduced_chi_square)
        for name, pull in pulls(result, truth).items():
            found.setdefault(name, []).append(pull)
        print(f"{seed:3}: {len(result.history)} steps, {result.seconds:.1f} s, chi^2/n {chi[-1]:.2f}", flush=True)
    if arguments.repeats:
        print(f"{'parameter':32}  resolved  covered  worst  rms pull")
        for name, values in found.items():
            array = np.array(values)
            print(
                f"{name:32}  {len(array):8}  {np.mean(abs(array) < 1):7.0%}  {abs(array).max():5.1f}  "
                f"{np.sqrt(np.mean(array**2)):8.2f}"
            )
        everything = np.concatenate([np.array(v) for v in found.values()])
        title, share = f"{arguments.repeats} fits of {arguments.likelihood}", 100 * np.mean(abs(everything) < 1)
        note(Row(title, f"of {len(everything)} intervals of 68 % cover the truth", share, "%", wanted=60.0, more=True))
        print(
            f"pooled over {len(everything)}: {np.mean(abs(everything) < 1):.1%} covered by 68 % intervals, worst "
            f"{abs(everything).max():.1f} errors off; chi^2/n {np.mean(chi):.3f}; {time.perf_counter() - began:.0f} s"
        )


if __name__ == "__main__":
    main()
