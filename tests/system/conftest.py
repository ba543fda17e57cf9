"""What tests of real processes share: a time limit, looks at processes, and pools that leave none behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lume_diff.blackbox.runners.pool import WorkerPool
from lume_diff.blackbox.simulator import Simulator

Make = Callable[..., Any]
LIMIT = 180.0  # [s] for a test, where its file says no other


@pytest.fixture
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that takes too long, whatever it waits for."""
    limit = getattr(request.module, "LIMIT", LIMIT)

    def stop(*_: object) -> None:
        raise TimeoutError(f"the test took more than {limit:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def exists() -> Make:
    """Tell whether a process is there, be it as a zombie of ours."""

    def look(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return state[0] != "Z" or int(state[1]) == os.getpid()

    return look


@pytest.fixture(scope="session")
def children() -> Make:
    """Return the processes that a process has started."""

    def look(pid: int) -> list[int]:
        found = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for path in found for child in path.read_text().split()]

    return look


@pytest.fixture(scope="session")
def wait_until() -> Make:
    """Wait until something holds; tells whether it does in time."""

    def wait(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    return wait


@pytest.fixture
def pool_of(request: pytest.FixtureRequest, exists: Make) -> Iterator[Callable[..., WorkerPool]]:
    """Make pools, of the test file's ``Toy`` if nothing else is said.

    Afterwards their logs are shown if the test failed, and no process may be left.
    """
    pools: list[WorkerPool] = []

    def make(factory: Callable[[], Simulator] | None = None, workers: int = 2, **options: Any) -> WorkerPool:
        pools.append(WorkerPool(factory or request.module.Toy, workers, **options))
        return pools[-1]

    yield make
    pids = [pid for pool in pools for pid in pool.pids()]
    for pool in pools:
        for number, log in enumerate(pool.logs()):
            print(f"-- log of worker {number}\n{log}")
        pool.close()
    assert not [pid for pid in pids if exists(pid)]
