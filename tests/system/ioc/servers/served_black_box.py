"""A black box that takes a while for every run, served until the input ends: python served_black_box.py LOG.

Every run appends what was asked of it to the log, as a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lume_diff.blackbox import BlackBoxModel, Simulator
from lume_diff.ioc.server import Server
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

SCALARS, ARRAYS = ("a", "b"), ("u", "v", "w")
RUN = 0.03  # [s]


class Cubes(Simulator):
    """Give the sum of the cubes of all that comes in."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Take a while."""
        with self._log.open("a") as file:
            print(json.dumps({name: np.asarray(value).tolist() for name, value in inputs.items()}), file=file)
        time.sleep(RUN)
        return {"y": sum(float(np.sum(np.asarray(value) ** 3)) for value in inputs.values())}

    def identity(self) -> str:
        """Return what tells it from others."""
        return "cubes"


def main() -> None:
    """Serve, with the response matrix of the scalars."""
    log = Path(sys.argv[1])
    model = BlackBoxModel(
        lambda: Cubes(log),
        [
            *(TorchScalarVariable(name=name, default_value=2.0, scale=0.1) for name in SCALARS),
            *(TorchNDVariable(name=name, shape=(2,), default_value=torch.ones(2)) for name in ARRAYS),
            TorchScalarVariable(name="y", read_only=True),
        ],
    )
    with Server(model, "T:", ["pva"], isolation="process", response_matrix=True) as server:
        server.wait_ready(60.0)
        print("ready", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
