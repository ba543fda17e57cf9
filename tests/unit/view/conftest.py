"""What tests of the view share: readings, frames, and a magnet that is followed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.view.latest import Latest
from lume_diff.view.model_source import ModelSource
from tests.unit.ioc.conftest import Magnet


def good(value: Any, at: float = 100.0, cycle: int = 1) -> Reading:
    """Return a reading that holds."""
    return Reading(value, at, cycle)


def bad(value: Any, at: float = 100.0, message: str = "not connected") -> Reading:
    """Return a reading that does not."""
    return Reading(value, at, 1, Severity.INVALID, Condition.DISCONNECTED, message)


def frame_of(**readings: Reading) -> Any:
    """Return a frame."""
    latest = Latest()
    latest.take(readings)
    return latest.frame()


def eventually(holds: Callable[[], bool], patience: float = 20.0) -> bool:
    """Wait until something holds; tells whether it does."""
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def source() -> Iterator[ModelSource]:
    """Return a magnet that is followed and can be written to."""
    with ModelSource(Magnet(), writable=True) as made:
        yield made.wait_ready(60.0)


@pytest.fixture
def written(source: ModelSource) -> Callable[..., Exception | None]:
    """Return what writes to the magnet, waits, and returns what went wrong."""

    def write(**values: Any) -> Exception | None:
        outcome: list[Exception | None] = []
        source.write(values, "test", outcome.append)
        assert eventually(lambda: bool(outcome)), "the write was never answered"
        return outcome[0]

    return write
