"""Control-software test as facilities run it nightly: Badger, without a screen, optimises a served machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NIGHTLY = Path(__file__).parents[4] / "docs" / "examples" / "badger" / "nightly.py"

pytest.importorskip("p4p")
pytest.importorskip("caproto")
pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.usefixtures("machine", "time_limit"),
    pytest.mark.skipif(find_spec("badger") is None, reason="badger-opt is not installed"),
]


def test_badger_optimises_the_machine_through_its_process_variables(console):
    console.put({"M:current": 0.0, "M:gap": 0.9})
    done = subprocess.run(
        [sys.executable, str(NIGHTLY), "M:", "ca", "40"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "QT_QPA_PLATFORM": "offscreen"},
        capture_output=True,
        text=True,
        timeout=150.0,
    )
    assert done.returncode == 0, done.stderr
    best = json.loads(done.stdout.splitlines()[-1])
    assert best["points"] == 40
    assert best["miss"] < 0.05
    assert best["current"] / best["gap"] == pytest.approx(8.0, abs=best["miss"] + 1e-6)
