"""A magnet and its camera, for servers in processes of their own: the field fails at 7 A."""

from __future__ import annotations

from typing import Any

import torch

from lume_diff.models import LUMEModel
from lume_diff.variables import BoolVariable, EnumVariable, TorchNDVariable, TorchScalarVariable

PIXELS = 500


class Magnet(LUMEModel):
    """Field and image by current."""

    def __init__(self) -> None:
        variables = [
            TorchScalarVariable(name="current", unit="A", default_value=0.0, value_range=(-10.0, 10.0)),
            TorchScalarVariable(name="gap", unit="m", default_value=0.1, value_range=(0.0, 1.0)),
            EnumVariable(name="polarity", options=["normal", "reversed"], default_value="normal"),
            BoolVariable(name="lamp", default_value=False),
            TorchScalarVariable(name="field", unit="T", read_only=True),
            TorchNDVariable(name="image", shape=(PIXELS, PIXELS), read_only=True),
        ]
        super().__init__(variables)

    def _run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        current = inputs["current"]
        if float(current) == 7.0:
            raise RuntimeError("quench")
        sign = 1.0 if inputs["polarity"] == "normal" else -1.0
        return {"field": 2.0 * sign * current, "image": current * torch.ones(PIXELS, PIXELS, dtype=current.dtype)}


def make() -> Magnet:
    """Return one."""
    return Magnet()
