"""Screen images of a large batch of settings, a few settings at a time."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.models.line.image_workspace import Workspace
from lume_diff.models.line.screens import Pair, cloud_in_cell
from lume_diff.models.transforms import in_transform


def together(device: torch.device) -> int:
    """Return how many particles are best looked at together: on a CPU what they need is to stay in the caches."""
    return 2**16 if device.type == "cpu" else 2**24


def cloud_in_cell_batch(
    maps: Tensor, rows: Tensor, charge: Tensor, pixels: tuple[int, int], half: Pair, offset: Pair
) -> Tensor:
    """Return cloud-in-cell images of one bunch behind many maps.

    Args:
        maps: the rows of the maps that give x and y, ``(settings, 2, 7)``.
        rows: coordinates before the maps, ``(7, n)``.
        charge: of each particle [C], ``(n,)``.
        pixels, half: as for ``screens``; half ``(settings,)`` each.
        offset: position of the screen [m], ``(settings,)`` each.

    Returns:
        Charge in each pixel [C], ``(settings, ny, nx)``; what ``screens.cloud_in_cell`` gives, but for round-off.

    Gradient:
        Exact, of any order, forward and reverse.
    """
    given = (maps, rows, charge, torch.stack(half), torch.stack(offset))
    found: Tensor
    if in_transform() or forward_ad._current_level >= 0:
        found = _in_pieces(pixels, *given)
    else:
        found = _Images.apply(pixels, *given)
    return found


def _parts(maps: Tensor, rows: Tensor) -> list[slice]:
    """Return which settings to look at together."""
    settings, size = maps.shape[0], max(1, together(rows.device) // rows.shape[-1])
    count = math.ceil(settings / size)
    edges = [settings * part // count for part in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _in_pieces(
    pixels: tuple[int, int], maps: Tensor, rows: Tensor, charge: Tensor, half: Tensor, offset: Tensor
) -> Tensor:
    """Return the images by operations that torch can transform, and differentiate more than once."""
    images = []
    for part in _parts(maps, rows):
        at = (maps[part].flatten(0, 1) @ rows).unflatten(0, (-1, 2))
        x, y = at[:, 0] - offset[0, part].unsqueeze(-1), at[:, 1] - offset[1, part].unsqueeze(-1)
        images.append(cloud_in_cell(x, y, charge, pixels, (half[0, part], half[1, part])))
    return torch.cat(images)


class _Images(torch.autograd.Function):
    """Images whose graph holds nothing but what they are made from."""

    @staticmethod
    def forward(pixels: tuple[int, int], *given: Tensor) -> Tensor:
        maps, rows = given[:2]
        images = rows.new_empty((maps.shape[0], pixels[1], pixels[0]))
        parts = _parts(maps, rows)
        space = Workspace(max(part.stop - part.start for part in parts), pixels, *given)
        for part in parts:
            space.draw(part, images[part])
        return images

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.pixels, *given = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        given, wanted = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            return None, *_pulled_back_with_graph(ctx.pixels, given, gradient)
        slopes = [torch.zeros_like(value) for value in given]
        parts = _parts(given[0], given[1])
        space = Workspace(max(part.stop - part.start for part in parts), ctx.pixels, *given)
        for part in parts:
            space.pull_back(part, gradient[part], wanted, slopes)
        return None, *(slope if want else None for slope, want in zip(slopes, wanted, strict=True))


def _pulled_back_with_graph(
    pixels: tuple[int, int], given: tuple[Tensor, ...], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Return derivatives that can be differentiated again."""
    # Of views: what one of them was made from must not count for another.
    views = [value.view_as(value) for value in given]
    wanted = [value for value in views if value.requires_grad]
    found = iter(torch.autograd.grad(_in_pieces(pixels, *views), wanted, gradient, create_graph=True))
    return tuple(next(found) if value.requires_grad else None for value in views)
