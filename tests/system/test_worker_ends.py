"""How worker processes end: with their parent, however it ends. Scripts of their own, so that they can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("time_limit"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

Make = Callable[..., Any]

ROOT = Path(__file__).parents[2]

_PREAMBLE = """
import ctypes, os, signal, subprocess, sys, threading, time
from lume_diff.blackbox.simulator import FunctionSimulator
from lume_diff.blackbox.runners.pool import WorkerPool

# Whoever runs the tests in the background, or with nohup, has these ignored, and the script would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def simulate(a, do=""):
    if "print" in do:
        print("from Python")
        os.write(2, b"from the system\\n")
        ctypes.CDLL(None).puts(b"from C")
        subprocess.run(["echo", "from a child"])
    if do == "child":
        subprocess.run(["sleep", "1000"])
    if do == "hang":
        time.sleep(1000)
    if do == "hang in C":
        ctypes.PyDLL(None).sleep(1000)
    if "fail" in do:
        raise ArithmeticError("broken")
    return 2.0 * a

def double():
    return FunctionSimulator(simulate, ["y"])
"""


def start(script: str, stdin: bool = False) -> tuple[subprocess.Popen[str], Callable[[str], list[str]]]:
    """Start a script that uses a pool; returns it, and a function that waits for what it says on a subject."""
    code = _PREAMBLE + textwrap.dedent(script)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", *(["-"] if stdin else ["-c", code])],
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # a process that forks has one thread
        start_new_session=True,
    )
    if stdin:
        assert process.stdin is not None
        process.stdin.write(code)
        process.stdin.close()
    lines: list[str] = []

    def said(subject: str) -> list[str]:
        assert process.stdout is not None
        while not any(line.startswith(subject + " ") for line in lines):
            line = process.stdout.readline()
            if not line:
                raise AssertionError(f"the script did not say {subject!r}:\n" + "".join(lines))
            lines.append(line)
        return next(line.split()[1:] for line in lines if line.startswith(subject + " "))

    return process, said


def rest(process: subprocess.Popen[str]) -> str:
    """Return what else a script says, when it has ended."""
    assert process.stdout is not None
    text = process.stdout.read()
    process.stdout.close()
    process.wait()
    return text


@pytest.mark.parametrize("stdin", [False, True], ids=["script", "standard input"])
def test_script_needs_no_guard_and_leaves_nothing_behind(stdin: bool, exists: Make) -> None:
    process, said = start(
        """
        pool = WorkerPool(double, 2)
        pool.start()
        say("workers", *pool.pids())
        say("result", *[r["y"] for r in pool.run_many([{"a": 1.0}, {"a": 2.0}], ["y"])])
        """,
        stdin,
    )
    assert said("result") == ["2.0", "4.0"]
    pids = said("workers")
    assert rest(process) == ""
    assert process.returncode == 0
    assert not [pid for pid in pids if exists(int(pid))]


def test_output_stays_off_the_terminal_but_in_errors() -> None:
    process, said = start(
        """
        pool = WorkerPool(double, 1)
        pool.run_many([{"a": 1.0, "do": "print"}], ["y"])
        (error,) = pool.run_many([{"a": 1.0, "do": "print, fail"}], ["y"])
        shown = ("broken", "from Python", "from the system", "from C", "from a child")
        say("done", *(text in str(error) for text in shown))
        """
    )
    assert said("done") == ["True"] * 5
    assert rest(process) == ""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda s: s.name)
@pytest.mark.parametrize("what", ["hang", "hang in C", "child"])
def test_no_orphan_when_the_parent_is_ended(
    how: signal.Signals, what: str, exists: Make, wait_until: Make, children: Make
) -> None:
    process, said = start(
        f"""
        pool = WorkerPool(double, 3)
        pool.start()
        say("workers", *pool.pids())
        try:
            pool.run_many([{{"a": 1.0, "do": {what!r}}}] * 2, ["y"])
        except KeyboardInterrupt:
            say("interrupted", pool.run_many([{{"a": 3.0}}], ["y"])[0]["y"])
        """
    )
    pids = [int(pid) for pid in said("workers")]
    assert wait_until(lambda: what != "child" or sum(len(children(pid)) for pid in pids) == 2)
    pids += [child for pid in pids for child in children(pid)]
    time.sleep(0.2)  # so that the run is under way
    os.killpg(process.pid, how)  # as a terminal does
    if how == signal.SIGINT:
        assert said("interrupted") == ["6.0"]
    rest(process)
    assert process.returncode == (0 if how == signal.SIGINT else -how)
    assert wait_until(lambda: not [pid for pid in pids if exists(pid)], 5.0)


def test_exit_does_not_wait_for_a_run_in_a_thread(exists: Make, wait_until: Make) -> None:
    process, said = start(
        """
        pool = WorkerPool(double, 1)
        pool.start()
        threading.Thread(target=pool.run_many, args=([{"a": 1.0, "do": "hang"}], ["y"]), daemon=True).start()
        time.sleep(0.3)
        say("workers", *pool.pids())
        """
    )
    (pid,) = said("workers")
    rest(process)
    assert wait_until(lambda: not exists(int(pid)), 5.0)


def test_forked_children_leave_the_workers_alone(exists: Make, wait_until: Make) -> None:
    script = """
        pool = WorkerPool(double, 2)
        pool.start()
        say("workers", *pool.pids())
        child = os.fork()
        if child == 0:
            say("child", pool.run_many([{"a": 4.0}], ["y"])[0]["y"])
            pool.close()
            sys.exit(0)
        os.waitpid(child, 0)
        say("parent", pool.run_many([{"a": 5.0}], ["y"])[0]["y"])
        sleeper = os.fork()
        if sleeper == 0:
            time.sleep(20)
            os._exit(0)
        say("sleeper", sleeper)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process, said = start(script)
    assert said("child") == ["8.0"]
    assert said("parent") == ["10.0"]
    said("sleeper")
    process.wait()
    assert wait_until(lambda: not [pid for pid in said("workers") if exists(int(pid))], 5.0)
    assert exists(int(said("sleeper")[0]))  # and that was not for want of the parent's descriptors
    os.kill(int(said("sleeper")[0]), signal.SIGKILL)
    rest(process)
