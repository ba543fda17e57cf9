"""Comparison of images after they were moved, with derivatives written out: autograd would take many copies of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lume_diff.calibration.likelihoods.measures import reciprocal


class Comparison(torch.autograd.Function):
    """Images ``(settings, ny, nx)`` of any intensity beside others of unit sum.

    Args of ``apply``: the images; the others; positions of columns and rows [m]; centroids of the others [m],
    ``(settings, 2)``; width and height of a pixel [m]. Returns, ``(settings,)`` but for the last two: sums of absolute
    differences after the centroids were laid on each other, and as the images are; centroids [m] and variances in x
    and y [m^2], ``(settings, 2)``.
    """

    @staticmethod
    def forward(
        ctx: Any, seen: Tensor, other: Tensor, x: Tensor, y: Tensor, centre: Tensor, pixel: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        along, across = seen.sum(-1), seen.sum(-2)
        per_total = reciprocal(along.sum(-1))
        centroid = torch.stack((across @ x, along @ y), -1) * per_total.unsqueeze(-1)
        from_x, from_y = x - centroid[:, :1], y - centroid[:, 1:]
        square = torch.stack(((across * from_x.square()).sum(-1), (along * from_y.square()).sum(-1)), -1)
        variance = square * per_total.unsqueeze(-1)
        image = seen * per_total[:, None, None]
        back = (centroid - centre) / pixel
        whole = back.floor()
        # A shift that is no number is as good as none: the loss, which is none either, is found out later.
        cells = _cells(whole.nan_to_num(0.0).tolist(), *seen.shape[:-3:-1])
        part_x, part_y = (back - whole)[..., None, None].unbind(1)
        found = image.new_zeros(len(image), image.shape[-2] + 1, image.shape[-1] + 1)
        for to, light, (target, source) in zip(found, image, cells, strict=True):
            to[target] = light[source]
        rows = torch.lerp(found[:, :-1], found[:, 1:], part_y)
        moved = torch.lerp(rows[..., :-1], rows[..., 1:], part_x).sub_(other)
        aligned = moved.abs().sum((-2, -1))
        left = image - other
        apart = left.abs().sum((-2, -1))
        ctx.cells = cells
        ctx.save_for_backward(
            image, per_total, from_x, from_y, variance, pixel, found, rows, moved, part_x, part_y, left
        )
        ctx.set_materialize_grads(False)
        return aligned, apart, centroid, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_aligned: Tensor | None, by_apart: Tensor | None, by_centroid: Tensor | None, by_var: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        image, per_total, from_x, from_y, variance, pixel, found, rows, moved, part_x, part_y, left = ctx.saved_tensors
        by_place = torch.zeros_like(variance) if by_centroid is None else by_centroid
        by_image = None if by_apart is None else left.sign() * by_apart[:, None, None]
        if by_aligned is not None:
            pull = moved.sign().mul_(by_aligned[:, None, None])
            count, ny, nx = pull.shape
            by_x = (pull * (rows[..., 1:] - rows[..., :-1])).sum((-2, -1))
            by_rows = _shared(pull, part_x, pull.new_empty(count, ny, nx + 1), -1)
            by_y = (by_rows * (found[:, 1:] - found[:, :-1])).sum((-2, -1))
            by_found = _shared(by_rows, part_y, pull.new_empty(count, ny + 1, nx + 1), -2)
            by_moved = torch.zeros_like(image)
            for to, light, (target, source) in zip(by_moved, by_found, ctx.cells, strict=True):
                to[source] = light[target]
            by_image = by_moved if by_image is None else by_image.add_(by_moved)
            by_place = by_place + torch.stack((by_x, by_y), -1) / pixel
        # What a pixel does to centroids and variances is the sum of what its column and its row do.
        column, row = by_place[:, :1] * from_x, by_place[:, 1:] * from_y
        if by_var is not None:
            column = column + by_var[:, :1] * (from_x.square() - variance[:, :1])
            row = row + by_var[:, 1:] * (from_y.square() - variance[:, 1:])
        scale = per_total[:, None, None]
        if by_image is None:
            return (column.unsqueeze(-2) + row.unsqueeze(-1)) * scale, *[None] * 5
        row = row - (by_image * image).sum((-2, -1)).unsqueeze(-1)
        return by_image.add_(column.unsqueeze(-2)).add_(row.unsqueeze(-1)).mul_(scale), *[None] * 5


def _shared(pull: Tensor, part: Tensor, between: Tensor, axis: int) -> Tensor:
    """Return in ``between`` what falls to both neighbours that were interpolated along an axis."""
    number = pull.shape[axis]
    first, last = between.narrow(axis, 0, number), between.narrow(axis, number, 1)
    torch.sub(pull, upper := pull * part, out=first)
    last.zero_()
    between.narrow(axis, 1, number).add_(upper)
    return between


def _cells(whole: list[list[float]], nx: int, ny: int) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Return for each image which pixels, of one more column and row, take their light from which: rows, columns."""
    cells = []
    for column, row in whole:
        (to_x, from_x), (to_y, from_y) = _overlap(int(column), nx), _overlap(int(row), ny)
        cells.append(((to_y, to_x), (from_y, from_x)))
    return cells


def _overlap(shift: int, number: int) -> tuple[slice, slice]:
    """Return which of ``number + 1`` pixels look at a pixel that exists, and at which."""
    shift = max(min(shift, number), -number - 1)
    first, last = max(0, -shift), min(number + 1, number - shift)
    return slice(first, last), slice(first + shift, last + shift)
