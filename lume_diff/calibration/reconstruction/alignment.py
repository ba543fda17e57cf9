"""Comparison of images after they were moved, with derivatives written out: autograd would take many copies of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.losses import Target


class Comparison(torch.autograd.Function):
    """Images ``(settings, ny, nx)`` of any intensity beside measured ones.

    Args of ``apply``: the images; the target. Returns, ``(settings,)`` each: sums of absolute differences after the
    centroids were laid on each other; sums of the absolute logarithms of the ratios of rms sizes; sums of absolute
    differences as the images are; squared distances of the centroids in measured sizes.
    """

    @staticmethod
    def forward(ctx: Any, seen: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        profiles = seen.sum(-2).unsqueeze(-2), seen.sum(-1).unsqueeze(-2)
        sums = torch.cat([profile @ powers for profile, powers in zip(profiles, target.powers, strict=True)], dim=-2)
        total, first, second = sums.unbind(-1)
        per_total = torch.where(total > 0.0, total.reciprocal(), 0.0)
        # Centroid and variance in pixels, from the centroid that was measured.
        back = first * per_total
        variance = second * per_total - back.square()
        sizable = variance.clamp_min(target.smallest)
        log_ratio = 0.5 * (sizable / target.variance).log()
        image = seen * per_total[:, :1, None]
        whole = back.floor()
        # A shift that is no number is as good as none: the loss, which is none either, is found out later.
        cells = _cells(whole.tolist(), *seen.shape[:-3:-1])
        part_x, part_y = (back - whole)[..., None, None].unbind(1)
        found = image.new_zeros(len(image), image.shape[-2] + 1, image.shape[-1] + 1)
        for to, light, (goal, source) in zip(found.unbind(), image.unbind(), cells, strict=True):
            to[goal] = light[source]
        rows = torch.lerp(found[:, :-1], found[:, 1:], part_y)
        moved = torch.lerp(rows[..., :-1], rows[..., 1:], part_x).sub_(target.image)
        left = image - target.image
        ctx.target, ctx.cells = target, cells
        ctx.save_for_backward(image, per_total, back, variance, log_ratio, found, rows, moved, part_x, part_y, left)
        ctx.set_materialize_grads(False)
        pointing = (back.square() / target.variance).sum(-1)
        return _length(moved), log_ratio.abs().sum(-1), _length(left), pointing

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, by_aligned: Tensor | None, by_size: Tensor | None, by_apart: Tensor | None, by_pointing: Tensor | None
    ) -> tuple[Tensor | None, None]:
        image, per_total, back, variance, log_ratio, found, rows, moved, part_x, part_y, left = ctx.saved_tensors
        target = ctx.target
        by_back = torch.zeros_like(back)
        by_image = None if by_apart is None else left.sign() * by_apart[:, None, None]
        if by_aligned is not None:
            pull = moved.sign().mul_(by_aligned[:, None, None])
            count, ny, nx = pull.shape
            by_x = (pull * (rows[..., 1:] - rows[..., :-1])).sum((-2, -1))
            by_rows = _shared(pull, part_x, pull.new_empty(count, ny, nx + 1), -1)
            by_y = (by_rows * (found[:, 1:] - found[:, :-1])).sum((-2, -1))
            by_found = _shared(by_rows, part_y, pull.new_empty(count, ny + 1, nx + 1), -2)
            by_moved = torch.zeros_like(image)
            for to, light, (goal, source) in zip(by_moved.unbind(), by_found.unbind(), ctx.cells, strict=True):
                to[source] = light[goal]
            by_image = by_moved if by_image is None else by_image.add_(by_moved)
            by_back = torch.stack((by_x, by_y), -1)
        if by_pointing is not None:
            by_back = by_back + 2.0 * by_pointing.unsqueeze(-1) * back / target.variance
        by_variance = torch.zeros_like(variance)
        if by_size is not None:
            slope = 0.5 * by_size.unsqueeze(-1) * log_ratio.sign() / variance
            by_variance = torch.where(variance > target.smallest, slope, by_variance)
        # What a pixel does to centroids and variances is the sum of what its column and its row do, each a polynomial.
        constant = by_variance * (back.square() - variance) - by_back * back
        polynomial = torch.stack((constant, by_back - 2.0 * by_variance * back, by_variance), -1).unsqueeze(-1)
        column, row = (powers @ polynomial[:, axis] for axis, powers in enumerate(target.powers))
        column, scale = column.mT, per_total[:, :1, None]
        if by_image is None:
            return (column + row) * scale, None
        row = row - (by_image * image).sum((-2, -1), keepdim=True)
        return by_image.add_(column).add_(row).mul_(scale), None


def _length(difference: Tensor) -> Tensor:
    """Return sums of absolute values, ``(settings,)``."""
    return difference.abs().sum((-2, -1))


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
        (to_x, from_x), (to_y, from_y) = _overlap(column, nx), _overlap(row, ny)
        cells.append(((to_y, to_x), (from_y, from_x)))
    return cells


def _overlap(whole: float, number: int) -> tuple[slice, slice]:
    """Return which of ``number + 1`` pixels look at a pixel that exists, and at which."""
    shift = 0 if math.isnan(whole) else int(max(min(whole, number), -number - 1))
    first, last = max(0, -shift), min(number + 1, number - shift)
    return slice(first, last), slice(first + shift, last + shift)
