"""Screen images of a large batch of settings, a few settings at a time, in memory that is used again."""

from __future__ import annotations

import torch
from torch import Tensor

from lume_diff.models.line.screens import Pair, cloud_in_cell


def together(device: torch.device) -> int:
    """Return how many particles are best looked at together: on a CPU what they need is to stay in the caches."""
    return 2**15 if device.type == "cpu" else 2**24


def cloud_in_cell_batch(
    maps: Tensor, rows: Tensor, charge: Tensor, pixels: tuple[int, int], half: Pair, offset: Pair, has_graph: bool
) -> Tensor:
    """Return cloud-in-cell images of one bunch behind many maps.

    Args:
        maps: the rows of the maps that give x and y, ``(settings, 2, 7)``.
        rows: coordinates before the maps, ``(7, n)``.
        charge: of each particle [C], ``(n,)``.
        pixels, half: as for ``screens``; half ``(settings,)`` each.
        offset: position of the screen [m], ``(settings,)`` each.
        has_graph: whether derivatives may be asked for.

    Returns:
        Charge in each pixel [C], ``(settings, ny, nx)``; the same numbers as ``screens.cloud_in_cell`` gives.

    Gradient:
        Exact.
    """
    settings, count = maps.shape[0], rows.shape[-1]
    size = max(1, together(rows.device) // count)
    if has_graph:
        pieces = zip(*(value.split(size) for value in (maps, *half, *offset)), strict=True)
        images = []
        for rows_of_maps, width, height, right, up in pieces:
            at = (rows_of_maps.flatten(0, 1) @ rows).unflatten(0, (-1, 2))
            x, y = at[:, 0] - right.unsqueeze(-1), at[:, 1] - up.unsqueeze(-1)
            images.append(cloud_in_cell(x, y, charge, pixels, (width, height)))
        return torch.cat(images)
    nx, ny = pixels
    whole = rows.new_empty((settings, ny, nx))
    # Coordinates first, (2, settings, ...), so that both are one operation and each is contiguous.
    maps, centre, edge = maps.transpose(0, 1), torch.stack(offset).unsqueeze(-1), torch.stack(half).unsqueeze(-1)
    number = torch.tensor((nx, ny), dtype=rows.dtype, device=rows.device).view(2, 1, 1)
    scale, middle = 0.5 * number / edge, 0.5 * (number + 1.0)
    space = _Workspace(min(size, settings), rows, charge, pixels)
    for start in range(0, settings, size):
        part = slice(start, min(start + size, settings))
        space.draw(maps[:, part], centre[:, part], edge[:, part], scale[:, part], middle, whole[part])
    return whole


class _Workspace:
    """Memory for the images of a few settings; fresh memory for every step would cost more than the steps."""

    def __init__(self, size: int, rows: Tensor, charge: Tensor, pixels: tuple[int, int]) -> None:
        count, self._width, self._height = rows.shape[-1], pixels[0] + 2, pixels[1] + 2
        self._rows, self._charge = rows, charge
        self._at, self._cell = rows.new_empty((2, size, count)), rows.new_empty((2, size, count))
        self._is_off = torch.empty((2, size, count), dtype=torch.bool, device=rows.device)
        self._index = torch.empty((size, 4, count), dtype=torch.int64, device=rows.device)
        self._shares = rows.new_empty((size, 4, count))
        self._frame = rows.new_empty((size, self._height * self._width))

    def draw(self, maps: Tensor, centre: Tensor, edge: Tensor, scale: Tensor, middle: Tensor, images: Tensor) -> None:
        """Draw images as ``screens.cloud_in_cell`` does, with the same operations in place."""
        size, count = maps.shape[1], self._rows.shape[-1]
        at, cell, is_off = self._at[:, :size], self._cell[:, :size], self._is_off[:, :size]
        index, shares, frame = self._index[:size], self._shares[:size], self._frame[:size]
        torch.matmul(maps, self._rows, out=at)
        at.sub_(centre)
        torch.le(torch.abs(at, out=cell), edge, out=is_off)
        is_off.logical_not_()
        off = is_off[0].logical_or_(is_off[1])
        torch.addcmul(middle, at, scale, out=at)
        at.masked_fill_(off, 0.0)
        torch.floor(at, out=cell)
        column_part, row_part = at.sub_(cell)
        corner = cell[0].add_(cell[1], alpha=self._width)
        index[:, 0] = corner
        for place, neighbour in ((1, 1), (2, self._width), (3, self._width + 1)):
            torch.add(index[:, 0], neighbour, out=index[:, place])
        lower, upper = cell
        lower.copy_(self._charge).masked_fill_(off, 0.0)
        torch.mul(lower, row_part, out=upper)
        lower.sub_(upper)
        for first, charge in ((0, lower), (2, upper)):
            torch.mul(charge, column_part, out=shares[:, first + 1])
            torch.sub(charge, shares[:, first + 1], out=shares[:, first])
        frame.zero_().scatter_add_(-1, index.view(size, 4 * count), shares.view(size, 4 * count))
        images.copy_(frame.view(size, self._height, self._width)[:, 1:-1, 1:-1])
