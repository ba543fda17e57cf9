"""Products of the maps of elements in a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def product(matrices: Tensor) -> Tensor:
    """Return the map of elements in a row, ``(*batch, count, 7, 7) -> (*batch, 7, 7)``, the first applied first.

    Neighbours are multiplied pairwise, so that the depth is logarithmic; none in a row is the identity.
    """
    if matrices.shape[-3] == 0:
        eye = torch.eye(7, dtype=matrices.dtype, device=matrices.device)
        return eye.expand(*matrices.shape[:-3], 7, 7)
    return chain(padded(matrices))[..., :7, :7]


def padded(matrices: Tensor) -> Tensor:
    """Return maps with a row and a column of zeros: products of many 8 x 8 take a sixth of the time of 7 x 7."""
    return torch.nn.functional.pad(matrices, (0, 1, 0, 1))


def chain(matrices: Tensor) -> Tensor:
    """Return the product of matrices ``(*batch, count, n, n)`` in a row, the first applied first.

    The last few are multiplied one by one, and by the functions for one or for a row of matrices: each call counts.
    """
    if matrices.dim() > 4:
        return chain(matrices.flatten(0, -4)).unflatten(0, matrices.shape[:-3])
    many, two = (torch.bmm, torch.mm) if matrices.dim() == 3 else (torch.matmul, torch.bmm)
    left: list[Tensor] = []  # of an odd number, the last; the last of all first
    count = matrices.shape[-3]
    while count > 5:
        if count % 2:
            left.append(matrices[..., -1, :, :])
            matrices = matrices[..., :-1, :, :]
        count //= 2
        first, second = matrices.unflatten(-3, (count, 2)).unbind(-3)
        matrices = many(second, first)
    row = [*matrices.unbind(-3), *reversed(left)]
    while len(row) > 1:
        rest = row[len(row) - len(row) % 2 :]
        row = [*(two(b, a) for a, b in zip(row[::2], row[1::2], strict=False)), *rest]
    return row[0]


def chains(matrices: Tensor) -> Tensor:
    """Return the products of the first 1, 2, 3 ... of matrices ``(*batch, count, n, n)``, the first applied first."""
    step = 1
    while step < matrices.shape[-3]:
        longer = matrices[..., step:, :, :] @ matrices[..., :-step, :, :]
        matrices = torch.cat((matrices[..., :step, :, :], longer), dim=-3)
        step *= 2
    return matrices


def same_batch(tensors: Sequence[Tensor], inner: int) -> list[Tensor]:
    """Expand leading dimensions to a common batch; the last ``inner`` ones stay."""
    shapes = {t.shape[: t.dim() - inner] for t in tensors}
    if len(shapes) == 1:
        return list(tensors)
    batch = torch.broadcast_shapes(*shapes)
    return [t.expand(*batch, *t.shape[t.dim() - inner :]) for t in tensors]
