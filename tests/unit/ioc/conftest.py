"""A model that quenches, hangs, divides by zero or dies when asked to, and what listens to its runtime."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import pytest
import torch

from lume_diff.control.readings import Update
from lume_diff.ioc.engine import Engine
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.publisher import Publisher
from lume_diff.ioc.runtime import Runtime
from lume_diff.models import LUMEModel
from lume_diff.variables import EnumVariable, TorchNDVariable, TorchScalarVariable

QUENCH, HANG, DIE = 7.0, 8.0, 9.0


class Magnet(LUMEModel):
    """Field and gradient by current: the field fails at 7 A, hangs at 8 A, and takes its process along at 9 A."""

    def __init__(self) -> None:
        variables = [
            TorchScalarVariable(name="current", unit="A", default_value=0.0, value_range=(-10.0, 10.0)),
            TorchScalarVariable(name="gap", unit="m", default_value=0.1, value_range=(0.0, 1.0)),
            EnumVariable(name="polarity", options=["normal", "reversed"], default_value="normal"),
            TorchScalarVariable(name="field", unit="T", read_only=True, warning_range=(-5, 5), alarm_range=(-8, 8)),
            TorchScalarVariable(name="force", read_only=True),
            TorchNDVariable(name="map", shape=(40, 60), read_only=True),
        ]
        super().__init__(variables)

    def _run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        current = inputs["current"]
        if float(current) == QUENCH:
            raise RuntimeError("quench")
        while float(current) == HANG:
            pass
        if float(current) == DIE:
            os._exit(3)
        sign = 1.0 if inputs["polarity"] == "normal" else -1.0
        return {
            "field": 2.0 * sign * current,
            "force": current / inputs["gap"],
            "map": current * torch.ones(40, 60, dtype=current.dtype),
        }


class Log(Publisher):
    """Keep every update."""

    def __init__(self) -> None:
        self.updates: list[Update] = []

    def publish(self, update: Update) -> None:
        """Keep it."""
        self.updates.append(update)


class Console:
    """Write to a runtime, and wait."""

    def __init__(self, runtime: Runtime, log: Log) -> None:
        self.runtime, self.log = runtime, log

    def ask(self, **values: Any) -> Callable[[], tuple[Exception | None, int]]:
        """Write, and return what waits for the end."""
        finished, outcome = threading.Event(), []

        def done(error: Exception | None, cycle: int) -> None:
            outcome.append((error, cycle))
            finished.set()

        self.runtime.write(values, "test", done)

        def wait() -> tuple[Exception | None, int]:
            assert finished.wait(20.0), f"{values} was never answered"
            assert len(outcome) == 1
            return outcome[0]

        return wait

    def write(self, **values: Any) -> Exception | None:
        """Write, wait, and return what went wrong."""
        return self.ask(**values)()[0]

    def __getitem__(self, name: str) -> Any:
        return self.runtime.reading(name)


# A process of its own finds no tests to import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def magnet() -> Magnet:
    """Return the model."""
    return Magnet()


@pytest.fixture
def console() -> Iterator[Callable[..., Console]]:
    """Return what starts a runtime; all are stopped at the end."""
    started: list[Runtime] = []

    def begin(engine: Engine, ordered: bool = False) -> Console:
        names, log = list(engine.variables), Log()
        runtime = Runtime(engine, names, LimitStore(engine.variables, ["field", "current"]), ordered)
        runtime.add(log)
        runtime.start()
        started.append(runtime)
        assert runtime.first_cycle.wait(60.0)
        return Console(runtime, log)

    yield begin
    for runtime in started:
        runtime.stop(0.5)
