"""A machine with every kind of variable, served until the input ends: python served_machine.py [OPTIONS AS JSON]."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lume_diff.ioc.server import Server
from lume_diff.models import LUMEModel
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    ParticleGroupVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
)

QUENCH, NOT_A_NUMBER, BUSY = 7.0, 6.0, 5.0


class Machine(LUMEModel):
    """Give twice the strength; fail at 7, have no number at 6, compute for a second at 5."""

    def __init__(self, pixels: int = 30) -> None:
        self._pixels = pixels
        strength = {"unit": "1/m^2", "value_range": (-10.0, 10.0), "description": "of the quadrupole"}
        super().__init__(
            [
                TorchScalarVariable(name="Q1.k1", default_value=0.0, **strength),
                TorchScalarVariable(name="Q2.k1", default_value=0.0, **strength),
                IntVariable(name="turns", default_value=3, value_range=(0, 100)),
                BoolVariable(name="on", default_value=True),
                EnumVariable(name="mode", options=["low", "high", "off"], default_value="low"),
                StrVariable(name="title", default_value="first light"),
                TorchNDVariable(name="wave", shape=(5,), default_value=torch.zeros(5)),
                TorchScalarVariable(name="size", unit="m", read_only=True, warning_range=(-5.0, 5.0)),
                TorchNDVariable(name="CAM:Image:ArrayData", shape=(20, pixels), read_only=True),
                ParticleGroupVariable(name="beam", read_only=True),
            ]
        )

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        k1 = inputs["Q1.k1"]
        strength = float(k1.detach())
        if strength == QUENCH:
            raise RuntimeError("quench")
        end = time.monotonic() + 1.0
        while strength == BUSY and time.monotonic() < end:
            pass
        ones = torch.ones(8, dtype=k1.dtype)
        return {
            "size": k1 * float("nan") if strength == NOT_A_NUMBER else 2.0 * k1 + 3.0 * inputs["Q2.k1"],
            "CAM:Image:ArrayData": k1 * torch.ones(20, self._pixels, dtype=k1.dtype),
            "beam": TorchParticleGroup(
                **dict.fromkeys(("x", "y"), k1 * ones),
                **dict.fromkeys(("z", "px", "py", "t"), 0.0 * ones),
                pz=1e8 * ones,
                weight=1e-12 * ones,
                species="electron",
            ),
        }


def main() -> None:
    """Serve."""
    logging.basicConfig(level=logging.INFO)
    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    machine = Machine(options.pop("pixels", 30))
    with Server(machine, "T:", changeable_limits=["Q1.k1"], **options) as server:
        server.wait_ready(60.0)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
