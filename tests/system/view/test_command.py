"""``lume-diff view`` in a process of its own, with the example machine: a knob moves the screen and the envelope."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

pytest.importorskip("panel")

import lume_diff as ld
from tests.unit.view.conftest import eventually

pytestmark = [pytest.mark.system, pytest.mark.slow]
QUAD, CORRECTOR = "QUAD:IN20:121:BCTRL", "XCOR:IN20:221:BCTRL"
TOKEN = "correct horse battery staple"
_PATIENCE = 170.0  # [s]

#: Sums up the lines that are drawn along s, so that a change of any shows; 0 before they are there.
_DRAWN = """() => {
  let sum = 0;
  for (const view of Bokeh.index.all_views()) {
    const source = view.model.data_source;
    if (!source || !view.glyph || view.glyph.model.type !== "Line" || !("function_x" in source.data)) continue;
    for (const column of Object.values(source.data))
      for (const value of column) if (isFinite(value)) sum += Number(value);
  }
  return sum;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start the command; returns the process and where its page is."""
    folder = tmp_path_factory.mktemp("view")
    (folder / "token").write_text(TOKEN + "\n")
    log = folder / "log"
    command = [sys.executable, "-m", "lume_diff.cli", "view", str(ld.example_machine()), "--isolation", "thread"]
    command += ["--port", "0", "--write", "--token-file", str(folder / "token")]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=out, stderr=out)
    end = time.monotonic() + _PATIENCE
    while "\nready" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)
    yield process, re.search(r"http://\S+", log.read_text()).group()
    process.kill()
    process.wait()
    assert TOKEN not in log.read_text()


def facts(found) -> str:
    """Return what is written below the screen."""
    return found.page.get_by_text(re.compile(r"σx .* σy")).first.inner_text()


def test_a_knob_moves_screen_and_envelope_and_an_alarm_and_a_kill_show(server, window):
    process, url = server
    found = window(url)
    assert eventually(lambda: found.page.evaluate(_DRAWN) != 0)
    before, drawn = facts(found), found.page.evaluate(_DRAWN)
    found.unlock(TOKEN)
    found.says("writing is unlocked")
    found.knob(QUAD).fill("1.5")
    found.knob(QUAD).press("Enter")
    assert eventually(lambda: facts(found) != before)
    assert eventually(lambda: found.page.evaluate(_DRAWN) != drawn)
    found.knob(CORRECTOR).fill("0.006")
    found.knob(CORRECTOR).press("Enter")
    found.says(re.compile(r"BPMS:.*:X — ◆ MAJOR: .* is (above|below)"))
    process.kill()
    found.says("Nothing has come from the server since")
    found.wrong.clear()  # a browser complains that nobody answers
