"""Assemble transfer matrices from their few distinct entries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def pattern(cells: Mapping[tuple[int, int], int], count: int) -> Tensor:
    """Return where each of the 49 cells finds its value: entry number, or zero, or one on the diagonal."""
    flat = [cells.get((i, j), count + (i == j)) for i in range(7) for j in range(7)]
    return torch.tensor(flat, dtype=torch.int64, device="cpu")


def assemble(entries: Sequence[Tensor], cells: Tensor) -> Tensor:
    """Build `(*batch, 7, 7)` matrices from broadcastable entries by one gather, without writing in place."""
    shape = entries[0].shape
    if any(entry.shape != shape for entry in entries):
        entries = torch.broadcast_tensors(*entries)
    first = entries[0]
    table = torch.stack((*entries, torch.zeros_like(first), torch.ones_like(first)), dim=-1)
    return table.index_select(-1, cells.to(table.device)).reshape(*first.shape, 7, 7)


def rotate(matrix: Tensor, tilt: Tensor) -> Tensor:
    """Apply a tilt about the beam axis [rad] to a `(*batch, 7, 7)` matrix."""
    rotation = rotation_matrix(tilt)
    return rotation.mT @ matrix @ rotation


def displace(matrix: Tensor, misalignment: Tensor) -> Tensor:
    """Apply a transverse displacement `(*batch, 2)` [m] of the element to its `(*batch, 7, 7)` matrix."""
    dx, dy = misalignment[..., 0, None], misalignment[..., 1, None]
    zero = torch.zeros_like(dx)
    shift = torch.cat((dx, zero, dy, zero, zero, zero, zero), dim=-1)
    constant = matrix[..., 6] + shift - matrix[..., 0] * dx - matrix[..., 2] * dy
    rest = matrix[..., :6]
    if constant.shape != rest.shape[:-1]:
        rest = rest.expand(*constant.shape, 6)
    return torch.cat((rest, constant.unsqueeze(-1)), dim=-1)


def place(matrix: Tensor, tilt: Tensor | None, misalignment: Tensor | None) -> Tensor:
    """Apply a tilt [rad] and a displacement [m], either of which may be None."""
    if tilt is not None:
        matrix = rotate(matrix, tilt)
    if misalignment is not None:
        matrix = displace(matrix, misalignment)
    return matrix


_ROTATION = pattern({(0, 0): 0, (1, 1): 0, (2, 2): 0, (3, 3): 0, (0, 2): 1, (1, 3): 1, (2, 0): 2, (3, 1): 2}, 3)


def rotation_matrix(angle: Tensor) -> Tensor:
    """Return the `(*batch, 7, 7)` matrix that turns coordinates by `angle` [rad] in the x-y plane."""
    sine = angle.sin()
    return assemble((angle.cos(), sine, -sine), _ROTATION)


_DISPLACEMENT = pattern({(0, 6): 0, (2, 6): 1}, 2)
_EDGE = pattern({(1, 0): 0, (3, 2): 1}, 2)


def displacement_matrices(misalignment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices into and out of the frame of an element displaced by `(*batch, 2)` [m]."""
    dx, dy = misalignment[..., 0], misalignment[..., 1]
    return assemble((-dx, -dy), _DISPLACEMENT), assemble((dx, dy), _DISPLACEMENT)


def edge_matrix(r21: Tensor, r43: Tensor) -> Tensor:
    """Return the matrix of a thin lens with the strengths given."""
    return assemble((r21, r43), _EDGE)
