"""Time an epoch of a reconstruction beside one of gpsr, and watch the memory of many; on one torch thread.

    python benchmarks/reconstruction.py [--rounds 7] [--epochs 1000]

An epoch is 10 images of 100 x 100 pixels of a quadrupole scan from 10 000 particles: generate the bunch, track it, make
the images, compare them, and take a step. gpsr (``pip install gpsr==0.2.0``, not among this project's requirements)
gets cloud-in-cell screens in place of its kernel density estimate, and runs in turns with ours; where it is not
installed, its place takes the same epoch written by hand with Cheetah.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import cheetah
import torch
from _rows import Row, note
from torch import nn

from lume_diff.calibration import BeamReconstruction, ScreenDataset
from lume_diff.calibration.reconstruction.training import Options, Training, optimiser_of
from lume_diff.models import CheetahModel

F64 = torch.float64
SETTINGS, PIXELS, PARTICLES = 10, 100, 10_000
IN_A_ROW = 5
PIXEL, ENERGY = 3e-4, 4.3e7
K1 = torch.linspace(-12.0, 12.0, SETTINGS, dtype=F64)


def number(value: float, dtype: torch.dtype = F64) -> torch.Tensor:
    """Return a number as a tensor."""
    return torch.tensor(value, dtype=dtype)


def screen(dtype: torch.dtype) -> cheetah.Screen:
    """Return a screen that spreads particles over the four nearest pixels."""
    size = torch.tensor([PIXEL, PIXEL], dtype=dtype)
    return cheetah.Screen((PIXELS, PIXELS), size, method="cloud-in-cell", is_active=True, name="SCR1", dtype=dtype)


def line() -> CheetahModel:
    """Return quadrupole, drift and screen."""
    quadrupole = cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=F64)
    segment = cheetah.Segment([quadrupole, cheetah.Drift(number(1.0), name="D1", dtype=F64), screen(F64)], name="line")
    sizes = {"sigma_x": 1e-3, "sigma_px": 5e-4, "sigma_y": 1e-3, "sigma_py": 5e-4, "sigma_tau": 1e-4, "sigma_p": 1e-3}
    beam = cheetah.ParticleBeam.from_parameters(
        num_particles=PARTICLES,
        energy=number(ENERGY),
        total_charge=number(1e-10),
        dtype=F64,
        **{name: number(value) for name, value in sizes.items()},
    )
    return CheetahModel(segment, beam, controls=["Q1.k1"], outputs=["SCR1.image"], dtype=F64)


def measured() -> tuple[CheetahModel, ScreenDataset]:
    """Return a model, and images of its bunch."""
    model = line()
    images = model({"Q1.k1": K1}, outputs=["SCR1.image"])["SCR1.image"]
    return model, ScreenDataset({"Q1.k1": K1.numpy()}, 1e15 * images.detach().numpy(), "SCR1.image", PIXEL)


def ours(model: CheetahModel, data: ScreenDataset) -> Callable[[], object]:
    """Return an epoch of this project's reconstruction."""
    task = BeamReconstruction(model, data, PARTICLES)
    member = task.new_member(0)
    optimiser = optimiser_of(member, 1e-4, shape=True)

    def epoch() -> None:
        optimiser.zero_grad(set_to_none=False)
        task.loss(member, points=member.other_points(1))[0].backward()
        optimiser.step()

    return epoch


def theirs(data: ScreenDataset, dtype: torch.dtype) -> tuple[str, Callable[[], object]]:
    """Return an epoch of gpsr, as its training step has it, or of plain Cheetah."""
    target = data.tensor(dtype)[:, 0]
    target = target / target.sum((-2, -1), keepdim=True)
    k1 = K1.to(dtype)
    forward, parameters, name = _gpsr(k1, dtype) or _by_hand(k1, dtype)
    optimiser = torch.optim.Adam(parameters, lr=1e-4)

    def epoch() -> None:
        optimiser.zero_grad()
        image = forward()
        image = image / image.sum((-2, -1), keepdim=True)
        (image - target).abs().mean().backward()
        optimiser.step()

    return name, epoch


def _gpsr(k1: torch.Tensor, dtype: torch.dtype) -> tuple[Callable[[], torch.Tensor], list[nn.Parameter], str] | None:
    try:
        from gpsr.beams import NNParticleBeamGenerator
        from gpsr.modeling import GPSR, GPSRQuadScanLattice
    except ImportError:
        return None
    torch.set_default_dtype(dtype)
    try:
        lattice = GPSRQuadScanLattice(l_quad=0.1, l_drift=1.0, screen=screen(dtype))
        found: Any = GPSR(NNParticleBeamGenerator(PARTICLES, number(ENERGY, dtype), output_scale=1e-3), lattice).to(
            dtype
        )
    finally:
        torch.set_default_dtype(torch.float32)
    return lambda: found(k1.unsqueeze(-1))[0], list(found.parameters()), "gpsr 0.2.0, cloud-in-cell"


def _by_hand(k1: torch.Tensor, dtype: torch.dtype) -> tuple[Callable[[], torch.Tensor], list[nn.Parameter], str]:
    layers: list[nn.Module] = [nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 6)]
    net = nn.Sequential(*layers).to(dtype)
    base = torch.randn(PARTICLES, 6, dtype=dtype)
    quadrupole = cheetah.Quadrupole(number(0.1, dtype), k1, dtype=dtype)
    drift, monitor = cheetah.Drift(number(1.0, dtype), dtype=dtype), screen(dtype)

    def forward() -> torch.Tensor:
        coordinates = torch.cat((1e-3 * net(base), torch.ones(PARTICLES, 1, dtype=dtype)), dim=-1)
        monitor.track(drift.track(quadrupole.track(cheetah.ParticleBeam(coordinates, number(ENERGY, dtype)))))
        image: torch.Tensor = monitor.reading
        return image

    return forward, list(net.parameters()), "the same by hand with Cheetah (gpsr is not installed)"


def best(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the shortest CPU time [s] of each, in turns of several epochs in a row, as a fit makes them."""
    found = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            begun = time.process_time()
            for _ in range(IN_A_ROW):
                work()
            found[name] = min(found[name], (time.process_time() - begun) / IN_A_ROW)
    return found


def memory(data: ScreenDataset, model: CheetahModel, epochs: int) -> tuple[float, float]:
    """Return the largest memory [MiB] that the process had after a tenth of the epochs and after all of them."""
    peaks: list[float] = []

    def watch(member: int, epoch: int, loss: float) -> None:
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0)

    Training(BeamReconstruction(model, data, PARTICLES), Options(epochs), None, watch).members()
    return peaks[epochs // 10], peaks[epochs - 1]


def main() -> None:
    """Print the times and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=1000, help="of watching the memory; 0 for none")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, data = measured()
    works = {"ours": ours(model, data)}
    for dtype in (torch.float32, F64):
        name, epoch = theirs(data, dtype)
        works[f"{name}, {str(dtype).removeprefix('torch.')}"] = epoch
    times = best(works, options.rounds)
    print(f"an epoch of {SETTINGS} images of {PIXELS} x {PIXELS}, {PARTICLES} particles, CPU time:")
    for name, seconds in times.items():
        if name != "ours":
            wanted = 0.4 if "float32" in name else None
            note(Row("an epoch of a reconstruction", "ours", 1e3 * times["ours"], "ms", name, 1e3 * seconds, wanted))
        print(f"  {name:<62}{1e3 * seconds:>9.1f} ms   ours is {times['ours'] / seconds:.2f} x")
    if options.epochs:
        early, late = memory(data, model, options.epochs)
        title = f"memory added between epoch {options.epochs // 10} and {options.epochs}"
        note(Row("an epoch of a reconstruction", title, late - early, "MiB"))
        print(f"peak memory after {options.epochs // 10} epochs {early:.0f} MiB, after {options.epochs} {late:.0f} MiB")


if __name__ == "__main__":
    main()
