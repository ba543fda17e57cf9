"""Networks of lume-torch that take and give arrays, all of one shape, on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, cat, nn


class Stacks(nn.Module):
    """Turn columns into the stack of arrays that a network of lume-torch takes, and its answer into columns.

    Args:
        network: maps ``(batch, n_in, *shape)`` to what lume-torch expects: ``(batch, 1, *out_shape)`` for one array,
            ``(batch, *out_shape, n_out)`` for several, ``(batch, n_out)`` for scalars.
        before: transformers of the stack.
        after: transformers of the answer; those that can be undone are.
        shape: of one input; empty for scalars.
        count: how many outputs there are.
        out_shape: of one output; empty for scalars.
    """

    def __init__(
        self,
        network: nn.Module,
        before: Sequence[nn.Module],
        after: Sequence[nn.Module],
        shape: tuple[int, ...],
        count: int,
        out_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.network = network
        self.before, self.after = nn.ModuleList(before), nn.ModuleList(after)
        self.shape, self.count, self.out_shape = shape, count, out_shape

    def forward(self, columns: Tensor) -> Tensor:
        rows = len(columns)
        values = columns.reshape(rows, columns.shape[-1] // math.prod(self.shape), *self.shape)
        for step in self.before:
            values = step(values)
        values = self.network(values)
        for step in self.after:
            undo = getattr(step, "untransform", step)
            values = undo(values)
        if self.count == 1 or not self.out_shape:
            return values.reshape(rows, -1)
        return cat([values[..., index].reshape(rows, -1) for index in range(self.count)], dim=-1)
