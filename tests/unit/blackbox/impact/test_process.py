"""Programs in their folders: limits, ends and what is left, tried on shell scripts."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from lume_diff.blackbox.impact import process
from lume_diff.blackbox.impact.process import TimedOutError, run_folder, run_program, sweep_folders
from lume_diff.errors import SimulatorError

pytestmark = pytest.mark.system


def script(folder: Path, text: str) -> Path:
    program = folder / "program.sh"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_steps_are_read_with_all_digits(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        'echo " i,t,<z>:            1   0.0000000000000000        0.0000000000000000"\n'
        'echo " zmin,zmax: 1 2"\n'
        'echo " i,t,<z>:            2   3.9999999999999999E-012   1.0893616185475064E-002"',
    )
    steps = run_program(program, tmp_path, 10.0)
    assert steps.start.tolist() == [0.0, 3.9999999999999999e-12]
    assert steps.mean_z.tolist() == [0.0, 1.0893616185475064e-02]


@pytest.mark.parametrize(
    "text,words,code",
    [("echo some words; exit 3", "exit code 3", 3), ("echo some words", "made no step", 0)],
)
def test_failures_show_the_end_of_the_log(tmp_path: Path, text: str, words: str, code: int) -> None:
    with pytest.raises(SimulatorError, match=rf"{words}; last lines of its log:\n  \| some words") as seen:
        run_program(script(tmp_path, text), tmp_path, None)
    assert (seen.value.exit_code, seen.value.log) == (code, "some words")


def test_what_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="the extra 'impact' is not installed")
    program = script(tmp_path, "sleep 300 & echo $! > child; wait")
    begin = time.monotonic()
    with pytest.raises(TimedOutError, match="timeout of 1 s"):
        run_program(program, tmp_path, 1.0)
    assert time.monotonic() - begin < 30.0  # far from the 300 s
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not is_running(child):
            break
        time.sleep(0.05)
    assert not is_running(child)


def test_folders_are_removed_after_failures_too() -> None:
    seen: list[Path] = []

    def fail() -> None:
        with run_folder() as folder:
            (folder / "file").write_text("text")
            seen.append(folder)
            raise ValueError("of mine")

    with pytest.raises(ValueError, match="of mine"):
        fail()
    assert not seen[0].exists()


def test_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    prefix = process._prefix()
    names = {"gone": f"{prefix}{ended.pid}-abc", "alive": f"{prefix}{os.getpid()}-abc", "other": "impact-t-else-1-a"}
    for name in names.values():
        (tmp_path / name).mkdir()
    sweep_folders()
    assert {path.name for path in tmp_path.iterdir()} == {names["alive"], names["other"]}
