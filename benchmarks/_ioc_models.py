"""The model that the benchmark of servers serves: as many outputs as asked for, and next to nothing to compute."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lume_diff.models import LUMEModel
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable

PIXELS = 1000


class Fan(LUMEModel):
    """Give every output the value of the input; compute for ``-x`` seconds where it is negative.

    Args:
        shape: number of outputs, or ``"image"`` for an image of a million pixels.
    """

    def __init__(self, shape: str) -> None:
        self._ys = [] if shape == "image" else [f"y{number}" for number in range(int(shape))]
        variables: list[Variable] = [TorchScalarVariable(name=name, read_only=True) for name in self._ys]
        variables += [TorchScalarVariable(name=name, default_value=0.0) for name in ("x", "other")]
        if shape == "image":
            variables.append(TorchNDVariable(name="image", shape=(PIXELS, PIXELS), read_only=True))
        super().__init__(variables)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        x = inputs["x"]
        end = time.monotonic() - float(x)
        while time.monotonic() < end:
            pass
        if not self._ys:
            return {"image": x * torch.ones(PIXELS, PIXELS, dtype=x.dtype)}
        return dict(zip(self._ys, x.expand(len(self._ys)).unbind(0), strict=True))
