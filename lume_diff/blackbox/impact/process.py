"""One run of the executable in a folder of its own: watched, limited in time, and never left behind."""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import shutil
import socket
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lume_diff.errors import SimulatorError

_LOG = "impact.log"
_TAIL, _TAIL_LINES = 4000, 20
_STEP = re.compile(rb"i,t,<z>:\s*(\d+)\s+(\S+)\s+(\S+)")


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Lend a new folder, which is removed whatever happens."""
    folder = tempfile.mkdtemp(prefix=f"{_prefix()}{os.getpid()}-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_folders() -> None:
    """Remove the folders of processes of this machine that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        owner = folder.name.removeprefix(_prefix()).partition("-")[0]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, OSError):
            continue


def _prefix() -> str:
    return f"impact-t-{re.sub('[^A-Za-z0-9_.]', '_', socket.gethostname())}-"


class TimedOutError(SimulatorError):
    """A run that did not end in time."""


@dataclass(frozen=True)
class Steps:
    """The steps of a run, as the executable printed them.

    Attributes:
        start: time at which each began [s].
        mean_z: of the bunch, in the middle of the step before [m].
    """

    start: np.ndarray
    mean_z: np.ndarray


def run_program(program: Path, folder: Path, timeout: float | None) -> Steps:
    """Run the executable in a folder that holds its input, and return its steps.

    Args:
        program: the executable, or a script that starts it.
        folder: with ``ImpactT.in`` and what it names.
        timeout: how long it may take [s], None for ever. What it started is ended with it.

    Raises:
        TimedOutError: if it takes longer.
        SimulatorError: if it fails; with the end of what it printed.
    """
    log = folder / _LOG
    with open(log, "wb") as file:
        # In the group of this process: whoever ends that, ends this too.
        process = subprocess.Popen(
            [str(program)], cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        if timeout is not None:
            _limit_processor_time(process.pid, timeout)
        code = _wait(process, timeout)
    except subprocess.TimeoutExpired:
        _end(process)
        raise failed(f"IMPACT-T did not end within the timeout of {timeout:g} s", folder, kind=TimedOutError) from None
    except BaseException:
        _end(process)
        raise
    if code != 0:
        raise failed(f"IMPACT-T ended with exit code {code}", folder, code)
    found = np.array([match.groups()[1:] for match in _STEP.finditer(log.read_bytes())], dtype=float).reshape(-1, 2)
    if not len(found):
        raise failed("IMPACT-T made no step", folder, code)
    return Steps(found[:, 0], found[:, 1])


def failed(
    what: str, folder: Path, code: int | None = None, kind: type[SimulatorError] = SimulatorError
) -> SimulatorError:
    """Return the error for a run, with the end of what the executable printed.

    Args:
        what: went wrong.
        folder: of the run.
        code: with which it ended.
        kind: of error.
    """
    log = _tail(folder / _LOG)
    error = kind(f"{what}; last lines of its log:\n{textwrap.indent(log, '  | ')}" if log else what)
    error.__dict__.update(what=what, log=log, exit_code=code)
    return error


def _wait(process: subprocess.Popen[bytes], timeout: float | None) -> int:
    """Wait for the end without asking for it time and again, where the system can tell."""
    if timeout is not None and hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            descriptor = os.pidfd_open(process.pid)
            try:
                ended, _, _ = select.select([descriptor], [], [], timeout)
            finally:
                os.close(descriptor)
            if not ended:
                raise subprocess.TimeoutExpired(process.args, timeout)
            return process.wait()
    return process.wait(timeout)


def _limit_processor_time(pid: int, timeout: float) -> None:
    """Let the kernel end the run if nobody is there to do it."""
    with contextlib.suppress(ImportError, AttributeError, OSError, ValueError):
        import resource

        seconds = math.ceil(timeout + 1.0) * (os.cpu_count() or 1)
        resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    process.kill()
    process.wait()


def _tail(log: Path) -> str:
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:])
