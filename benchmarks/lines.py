"""Speed of CheetahModel against Cheetah itself on a 60-element line, both timed in turns in one run.

    python benchmarks/lines.py [--particles 10000] [--seconds 5] [--device cuda]

Prints a table of times, ratios and goals. On the CPU one thread is used; on another device a second table gives the
ratio to the CPU.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import cheetah
import torch
from _fodo import D, Work, bunch, fodo_line, in_turns, machine, raw_knobs, strength
from _rows import Row, note

import lume_diff as ld

NAMES = [f"Q{cell}.k1" for cell in range(20)]


@dataclass
class Line:
    """A line of the table: the same quantity from Cheetah and from us, and by what factor we shall be faster."""

    label: str
    raw: Work
    ours: Work
    goal: float | None = None


class Raw:
    """Cheetah's own line: only the knobs that are passed are set, so that its cache keeps the maps of the others."""

    def __init__(self, screen: bool, beam: cheetah.Beam, device: torch.device) -> None:
        self.line, self.beam = fodo_line(60, screen).to(device), beam
        self.clones: dict[tuple[str, ...], cheetah.Segment] = {}

    def track(self, knobs: dict[str, torch.Tensor]) -> tuple[cheetah.Segment, cheetah.Beam]:
        """Set knobs and track; every choice of knobs has a line of its own."""
        segment = self.clones.get(tuple(knobs))
        if segment is None:
            segment = self.clones[tuple(knobs)] = self.line.clone()
        raw_knobs(segment, knobs)
        return segment, segment.track(self.beam)


def images(particles: int, device: torch.device) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """Return Cheetah's and our image of the screen, as functions of knobs."""
    beam = bunch(particles).to(device)
    cheetahs = Raw(True, beam, device)
    model = ld.CheetahModel(cheetahs.line.clone(), beam, controls=NAMES, outputs=["SCR1.image"], device=device)

    def raw(knobs: dict[str, torch.Tensor]) -> torch.Tensor:
        segment, _ = cheetahs.track(knobs)
        return segment.SCR1.reading

    def ours(knobs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(knobs, outputs=["SCR1.image"])["SCR1.image"]

    return raw, ours


def sizes(particles: int, device: torch.device) -> tuple[Callable[..., torch.Tensor], ...]:
    """Return the beam size behind the line without its screen: Cheetah's from particles, its from moments, and ours."""
    beam = bunch(particles).to(device)
    from_particles, from_moments = Raw(False, beam, device), Raw(False, beam.as_parameter_beam(), device)
    model = ld.CheetahModel(from_particles.line.clone(), beam, controls=NAMES, outputs=["final.sigma_x"], device=device)
    population = (1.0 - 1.0 / particles) ** 0.5  # Cheetah divides by n - 1

    def ours(knobs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(knobs, outputs=["final.sigma_x"])["final.sigma_x"]

    return (
        lambda knobs: from_particles.track(knobs)[1].sigma_x * population,
        lambda knobs: from_moments.track(knobs)[1].sigma_x * population,
        ours,
    )


def difference(raw: torch.Tensor, ours: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    return ((ours - raw).abs().max() / raw.abs().max()).item()


def table(particles: int, batch: int, device: torch.device, seconds: float) -> dict[str, float]:
    """Measure and print one table; return our own times [s]."""
    knobs = {
        name: torch.tensor(strength(cell), dtype=D, device=device, requires_grad=True)
        for cell, name in enumerate(NAMES)
    }
    few, last = {name: knobs[name] for name in NAMES[:5]}, {name: knobs[name] for name in NAMES[15:]}
    generator = torch.Generator().manual_seed(0)
    spread = 1.0 + 0.1 * torch.randn(5, batch, generator=generator, dtype=D).to(device)
    settings = {name: strength(cell) * spread[cell] for cell, name in enumerate(NAMES[:5])}

    raw_image, our_image = images(particles, device)
    raw_size, raw_moments, our_size = sizes(particles, device)
    raw_few, our_few = sizes(particles, device)[::2]
    rows = [
        Line("image, 20 knobs, forward", lambda: raw_image(knobs), lambda: our_image(knobs), 12.0),
        Line(
            "image, 20 knobs, forward and backward",
            lambda: raw_image(knobs).square().sum().backward(),
            lambda: our_image(knobs).square().sum().backward(),
            10.0,
        ),
        Line(
            "image, 5 knobs, forward and backward",
            lambda: raw_image(few).square().sum().backward(),
            lambda: our_image(few).square().sum().backward(),
        ),
        Line(
            "image, the last 5 of 20 knobs, both ways",
            lambda: raw_image(last).square().sum().backward(),
            lambda: our_image(last).square().sum().backward(),
        ),
        Line("beam size, no screen, forward", lambda: raw_size(knobs), lambda: our_size(knobs), 40.0),
        Line(
            "beam size, no screen, forward and backward",
            lambda: raw_size(knobs).backward(),
            lambda: our_size(knobs).backward(),
        ),
        Line("beam size, Cheetah's from moments too", lambda: raw_moments(knobs), lambda: our_size(knobs)),
        Line(
            f"beam size, batch of {batch} x 5 knobs, forward",
            lambda: raw_few(settings),
            lambda: our_few(settings),
            10.0,
        ),
        Line(
            f"image, batch of {batch} x 5 knobs, forward",
            lambda: raw_image(settings),
            lambda: our_image(settings),
            10.0,
        ),
    ]
    print(f"60 elements, {particles} particles; {machine(device)}")
    with torch.no_grad():
        found = difference(raw_image(knobs), our_image(knobs)), difference(raw_few(settings), our_few(settings))
    print(f"the image is the same to {found[0]:.0e}, the beam size to {found[1]:.0e}\n")
    print(f"{'':44}  {'Cheetah [ms]':>12}  {'ours [ms]':>10}  {'faster':>8}  {'goal':>6}")
    mine = {}
    for row in rows:
        times = in_turns({"raw": row.raw, "ours": row.ours}, device, seconds)
        title = f"60 elements, {particles} particles, {device.type}"
        wanted = None if row.goal is None else 1.0 / row.goal
        note(
            Row(
                title,
                row.label,
                1e3 * times["ours"],
                "ms",
                f"Cheetah {cheetah.__version__}",
                1e3 * times["raw"],
                wanted,
            )
        )
        mine[row.label] = times["ours"]
        goal = "" if row.goal is None else f"{row.goal:.0f} x"
        print(
            f"{row.label:44}  {1e3 * times['raw']:12.2f}  {1e3 * times['ours']:10.3f}"
            f"  {times['raw'] / times['ours']:6.1f} x  {goal:>6}",
            flush=True,
        )
    return mine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=512, help="how many settings of 5 knobs at once")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to time each row")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = torch.device(options.device)
    here = table(options.particles, options.batch, device, options.seconds)
    if device.type != "cpu":
        print()
        cpu = table(options.particles, options.batch, torch.device("cpu"), options.seconds)
        print(f"\n{'ours':44}  {'CPU / ' + device.type:>12}")
        for label, seconds in here.items():
            print(f"{label:44}  {cpu[label] / seconds:10.1f} x")


if __name__ == "__main__":
    main()
