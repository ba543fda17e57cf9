"""The live view under load: one page for a minute, twenty pages at once, and how soon a browser shows a page.

The example machine with 10 000 particles runs in a process of its own, a knob moves 15 times a second, and pages are
followed by clients that take and acknowledge everything, as browsers do; updates are limited to 12 a second here (10
unless told otherwise). What the model takes is compared between stretches with and without pages, in turn, in CPU time
of its process, because pages share the cores with it.

``python benchmarks/view.py [SECONDS] [PAGES]``
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from _rows import Row, note

import lume_diff as ld
from lume_diff.registry import every_plugin
from lume_diff.view.live_view import LiveView
from lume_diff.view.model_source import ModelSource

KNOB = "QUAD:DIAG0:190:BCTRL"
PANELS = ("Beamline", "Optics", "Screen", "PhaseSpace", "Knobs")
RATE, LIMIT = 15.0, 12.0  # [Hz] of the knob, and of updates at most
TITLE = "one page of five panels, 10 000 particles"
UPDATES, CROWD_UPDATES, SLOWED, LOADED = 10.0, 2.0, 1.05, 2.0  # what is wanted
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
TICK = os.sysconf("SC_CLK_TCK")


def memory() -> float:
    """Return what this process holds [MB]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu(pid: int) -> float:
    """Return the CPU time of a process [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


class Knob:
    """Move a knob all the time, and note what each evaluation took."""

    def __init__(self, source: ModelSource) -> None:
        self.source, self.seconds, self.done = source, [], 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._move, daemon=True)
        self._thread.start()

    def _move(self) -> None:
        number = 0
        runtime = self.source._server.runtime
        while not self._end.wait(1.0 / RATE):
            number += 1
            finished = threading.Event()
            self.source.write(
                {KNOB: 1.0 + 0.01 * (number % 50)}, "benchmark", lambda error, finished=finished: finished.set()
            )
            finished.wait(60.0)
            self.done += 1
            self.seconds.append(runtime.evaluated.seconds)

    def stop(self) -> None:
        """Leave it."""
        self._end.set()
        self._thread.join()


def clients(view: LiveView, count: int, seconds: float) -> subprocess.Popen:
    """Start pages in a process of their own."""
    script = Path(__file__).with_name("_view_clients.py")
    arguments = [sys.executable, str(script), view.url, str(count), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def stretch(view: LiveView, knob: Knob, pid: int, pages: int, seconds: float) -> dict:
    """Follow for some time with some pages; returns what it took."""
    process = clients(view, pages, seconds) if pages else None
    while view.pages < pages:
        time.sleep(0.05)
    time.sleep(2.0)  # until all is warm
    done, spent, begun, first = knob.done, cpu(pid), time.monotonic(), len(knob.seconds)
    memories = []
    while time.monotonic() - begun < seconds - (6.0 if pages else 0.0):
        time.sleep(0.5)
        memories.append(memory())
    cycles = knob.done - done
    found = {
        "cycles/s": cycles / (time.monotonic() - begun),
        "CPU per cycle [ms]": 1e3 * (cpu(pid) - spent) / max(1, cycles),
        "wall per cycle [ms]": 1e3 * statistics.median(knob.seconds[first:]),
        "memory": memories,
    }
    if process is not None:
        found["clients"] = json.loads(process.communicate(timeout=300)[0])
    return found


def main() -> None:
    """Measure and print."""
    logging.getLogger("bokeh").setLevel(logging.ERROR)  # it warns of every page that is closed
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    crowd = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    panels = [kind for kind in every_plugin("panels") if kind.__name__ in PANELS]
    machine = ld.load_model(ld.example_machine())
    with ModelSource(machine, writable=True, isolation="process") as source:
        source.wait_ready(120.0)
        pid = source._server.runtime._engine.pid
        with LiveView(source) as view:
            browser(view)
        with LiveView(source, panels=panels, rate=LIMIT) as view:
            knob = Knob(source)
            alone, seen = [], []
            for part in range(3):
                alone.append(stretch(view, knob, pid, 0, seconds / 6))
                seen.append(stretch(view, knob, pid, 1, seconds if part == 2 else seconds / 6 + 6.0))
            knob.stop()
            report(alone, seen, len(panels))
            many(view, source, pid, crowd, min(seconds, 30.0), f"{crowd} pages")
            many(view, source, pid, crowd, min(seconds, 15.0), f"{crowd} pages once more")


def report(alone: list[dict], seen: list[dict], panels: int) -> None:
    """Print what one page costs."""
    rate, size = seen[-1]["clients"][0]
    print(f"one page of {panels} panels: {rate:.1f} updates/s, {size / 1e6:.2f} MB/s")
    note(Row(TITLE, "updates", rate, "Hz", wanted=UPDATES, more=True))
    half = len(seen[-1]["memory"]) // 2
    first, second = (statistics.mean(part) for part in (seen[-1]["memory"][:half], seen[-1]["memory"][half:]))
    print(f"memory of the server: {first:.1f} MB in the first half, {second:.1f} MB in the second")
    note(Row(TITLE, f"memory added from the first to the second half of {half:.0f} s", second - first, "MB"))
    for key in ("CPU per cycle [ms]", "wall per cycle [ms]", "cycles/s"):
        without, beside = (statistics.median(one[key] for one in stretches) for stretches in (alone, seen))
        print(
            f"model, {key}: {without:.2f} without pages, {beside:.2f} with one: {100 * (beside / without - 1):+.1f} %"
        )
        if key.startswith("CPU"):
            note(Row(TITLE, "CPU time of a cycle of the model", beside, "ms", "without pages", without, SLOWED))


def many(view: LiveView, source: ModelSource, pid: int, count: int, seconds: float, title: str) -> None:
    """Print what many pages get, and what is left when they are closed."""
    before, knob = memory(), Knob(source)
    found = stretch(view, knob, pid, count, seconds)
    knob.stop()
    rates = sorted(rate for rate, _ in found["clients"])
    print(f"{title}: {rates[0]:.1f} to {rates[-1]:.1f} updates/s each; {found['memory'][-1]:.0f} MB with them")
    note(Row(title, "updates of the slowest", rates[0], "Hz", wanted=CROWD_UPDATES, more=True))
    end = time.monotonic() + 60.0
    while view.pages and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(2.0)
    print(f"closed: {view.pages} pages left, {memory():.0f} MB after {before:.0f} MB before")
    note(Row(title, "pages left when all are closed", view.pages, wanted=0.0))
    note(Row(title, "memory added when all are closed", memory() - before, "MB"))


def browser(view: LiveView, rounds: int = 4) -> None:
    """Print how soon a real browser has loaded the page of all panels, and shows the first update of them."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("page in a browser: not measured, playwright is missing")
        return
    if not Path(CHROMIUM).exists():
        print(f"page in a browser: not measured, {CHROMIUM} is missing")
        return
    loaded, live = [], []
    with sync_playwright() as running, tempfile.TemporaryDirectory() as profile:
        context = running.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        for _ in range(rounds):
            page, begun = context.new_page(), time.monotonic()
            page.goto(view.url)
            loaded.append(time.monotonic() - begun)
            page.get_by_text("● live").wait_for()
            live.append(time.monotonic() - begun)
            page.close()
            time.sleep(5.0)  # until the next page is ready
        context.close()
    for what, seconds, wanted in (("loaded", loaded, LOADED), ("shows its first update", live, None)):
        print(
            f"page in a browser, {what}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        )
        note(Row("page of all panels in a browser", what, statistics.median(seconds), "s", wanted=wanted))


if __name__ == "__main__":
    main()
