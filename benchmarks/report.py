"""Run benchmarks and write docs/benchmarks.md with tables and pictures: what was measured where, when and with what.

    python benchmarks/report.py                     # all that take a minute or two
    python benchmarks/report.py lines models        # these
    python benchmarks/report.py --all               # the long ones too: hours
    python benchmarks/report.py --only-page         # the page anew, from what was measured before

What is not run keeps its earlier figures, each with its own date and machine, in docs/benchmarks/NAME.json. Every
script prints more than the page shows, and says by ``--help`` what it can be asked for.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _page import write_page
from _rows import FILE

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
STORE = DOCS / "benchmarks"
PACKAGES = (
    "torch",
    "cheetah-accelerator",
    "openpmd-beamphysics",
    "numpy",
    "xopt",
    "p4p",
    "accelerator-toolbox",
    "cpymad",
)
PEERS = {"gpsr": "gpsr", "lume_pva": "lume-pva"}


@dataclass(frozen=True)
class Plan:
    """How a script is run for the page.

    Attributes:
        options: of the command.
        is_quick: whether it takes no more than two minutes or so.
        peers: modules that it compares with if they are installed.
    """

    options: tuple[str, ...] = ()
    is_quick: bool = True
    peers: tuple[str, ...] = ()


PLANS = {
    "lines": Plan(("--seconds", "2")),
    "scaling": Plan(("--seconds", "1", "--png", str(DOCS / "images" / "benchmark_scaling.png"))),
    "models": Plan(),
    "particles": Plan(),
    "import_time": Plan(),
    "machine_files": Plan(),
    "facility": Plan(),
    "differences": Plan(("--cases", "1920", "--points", "60")),
    "workers": Plan(("--rounds", "3")),
    "reconstruction": Plan(("--epochs", "200"), peers=("gpsr",)),
    "ioc": Plan(is_quick=False, peers=("lume_pva",)),
    "calibration": Plan(("--likelihood", "moments"), is_quick=False),
    "prior_mean": Plan(is_quick=False),
    "view": Plan(is_quick=False),
}


def run(name: str, extra: tuple[str, ...]) -> None:
    """Run a script, and keep its rows with what they were measured with."""
    plan = PLANS.get(name, Plan())
    options = [*plan.options, *extra]
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        load, begun = os.getloadavg()[0], time.monotonic()
        command = [sys.executable, str(HERE / f"{name}.py"), *options]
        environment = {**os.environ, FILE: str(rows), "OMP_NUM_THREADS": "1"}
        print(f"== {name} {' '.join(options)}", flush=True)
        subprocess.run(command, env=environment, check=True)
        found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
        shown = [option for option in options if not option.startswith(str(DOCS))]
        measured = {**circumstances(plan), "load": [round(load, 1), round(os.getloadavg()[0], 1)]}
        measured |= {
            "seconds": round(time.monotonic() - begun),
            "command": f"benchmarks/{name}.py {' '.join(shown)}".strip(),
        }
    STORE.mkdir(exist_ok=True)
    (STORE / f"{name}.json").write_text(json.dumps({**measured, "rows": found}, indent=1) + "\n", encoding="utf-8")


def circumstances(plan: Plan) -> dict[str, Any]:
    """Return date, machine, versions, and the peers that are not here."""
    present = {found.metadata["Name"].lower(): found.version for found in importlib.metadata.distributions()}
    absent = [PEERS[module] for module in plan.peers if importlib.util.find_spec(module) is None]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "versions": {name: present[name] for name in PACKAGES if name in present},
        "absent": absent,
    }


def processor() -> str:
    """Return the name of the processor."""
    file = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
        if file.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = sorted(path.stem for path in HERE.glob("[!_]*.py") if path.stem != "report")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*every, []], help=", ".join(every))
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--only-page", action="store_true", help="run nothing")
    parser.add_argument("--with", dest="extra", default="", help="further options of the one script that is named")
    options = parser.parse_args()
    if options.extra and len(options.names) != 1:
        parser.error("--with goes with one name")
    quick = [name for name in every if options.all or PLANS.get(name, Plan()).is_quick]
    for name in [] if options.only_page else options.names or quick:
        run(name, tuple(options.extra.split()))
    stored = {path.stem: json.loads(path.read_text()) for path in sorted(STORE.glob("*.json"))}
    order = [name for name in (*PLANS, *every) if name in stored]
    write_page(
        DOCS, {name: stored[name] for name in dict.fromkeys(order)}, [name for name in every if name not in stored]
    )


if __name__ == "__main__":
    main()
