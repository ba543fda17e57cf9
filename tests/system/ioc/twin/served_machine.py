"""A machine that is served in a process of its own: ``python served_machine.py PREFIX PROTOCOL ...``."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from lume_diff.models import LUMEModel
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
)


class Magnet(LUMEModel):
    """A magnet with one input of every kind; it quenches at 7 A.

    Args:
        limit: largest current [A].
        seconds: what an evaluation takes.
    """

    def __init__(self, limit: float = 10.0, seconds: float = 0.0) -> None:
        variables = [
            TorchScalarVariable(name="current", unit="A", default_value=0.0, value_range=(-limit, limit)),
            TorchScalarVariable(name="gap", unit="m", default_value=0.1, value_range=(0.0, 1.0)),
            EnumVariable(name="polarity", options=["normal", "reversed"], default_value="normal"),
            BoolVariable(name="cooling", default_value=True),
            IntVariable(name="turns", default_value=1, value_range=(1, 100)),
            StrVariable(name="label", default_value="spare"),
            TorchNDVariable(name="ramp", shape=(3,), default_value=torch.zeros(3)),
            TorchNDVariable(name="shims", shape=(2, 3), default_value=torch.zeros(2, 3)),
            TorchScalarVariable(name="field", unit="T", read_only=True),
            TorchScalarVariable(name="force", read_only=True),
            TorchNDVariable(name="map", shape=(4, 6), read_only=True),
        ]
        super().__init__(variables)
        self.seconds = seconds
        self.evaluated: list[tuple[float, float]] = []  # when it began, and the current

    def _run(self, inputs: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
        current = inputs["current"]
        self.evaluated.append((time.monotonic(), float(current)))
        time.sleep(self.seconds)
        if float(current) == 7.0:
            raise RuntimeError("quench")
        sign = 1.0 if inputs["polarity"] == "normal" else -1.0
        field = sign * inputs["turns"] * current
        return {
            "field": field,
            "force": current / inputs["gap"],
            "map": current * torch.ones(4, 6, dtype=current.dtype),
        }


if __name__ == "__main__":
    from lume_diff.ioc import Server

    with Server(Magnet(), sys.argv[1], sys.argv[2:]) as server:
        server.wait_ready()
        print("READY", flush=True)
        sys.stdin.read()  # until whoever started this is gone
