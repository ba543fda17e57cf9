"""Time against the number of elements and of particles, CheetahModel and Cheetah itself in one run, as a picture.

    python benchmarks/scaling.py [--png bench_output/scaling.png] [--seconds 3] [--device cuda]

A FODO line with up to 20 knobs and a 200 x 200 screen. The floor is what memory allows: the time to read all seven
coordinates of every particle once and to write them once, at the bandwidth of a large copy in the same run.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from _fodo import D, Work, bunch, clock, fodo_line, in_turns, machine, raw_knobs, strength, synchronise
from _rows import Row, note

import lume_diff as ld

#: What is timed, by name: colour, marker, line.
STYLES = {
    "Cheetah, forward and backward": ("#b5530a", "s", "--"),
    "Cheetah, forward": ("#b5530a", "o", "-"),
    "ours, forward and backward": ("#1f5fa8", "s", "--"),
    "ours, forward": ("#1f5fa8", "o", "-"),
    "ours, beam size only, forward": ("#3d8b5f", "^", ":"),
}


def works(elements: int, particles: int, device: torch.device) -> dict[str, Work]:
    """Return what is timed for one line and one bunch."""
    segment, beam = fodo_line(elements, screen=True).to(device), bunch(particles).to(device)
    names = [f"Q{cell}.k1" for cell in range(min(20, (elements - 1) // 3))]
    model = ld.CheetahModel(
        segment.clone(), beam, controls=names, outputs=["SCR1.image", "final.sigma_x"], device=device
    )
    knobs = {
        name: torch.tensor(strength(cell), dtype=D, device=device, requires_grad=True)
        for cell, name in enumerate(names)
    }
    values = {name: knob.detach().clone() for name, knob in knobs.items()}

    def raw(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        raw_knobs(segment, inputs)
        segment.track(beam)
        return segment.SCR1.reading.square().sum()

    def ours(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(inputs, outputs=["SCR1.image"])["SCR1.image"].square().sum()

    return {
        "Cheetah, forward": lambda: raw(values),
        "Cheetah, forward and backward": lambda: raw(knobs).backward(),
        "ours, forward": lambda: ours(values),
        "ours, forward and backward": lambda: ours(knobs).backward(),
        "ours, beam size only, forward": lambda: model(values, outputs=["final.sigma_x"])["final.sigma_x"],
    }


def bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Return the bytes that a large copy reads and writes in a second."""
    source = torch.ones(megabytes * 2**20 // 8, dtype=D, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        synchronise(device)
        start = clock(device)
        target.copy_(source)
        synchronise(device)
        best = min(best, clock(device) - start)
    return 2 * source.nbytes / best


def measure(
    title: str, counts: Sequence[int], make: Callable[[int], dict[str, Work]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Return the times [s] of each piece of work for each count, and print them."""
    found: dict[str, list[float]] = {name: [] for name in STYLES}
    print(f"\n{title:>12}  {'Cheetah [ms]':>24}  {'ours [ms]':>20}  {'faster':>18}  {'beam size [ms]':>14}")
    print(f"{'':12}  {'forward':>12}{'both':>12}  {'forward':>10}{'both':>10}  {'forward':>9}{'both':>9}")
    for count in counts:
        times = in_turns(make(count), device, seconds)
        for name in STYLES:
            found[name].append(times[name])
        raw, raw_both = times["Cheetah, forward"], times["Cheetah, forward and backward"]
        mine, mine_both = times["ours, forward"], times["ours, forward and backward"]
        for what, own, other in (("forward", mine, raw), ("forward and backward", mine_both, raw_both)):
            note(Row(f"time against {title}", f"{count} {title}, {what}", 1e3 * own, "ms", "Cheetah", 1e3 * other))
        print(
            f"{count:12}  {1e3 * raw:12.2f}{1e3 * raw_both:12.2f}  {1e3 * mine:10.2f}{1e3 * mine_both:10.2f}"
            f"  {raw / mine:7.1f} x{raw_both / mine_both:7.1f} x  {1e3 * times['ours, beam size only, forward']:14.3f}",
            flush=True,
        )
    return found


def draw(panels: Sequence[tuple[str, str, Sequence[int], dict[str, list[float]], list[float]]], png: Path) -> None:
    """Draw panels of title, axis label, counts, times [s] by name, and floor [s]."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(11.5, 5.0), sharey=True, layout="constrained")
    for ax, (title, label, counts, times, floor) in zip(axes, panels, strict=True):
        for name, (colour, marker, line) in STYLES.items():
            face = colour if line == "-" else "white"
            ax.plot(counts, [1e3 * t for t in times[name]], line, color=colour, marker=marker, mfc=face, label=name)
        ax.plot(counts, [1e3 * t for t in floor], color="0.35", lw=1.0, label="memory bandwidth: read and write once")
        ax.fill_between(counts, [1e3 * t for t in floor], 1e-9, color="0.92", lw=0)
        top = times["Cheetah, forward and backward"]
        forward = zip(times["Cheetah, forward"], times["ours, forward"], strict=True)
        both = zip(top, times["ours, forward and backward"], strict=True)
        for count, height, (raw, mine), (raw_both, mine_both) in zip(counts, top, forward, both, strict=True):
            text = f"{raw / mine:.1f} | {raw_both / mine_both:.1f} ×"
            place = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "va": "bottom"}
            ax.annotate(text, (count, 1e3 * height), **place, fontsize=8, color="0.25")
        ax.text(
            0.02,
            0.98,
            "numbers: times faster than Cheetah, forward | both ways",
            transform=ax.transAxes,
            va="top",
            fontsize=8,
            color="0.25",
        )
        ax.set(xscale="log", yscale="log", xlabel=label, title=title)
        ax.set_xticks(counts, [f"{count:,}".replace(",", " ") for count in counts])
        ax.minorticks_off()
        ax.margins(x=0.08)
        ax.grid(which="major", color="0.88", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    every = [t for _, _, _, times, floor in panels for t in (*floor, *(s for row in times.values() for s in row))]
    axes[0].set(ylabel="time of a call [ms]", ylim=(0.6e3 * min(every), 5e3 * max(every)))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=150)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, default=Path("bench_output/scaling.png"))
    parser.add_argument("--seconds", type=float, default=3.0, help="how long to time each point")
    parser.add_argument("--elements", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    device = torch.device(options.device)

    speed = bandwidth(device)
    print(f"{machine(device)}; a large copy moves {speed / 1e9:.1f} GB/s")

    def floor(particles: int) -> float:
        return 2 * 7 * 8 * particles / speed

    along = measure("elements", options.elements, lambda n: works(n, 10_000, device), device, options.seconds)
    across = measure("particles", options.particles, lambda n: works(60, n, device), device, options.seconds)
    floors = [floor(10_000)] * len(options.elements), [floor(n) for n in options.particles]
    panels = [
        ("10 000 particles", "elements", options.elements, along, floors[0]),
        ("60 elements", "particles", options.particles, across, floors[1]),
    ]
    draw(panels, options.png)
    print(f"\npicture in {options.png}")


if __name__ == "__main__":
    main()
