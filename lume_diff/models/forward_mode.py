"""Derivatives along directions, which go through a function together where they can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

#: How many numbers all directions together may have in one value of the function: some 128 MB. What the function keeps
#: on its way comes on top, for each direction once.
_ROOM = 2**24
#: The most directions that go together.
_MOST = 32


def directions_at_once(numbers: int) -> int:
    """Return how many directions to push together through a function that works on so many numbers."""
    return max(1, min(_MOST, _ROOM // max(numbers, 1)))


def pushed(
    function: Callable[..., Any], primals: Sequence[Tensor], directions: Sequence[Tensor], at_once: int
) -> tuple[Any, Any]:
    """Return the values of a function, and its derivatives along directions.

    Together they take one pass through the function. What PyTorch adds to each operation is more than the operation
    itself where a bunch is small, so that a jvp for every direction takes ten times as long.

    Args:
        function: of as many tensors as there are primals; returns a tensor or a table of tensors.
        primals: where.
        directions: a tensor ``(n, *shape)`` for every primal.
        at_once: how many of the n go through together; with 1, and where the function does not let ``vmap`` through,
            they go one after the other.

    Returns:
        The values, and the derivatives with ``(n, ...)`` in front, both without a graph.
    """

    def push(*tangents: Tensor) -> tuple[Any, Any]:
        found = torch.func.jvp(function, tuple(primals), tangents)
        return found[0], found[1]

    if at_once > 1:
        try:
            values, tangents = torch.func.vmap(push, chunk_size=at_once)(*directions)
            return pytree.tree_map(lambda value: value[0].detach(), values), pytree.tree_map(torch.detach, tangents)
        except RuntimeError:  # its own errors come again below, without the words of vmap
            pass
    found = [push(*each) for each in zip(*(direction.unbind() for direction in directions), strict=True)]
    values = pytree.tree_map(torch.detach, found[0][0])
    return values, pytree.tree_map(lambda *each: torch.stack(each).detach(), *(tangents for _, tangents in found))
