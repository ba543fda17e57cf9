"""Screen images of a large batch of settings, a few settings at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.models.line.image_workspace import Workspace, parts
from lume_diff.models.line.screens import Pair, cloud_in_cell
from lume_diff.models.transforms import in_transform


def together(like: Tensor) -> int:
    """Return how many particles are best looked at together: on a CPU what they need is to stay in the caches."""
    return 2**19 // like.element_size() if like.device.type == "cpu" else 2**24


def cloud_in_cell_batch(
    maps: Tensor,
    rows: Tensor,
    charge: Tensor,
    pixels: tuple[int, int],
    half: Pair,
    offset: Pair,
    space: Workspace | None = None,
) -> Tensor:
    """Return cloud-in-cell images of one bunch behind many maps.

    Args:
        maps: the rows of the maps that give x and y, ``(settings, 2, 7)``.
        rows: coordinates before the maps, ``(7, n)``.
        charge: of each particle [C], ``(n,)``.
        pixels, half: as for ``screens``; half ``(settings,)`` each.
        offset: position of the screen [m], ``(settings,)`` each.
        space: the workspace of maps, pixels, half and offset, where these stay the same.

    Returns:
        Charge in each pixel [C], ``(settings, ny, nx)``; what ``screens.cloud_in_cell`` gives, but for round-off.

    Gradient:
        Exact, of any order, forward and reverse.
    """
    given = (maps, rows, charge, torch.stack(half), torch.stack(offset))
    found: Tensor
    if in_transform() or forward_ad._current_level >= 0:
        return _in_pieces(pixels, *given)
    if space is None:
        space = workspace(maps, pixels, *given[3:])
    found = _Images.apply(object(), space, pixels, *given)
    return found


def workspace(maps: Tensor, pixels: tuple[int, int], half: Tensor, offset: Tensor) -> Workspace:
    """Return what draws images of a bunch, half and offset ``(2, settings)``; see ``cloud_in_cell_batch``."""
    with torch.no_grad():
        return Workspace(pixels, maps, half, offset, together(maps))


def _in_pieces(
    pixels: tuple[int, int], maps: Tensor, rows: Tensor, charge: Tensor, half: Tensor, offset: Tensor
) -> Tensor:
    """Return the images by operations that torch can transform, and differentiate more than once."""
    images = []
    for part in parts(len(maps), rows.shape[-1], together(rows)):
        at = (maps[part].flatten(0, 1) @ rows).unflatten(0, (-1, 2))
        x, y = at[:, 0] - offset[0, part].unsqueeze(-1), at[:, 1] - offset[1, part].unsqueeze(-1)
        images.append(cloud_in_cell(x, y, charge, pixels, (half[0, part], half[1, part])))
    return torch.cat(images)


class _Images(torch.autograd.Function):
    """Images whose graph holds nothing but what they are made from."""

    @staticmethod
    def forward(drawing: object, space: Workspace, pixels: tuple[int, int], *given: Tensor) -> Tensor:
        _, rows, charge, *_ = given
        return space.draw(rows, charge, drawing)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.drawing, ctx.space, ctx.pixels, *given = inputs
        ctx.save_for_backward(*given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        given, wanted = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():
            return None, None, None, *_pulled_back_with_graph(ctx.pixels, given, gradient)
        slopes = [torch.zeros_like(value) for value in given]
        ctx.space.pull_back(given[1], given[2], ctx.drawing, gradient, wanted, slopes)
        return None, None, None, *(slope if want else None for slope, want in zip(slopes, wanted, strict=True))


def _pulled_back_with_graph(
    pixels: tuple[int, int], given: tuple[Tensor, ...], gradient: Tensor
) -> tuple[Tensor | None, ...]:
    """Return derivatives that can be differentiated again."""
    # With respect to views: where one input was made from another, neither counts for the other here.
    views = [value.view_as(value) for value in given]
    wanted = [value for value in views if value.requires_grad]
    found = iter(torch.autograd.grad(_in_pieces(pixels, *views), wanted, gradient, create_graph=True))
    return tuple(next(found) if value.requires_grad else None for value in views)
