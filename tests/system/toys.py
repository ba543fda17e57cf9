"""The simulator that the tests of processes run, and its points."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from lume_diff.blackbox.simulator import Simulator

# Tests are not importable in a worker, so their classes go there by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Toy(Simulator):
    """Multiply, after a nap if the inputs ask for one.

    Args:
        notes: file that takes a line for every simulator that is made, reset and closed, with its process.
    """

    def __init__(self, notes: Path | None = None) -> None:
        self.gain = 2.0
        self.notes = notes
        self.note("made")

    def note(self, what: str) -> None:
        if self.notes is not None:
            with self.notes.open("a") as file:
                file.write(f"{what} {os.getpid()}\n")

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        print("run at", inputs["a"])
        time.sleep(inputs.get("nap", 0.0))
        return {"y": self.gain * inputs["a"], "pid": os.getpid(), "echo": inputs.get("echo")}

    def reset(self) -> None:
        self.note("reset")

    def close(self) -> None:
        self.note("closed")


def noted(notes: Path, what: str) -> list[int]:
    """Return the processes of which something was noted, in order."""
    lines = [line.split() for line in notes.read_text().splitlines()]
    return [int(process) for happened, process in lines if happened == what]


def points(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"a": float(index), **more} for index in range(count)]


def values(results: Sequence[Any]) -> list[Any]:
    return [result["y"] for result in results]
