"""The page of the benchmarks: tables, a picture of all ratios, and what was not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from _rows import Row

TIMES = ("s", "ms", "us")
#: Scripts that compare with other packages; the others compare with a part of ours.
AGAINST_OTHERS = ("lines", "particles", "reconstruction", "ioc")
#: What is a floor, and nothing that anybody could use instead.
FLOORS = ("bare p4p",)
HEAD = """\
# Benchmarks

What lume_diff costs beside what it replaces, and whether its promises hold. Both sides of a ratio are measured in turns
in one run: servers and workers by the clock, all others on one thread and in CPU time, to which other programs on the
machine add little. `make bench` measures on your machine and writes this page; `benchmarks/` has the scripts, which say
more.

"wanted" is a goal that was set before anything was measured; **a goal that is missed is in bold.**
"""


def write_page(docs: Path, stored: Mapping[str, dict[str, Any]], missing: Sequence[str]) -> None:
    """Write ``benchmarks.md`` and its picture.

    Args:
        docs: folder of the documents.
        stored: what was measured, by the name of the script.
        missing: names of the scripts that have not been run.
    """
    parts = [HEAD]
    pictured = {name: one for name, one in stored.items() if name in AGAINST_OTHERS}
    compared = {
        name: [row for row in rows_of(one) if row.peer and row.peer not in FLOORS and row.unit in TIMES]
        for name, one in pictured.items()
    }
    if any(compared.values()):
        draw(compared, docs / "images" / "benchmark_ratios.svg")
        parts.append(
            "![How many times as fast as Cheetah, ParticleGroup, gpsr and lume-pva](images/benchmark_ratios.svg)\n"
        )
    common = circumstances(next(iter(stored.values()))) if stored else ""
    parts.append(f"{common}\n")
    parts += [section(docs, name, one, common) for name, one in stored.items()]
    if missing:
        lines = "\n".join(f"- `benchmarks/{name}.py`: {summary(name)}" for name in missing)
        parts.append(
            f"## Not measured\n\nThese take long, or are new; `python benchmarks/report.py NAME` runs one.\n\n{lines}\n"
        )
    (docs / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


def rows_of(one: Mapping[str, Any]) -> list[Row]:
    """Return the rows of what was measured."""
    return [Row(**row) for row in one["rows"]]


def summary(name: str) -> str:
    """Return the first sentence of what a script says of itself."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    return " ".join(text.split("\n\n")[0].split())


def circumstances(one: Mapping[str, Any]) -> str:
    """Return when, where and with what something was measured."""
    versions = ", ".join(f"{package} {version}" for package, version in one["versions"].items())
    return f"*{one['date']}, {one['machine']}; {versions}.*"


def section(docs: Path, name: str, one: Mapping[str, Any], common: str) -> str:
    """Return what is said of one script; of its circumstances what differs from those at the head of the page."""
    low, high = one["load"]
    lines = [f"## {heading(name)}", "", summary(name), ""]
    if circumstances(one) != common:
        lines += [circumstances(one), ""]
    lines += [f"`{one['command']}` took {one['seconds']} s; the load was {low} at its start and {high} at its end.", ""]
    if one["absent"]:
        lines += [f"Not installed, and so not compared with: {', '.join(one['absent'])}.", ""]
    picture = docs / "images" / f"benchmark_{name}.png"
    if picture.exists():
        lines += [f"![{summary(name)}](images/{picture.name})", ""]
    for title, rows in groupby(rows_of(one), key=lambda row: row.table):
        lines += [table(title, list(rows)), ""]
    return "\n".join(lines)


def heading(name: str) -> str:
    """Return what a script is called on the page."""
    return "IOC" if name == "ioc" else name.replace("_", " ").capitalize()


def table(title: str, rows: Sequence[Row]) -> str:
    """Return the rows of one table."""
    if any(row.peer for row in rows):
        lines = [f"| {title} | ours | beside | its value | ratio | wanted |", "|---|---:|---|---:|---:|---:|"]
    else:
        lines = [f"| {title} | value | wanted |", "|---|---:|---:|"]
    for row in rows:
        cells = [row.what, amount(row.value, row.unit)]
        if any(other.peer for other in rows):
            cells += [row.peer, amount(row.peer_value, row.unit), relation(row.ratio, row.unit)]
        cells.append(goal(row))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def amount(value: float | None, unit: str) -> str:
    """Return a value with its unit, to three digits."""
    if value is None or value != value:
        return ""
    digits = f"{value:.0f}" if abs(value) >= 100.0 else f"{value:.3g}"
    return f"{digits} {unit}".strip().replace("us", "µs")


def relation(ratio: float | None, unit: str) -> str:
    """Return a ratio in words that say which side is better."""
    if ratio is None:
        return ""
    if unit in TIMES:
        return f"{1.0 / ratio:.3g} × faster" if ratio < 1.0 else f"{ratio:.3g} × the time"
    return f"{ratio:.3g} ×"


def goal(row: Row) -> str:
    """Return what is wanted; in bold where it is missed."""
    if row.wanted is None:
        return ""
    if not row.peer:
        text = f"{'≥' if row.more else '≤'} {amount(row.wanted, row.unit)}"
    elif row.unit in TIMES and row.wanted < 1.0:
        text = f"≥ {relation(row.wanted, row.unit)}"
    else:
        text = f"{'≥' if row.more else '≤'} {relation(row.wanted, row.unit)}"
    return text if row.is_met else f"**{text}**"


def draw(compared: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Draw every ratio of times as a dot on a logarithmic axis, with its goal."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lume_diff"})
    shown = {name: [row for row in rows if row.ratio] for name, rows in compared.items() if rows}
    count = sum(map(len, shown.values())) + len(shown)
    figure, ax = plt.subplots(figsize=(9.0, 0.6 + 0.2 * count), layout="constrained")
    place, labels = 0, []
    for name, rows in shown.items():
        ax.text(
            0.0,
            place,
            f" {name.replace('_', ' ')}",
            weight="bold",
            va="center",
            fontsize=9,
            transform=ax.get_yaxis_transform(),
        )
        place += 1
        for row in rows:
            speed = 1.0 / row.ratio if row.ratio else 1.0
            colour = "#b5530a" if row.is_met is False else "#1f5fa8"
            ax.plot([1.0, speed], [place, place], color=colour, lw=1.2, alpha=0.5)
            ax.plot(speed, place, "o", color=colour, ms=5)
            if row.wanted is not None:
                ax.plot(1.0 / row.wanted, place, "|", color="0.2", ms=9, mew=1.6)
            labels.append((place, f"{row.what}, {row.table}" if len(row.what) < 30 else row.what))
            place += 1
    ax.axvline(1.0, color="0.3", lw=0.8)
    ax.set_yticks([at for at, _ in labels], [text[:70] for _, text in labels], fontsize=7)
    ax.set(xscale="log", ylim=(place - 0.5, -0.8), xlabel="times as fast as what it is compared with   (| goal)")
    ax.grid(axis="x", color="0.9", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    figure.savefig(file, metadata={"Date": None})
