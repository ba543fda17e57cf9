"""Tracking of particles by second-order maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_UPPER = [(j, k) for j in range(7) for k in range(j, 7)]
_FIRST = torch.tensor([j for j, _ in _UPPER], dtype=torch.int64, device="cpu")
_SECOND = torch.tensor([k for _, k in _UPPER], dtype=torch.int64, device="cpu")
_IS_SQUARE = _FIRST == _SECOND
_TOGETHER = 2**12


def apply_second_order(t: Tensor, particles: Tensor) -> Tensor:
    """Apply a second-order map to particles.

    The 28 products of two coordinates are formed once and multiplied by a `(7, 28)` matrix.

    Args:
        t: map, shape `(*batch, 7, 7, 7)`.
        particles: coordinates, shape `(*batch, n, 7)`.

    Returns:
        coordinates, shape `(*batch, n, 7)`.

    Gradient:
        exact.

    Example:
        >>> from lume_diff.models.optics import second_order_drift
        >>> t = second_order_drift(torch.tensor(2.0), torch.tensor(1e8), 510998.95)
        >>> apply_second_order(t, torch.ones(5, 7)).shape
        torch.Size([5, 7])
    """
    first, second = _FIRST.to(particles.device), _SECOND.to(particles.device)
    flat = t.flatten(-2)
    transposed = flat.index_select(-1, 7 * second + first)
    coefficients = flat.index_select(-1, 7 * first + second)
    coefficients = coefficients + torch.where(_IS_SQUARE.to(particles.device), 0.0, transposed)
    columns = particles.mT.contiguous()  # rows of one coordinate each are quicker to pick and multiply
    size = columns.shape[-1]
    if columns.device.type == "cpu":  # The products of a few particles at a time stay in the caches.
        size = max(64, _TOGETHER // max(1, math.prod(columns.shape[:-2])))
    pieces = [
        coefficients @ (piece.index_select(-2, first) * piece.index_select(-2, second))
        for piece in columns.split(size, dim=-1)
    ]
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)).mT
