"""A model and machines that differ from it: closed forms, so that an optimisation step costs nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.models import TorchModel
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

NAMES = ["Q2.k1", "Q10.k1", "B.k1"]  # sorted, they are in another order
LIMITS = {"Q2.k1": (-4.0, 4.0), "Q10.k1": (0.0, 10.0), "B.k1": (-1.0, 3.0)}


@pytest.fixture(autouse=True)
def _as_xopt_needs(double_by_default: None) -> None:
    """Compute in double precision."""


def size(x: torch.Tensor) -> torch.Tensor:
    """Return a beam size [m] for strengths ``(..., 3)``: every input matters differently."""
    a, b, c = x.unbind(-1)
    return 1e-4 * (1.0 + (a - 1.0).square() + 0.2 * (b - 6.0).square() + 0.5 * (c - a / 2.0).square())


def build_model(width: float = 1.0) -> TorchModel:
    """Return the model; its limits are ``width`` times the ranges that an optimiser may use."""
    knobs = [
        TorchScalarVariable(
            name=name, unit="1/m^2", default_value=1.0, value_range=(low - (width - 1.0) * 4.0, high * width)
        )
        for name, (low, high) in LIMITS.items()
    ]
    outputs = [TorchScalarVariable(name="size", unit="m"), TorchNDVariable(name="profile", shape=(4,))]

    def respond(x: torch.Tensor) -> torch.Tensor:
        value = size(x).unsqueeze(-1)
        return torch.cat([value, value * torch.arange(1.0, 5.0, dtype=x.dtype)], dim=-1)

    return TorchModel(respond, knobs, outputs)


@pytest.fixture
def model() -> TorchModel:
    return build_model()


@pytest.fixture
def table() -> Callable[..., Any]:
    """Return data of a machine at random settings, as Xopt keeps them."""
    import pandas as pd

    def make(n: int, machine: Callable[[torch.Tensor], torch.Tensor], names: list[str] = NAMES) -> Any:
        low, high = (np.array([LIMITS[name][edge] for name in NAMES]) for edge in (0, 1))
        x = np.random.uniform(low, high, (n, 3))  # noqa: NPY002 - seeded by the test run
        data = pd.DataFrame(x, columns=NAMES)[names]
        data["log_size"] = machine(torch.as_tensor(x)).numpy()
        return data

    return make
