"""Cloud-in-cell images of a few settings and what they pull back, in memory that is used again."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

_BILINEAR, _ZEROS = 0, 0  # as torch numbers ways to interpolate and what lies beyond an image


class _Memory(threading.local):
    """Memory of a thread that is used again; to get it from the system each time would cost more than the steps."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self.placed: object = None  # whose places it holds

    def take(self, name: str, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor of any content, which the next one of the same name overwrites."""
        size, kept, dtype = math.prod(shape), self._kept.get(name), dtype or like.dtype
        if like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        if kept is None or kept.dtype is not dtype or kept.numel() < size:
            with torch.inference_mode(False):
                kept = self._kept[name] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)


_MEMORY = _Memory()


class Workspace:
    """What it takes to draw the images of some settings, a few of them at once.

    Args:
        pixels: width and height of the image.
        maps: the rows of the maps that give x and y, ``(settings, 2, 7)``.
        half: half the width and height of the screen [m], ``(2, settings)``.
        offset: its position [m], ``(2, settings)``.
        most: how many particles of all settings to look at together.
    """

    def __init__(self, pixels: tuple[int, int], maps: Tensor, half: Tensor, offset: Tensor, most: int) -> None:
        self._pixels, self._most = pixels, most
        # Coordinates first, (2, settings, ...), so that both are one operation and each is contiguous.
        self._per_half = 1.0 / half.unsqueeze(-1)
        self._maps, self._offset = maps.transpose(0, 1) * self._per_half, offset.unsqueeze(-1) * self._per_half

    def draw(self, rows: Tensor, charge: Tensor, drawing: object) -> Tensor:
        """Return images ``(settings, ny, nx)``, as ``screens.cloud_in_cell`` does.

        Args:
            rows: coordinates before the maps, ``(7, n)``.
            charge: of each particle [C], ``(n,)``.
            drawing: what ``pull_back`` knows it by.
        """
        pieces = self._parts(rows)
        _MEMORY.placed = None
        images = [self._draw(part, rows, charge) for part in pieces]
        if len(pieces) == 1 and rows.device.type == "cpu":
            _MEMORY.placed = drawing
        return images[0] if len(pieces) == 1 else torch.cat(images)

    def pull_back(
        self,
        rows: Tensor,
        charge: Tensor,
        drawing: object,
        gradient: Tensor,
        wanted: tuple[bool, ...],
        slopes: list[Tensor],
    ) -> None:
        """Add the derivatives of the sum of images times ``gradient (settings, ny, nx)`` to those that are wanted.

        Args:
            rows, charge, drawing: see ``draw``.
            gradient: of a number with respect to the images.
            wanted: of maps, rows, charge, half and offset.
            slopes: what is added to, in their shapes.
        """
        if _MEMORY.placed is not drawing:
            _MEMORY.placed = None
        for part in self._parts(rows):
            self._pull_back(part, rows, charge, gradient[part], wanted, slopes)

    def _parts(self, rows: Tensor) -> list[slice]:
        """Return which settings to look at together."""
        return parts(self._maps.shape[1], rows.shape[-1], self._most)

    def _place(self, part: slice, rows: Tensor, charge: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where particles are on the screen, -1 to 1, ``(2, size, n)``, their charge, and 1 for those on it.

        Where the memory still holds them, they are not computed again.
        """
        maps, count = self._maps[:, part], rows.shape[-1]
        size = maps.shape[1]
        at, cell = (_MEMORY.take(name, (2, size, count), rows) for name in ("at", "cell"))
        counted = _MEMORY.take("counted", (size, count), rows)
        if _MEMORY.placed is not None:
            return at, counted, cell[0]
        torch.matmul(maps, rows, out=at)
        at.sub_(self._offset[:, part])
        across, along = torch.abs(at, out=cell)
        inside = torch.maximum(across, along, out=across).le_(1.0)
        torch.mul(charge, inside, out=counted)
        at.nan_to_num_(0.0).clamp_(-1.0, 1.0)  # so that what is off has a place too
        return at, counted, inside

    def _draw(self, part: slice, rows: Tensor, charge: Tensor) -> Tensor:
        """Return images ``(size, ny, nx)``."""
        at, counted, _ = self._place(part, rows, charge)
        (nx, ny), size = self._pixels, len(counted)
        like = _MEMORY.take("like", (size, 1, ny, nx), rows)
        return _to_corners(counted, like, at, of_image=True)[:, 0]

    def _pull_back(
        self,
        part: slice,
        rows: Tensor,
        charge: Tensor,
        gradient: Tensor,
        wanted: tuple[bool, ...],
        slopes: list[Tensor],
    ) -> None:
        at, counted, inside = self._place(part, rows, charge)
        size, count = counted.shape
        # Read at the particles, the gradient has the same weights as their charge on the pixels.
        image = gradient.unsqueeze(1)
        if wanted[2]:
            read = torch.nn.functional.grid_sample(image, _grid(at), align_corners=False)[:, 0, 0]
            slopes[2] += (read * inside).sum(0)
        if not (wanted[0] or wanted[1] or wanted[3] or wanted[4]):
            return
        by_at = _to_corners(counted, image, at, of_image=False)[:, 0].permute(2, 0, 1)
        per_half = self._per_half[:, part]
        if wanted[0]:
            slopes[0].transpose(0, 1)[:, part] = (by_at @ rows.mT) * per_half
        if wanted[1]:
            slopes[1].addmm_(self._maps[:, part].flatten(0, 1).mT, by_at.reshape(2 * size, count))
        if wanted[3]:
            slopes[3][:, part] = -(by_at * at).sum(-1) * per_half.squeeze(-1)
        if wanted[4]:
            slopes[4][:, part] = -by_at.sum(-1) * per_half.squeeze(-1)


def _grid(at: Tensor) -> Tensor:
    """Return places ``(2, size, n)`` as torch takes them, ``(size, 1, n, 2)``."""
    return at.permute(1, 2, 0).unsqueeze(1)


def _to_corners(charge: Tensor, image: Tensor, at: Tensor, of_image: bool) -> Tensor:
    """Return a derivative of the sum of charges ``(size, n)``, each times ``image (size, 1, ny, nx)`` where it is.

    That with respect to the image, ``of_image``, is the image of the charges, each on the four nearest pixels; that
    with respect to the places, ``(size, 1, n, 2)``, is what an image pulls back.
    """
    mask = [of_image, not of_image]
    found = torch.ops.aten.grid_sampler_2d_backward(
        charge[:, None, None], image, _grid(at), _BILINEAR, _ZEROS, False, mask
    )
    return found[0] if of_image else found[1]


def parts(settings: int, count: int, most: int) -> list[slice]:
    """Return slices of settings of a bunch of ``count`` particles, each of ``most`` particles at most, if it can be."""
    number = math.ceil(settings / max(1, most // count))
    edges = [settings * part // number for part in range(number + 1)]
    return [slice(start, stop) for start, stop in pairwise(edges)]
