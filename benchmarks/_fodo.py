"""What the benchmarks of Cheetah lines share: a FODO line, a bunch, and a clock that takes turns."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Mapping

import cheetah
import torch

D = torch.float64
Work = Callable[[], object]
_BURST = 0.02  # [s] of calls in a row


def number(value: float) -> torch.Tensor:
    """Return a float64 tensor."""
    return torch.tensor(value, dtype=D)


def strength(cell: int) -> float:
    """Return the strength of a cell's quadrupole [1/m^2]: cells focus and defocus in turns."""
    return 2.0 * (-1.0) ** cell


def fodo_line(elements: int, screen: bool, length: float = 0.6) -> cheetah.Segment:
    """Return cells of a quadrupole and two drifts, the last drift being a 200 x 200 screen where one is asked for.

    Args:
        elements: how many in all.
        screen: whether the last one is a screen.
        length: of a cell [m], one sixth of it the quadrupole.
    """
    line: list[cheetah.Element] = []
    for place in range(elements):
        cell, kind = divmod(place, 3)
        if kind == 0:
            quadrupole = cheetah.Quadrupole(number(length / 6), number(strength(cell)), name=f"Q{cell}", dtype=D)
            line.append(quadrupole)
        else:
            share = 4.0 if kind == 1 else 1.0
            line.append(cheetah.Drift(number(share * length / 6), name=f"{'QDE'[kind]}{cell}", dtype=D))
    if screen:
        line[-1] = cheetah.Screen((200, 200), torch.tensor([2e-5, 2e-5], dtype=D), is_active=True, name="SCR1", dtype=D)
    return cheetah.Segment(line, name="fodo").to(D)


def bunch(particles: int) -> cheetah.ParticleBeam:
    """Return a Gaussian bunch at 100 MeV."""
    sizes = {name: number(1e-4) for name in ("sigma_x", "sigma_y", "sigma_tau")}
    angles = {name: number(1e-5) for name in ("sigma_px", "sigma_py")}
    return cheetah.ParticleBeam.from_parameters(
        num_particles=particles, **sizes, **angles, sigma_p=number(1e-3), energy=number(1e8), dtype=D
    )


def raw_knobs(segment: cheetah.Segment, values: Mapping[str, torch.Tensor]) -> None:
    """Set knobs of a Cheetah segment to fresh non-leaf tensors: its cache of maps would hand out a freed graph."""
    for name, value in values.items():
        element, attribute = name.split(".")
        setattr(getattr(segment, element), attribute, value * 1.0)


def synchronise(device: torch.device) -> None:
    """Wait for what was started on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Return a time [s]: on a single CPU thread that of the processor, which other programs do not add to."""
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def in_turns(works: Mapping[str, Work], device: torch.device, seconds: float, rounds: int = 1000) -> dict[str, float]:
    """Return the least time [s] of each piece of work, timed in turns, so that what else runs hits all alike.

    A turn is a burst of calls, as an optimiser makes them. The first one finds the caches full of another piece's data
    and is not counted.

    Args:
        works: what to time.
        device: what to wait for after each call.
        seconds: how long to go on; every piece is timed twice at least.
        rounds: how often at most.
    """
    for work in works.values():
        work()
    synchronise(device)
    best = dict.fromkeys(works, float("inf"))
    gc.collect()
    end = time.perf_counter() + seconds
    for turn in range(max(rounds, 2)):
        for name, work in works.items():
            work()
            synchronise(device)
            left = _BURST
            while left > 0.0:
                start = clock(device)
                work()
                synchronise(device)
                took = clock(device) - start
                best[name] = min(best[name], took)
                left -= max(took, 1e-6)
        if turn and time.perf_counter() > end:
            break
    return best


def machine(device: torch.device) -> str:
    """Return where a table was taken."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    return f"{where}, {threads}, torch {torch.__version__}, Cheetah {cheetah.__version__}, float64"
