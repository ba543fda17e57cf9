"""Commands that go on until they are told to end."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import lume_diff
from lume_diff.cli import app
from lume_diff.cli.stopping import until_stopped

WAITER = """
import time
from lume_diff.cli.stopping import until_stopped

with until_stopped() as stopped:
    print("waiting", flush=True)
    stopped.wait()
    print("stopping", flush=True)
    time.sleep(60.0)
"""


@pytest.mark.parametrize("first, second", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM)])
def test_the_first_signal_is_told_and_the_second_ends_the_process(first, second):
    with subprocess.Popen([sys.executable, "-c", WAITER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(20.0) == 128 + second


def test_signals_are_as_they_were_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with until_stopped() as stopped:
        assert not stopped.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stopped.is_set()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_timeout_of_the_file_that_a_thread_cannot_keep_names_the_change(tmp_path):
    pytest.importorskip("p4p")
    example = lume_diff.example_machine()
    command = ["serve", str(example), "--set", "ioc.timeout=5", "--isolation", "thread"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "5 s that ioc.timeout" in done.output
    assert "add --set ioc.timeout=null" in done.output
    left = lume_diff.load_model(example, changes={"ioc.timeout": None})
    assert left.origin.ioc.timeout is None
