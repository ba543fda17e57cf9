"""``lume-diff optimize`` on the example machine behind its process variables, with the same model as the prior mean."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lume_diff
from tests.system.ioc.conftest import Place

pytest.importorskip("xopt")

pytestmark = pytest.mark.slow

KNOBS = ["QUAD:DIAG0:190:BCTRL", "QUAD:DIAG0:210:BCTRL"]
SIZE = "OTRS:DIAG0:420:XRMS"
PREFIX = "T:"


def test_a_served_machine_is_optimised_over_channel_access(place: Place, tmp_path: Path) -> None:
    protocol = "ca"
    machine = lume_diff.example_machine()
    place.ready(place.start(str(machine), "--prefix", PREFIX, "--protocol", protocol))
    before = lume_diff.load_model(machine).get([SIZE, *KNOBS])
    ranges = {name: [float(before[name]) - 1.0, float(before[name]) + 1.0] for name in KNOBS}
    config = {
        "model": {"machine": str(machine)},
        "pvs": {
            "setpoints": {name: PREFIX + name for name in KNOBS},
            "outputs": {SIZE: PREFIX + SIZE},
            "readbacks": {KNOBS[0]: PREFIX + KNOBS[0].replace("BCTRL", "BACT")},
            "protocol": protocol,
        },
        "variables": ranges,
        "objective": {"name": "size", "output": SIZE, "transform": "log10"},
        "start": 2,
        "steps": 3,
    }
    (tmp_path / "opt.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "lume_diff.cli", "optimize", "opt.yaml", "--out", "result"],
        cwd=tmp_path, env={**os.environ, **place.settings}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "result" / "evaluations_with_the_model.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5
    assert min(float(row["size"]) for row in rows) < float(before[SIZE].log10())
    best = min(rows, key=lambda row: float(row["size"]))
    left = place.pv("get", "--json", "--protocol", protocol, *(PREFIX + name for name in KNOBS))
    found = [json.loads(line)["value"] for line in left.stdout.splitlines()]
    assert found == pytest.approx([float(best[name]) for name in KNOBS])
