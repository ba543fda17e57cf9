"""Standard deviations beside the outputs that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable

SUFFIX = ".std"


def with_spread(outputs: Iterable[Variable]) -> Iterator[Variable]:
    """Yield every output, read-only, and behind it the variable of its standard deviation, in the same unit."""
    for output in outputs:
        yield output.replace(read_only=True)
        what = f"standard deviation of {output.name}"
        common: dict[str, Any] = {
            "name": output.name + SUFFIX,
            "unit": output.unit,
            "read_only": True,
            "description": what,
        }
        if isinstance(output, TorchNDVariable):
            yield TorchNDVariable(**common, shape=output.shape)
        else:
            yield TorchScalarVariable(**common)


def root(variance: Tensor) -> Tensor:
    """Return the square root of a variance; where round-off has left nothing of it, zero with a gradient of zero."""
    is_positive = variance > 0.0
    return torch.where(is_positive, torch.where(is_positive, variance, 1.0).sqrt(), 0.0)
