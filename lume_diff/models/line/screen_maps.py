"""A screen behind a linear line: its images straight from coordinates at the entrance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lume_diff.models.line.image_batches import cloud_in_cell_batch, workspace
from lume_diff.models.line.image_workspace import Workspace
from lume_diff.models.line.outputs import Output
from lume_diff.models.line.screens import Pair
from lume_diff.models.line.tracking import LineRun


@dataclass(frozen=True)
class ScreenMaps:
    """The maps from the entrance of a line to a cloud-in-cell screen, at several settings.

    Attributes:
        maps: the rows that give x and y, ``(settings, 2, 7)``.
        half: half the width and height of the screen [m], ``(settings,)`` each.
        offset: its position [m], ``(settings,)`` each.
        pixels: width and height of the image.
    """

    maps: Tensor
    half: Pair
    offset: Pair
    pixels: tuple[int, int]

    def to(self, dtype: torch.dtype) -> ScreenMaps:
        """Return the same in another precision; the single one will do, since coordinates are small differences."""
        half, offset = ((x.to(dtype), y.to(dtype)) for x, y in (self.half, self.offset))
        return ScreenMaps(self.maps.to(dtype), half, offset, self.pixels)

    def images(self, coordinates: Tensor, charge: Tensor) -> Tensor:
        """Return the images of a bunch in the precision of the maps, ``(settings, ny, nx)`` [C].

        Args:
            coordinates: (x, px, y, py, tau, p) of Cheetah at the entrance, at the line's reference, ``(n, 6)``.
            charge: of each particle [C], ``(n,)``.

        Gradient:
            Exact.
        """
        columns = coordinates.mT.to(self.maps.dtype)
        rows = torch.cat((columns, torch.ones_like(columns[:1])))
        given = (rows, charge.to(self.maps.dtype), self.pixels, self.half, self.offset)
        return cloud_in_cell_batch(self.maps, *given, space=self._space)

    @cached_property
    def _space(self) -> Workspace:
        return workspace(self.maps, self.pixels, torch.stack(self.half), torch.stack(self.offset))


def screen_edges(run: LineRun, place: int) -> tuple[Pair, Pair]:
    """Return half the width and height of a screen, and its position [m], ``(*batch,)`` each."""
    width, height = run.line.elements[place].option("resolution")
    half = 0.5 * width * run.number(place, "pixel_size_x"), 0.5 * height * run.number(place, "pixel_size_y")
    return half, (run.number(place, "misalignment_x"), run.number(place, "misalignment_y"))


def screen_maps(run: LineRun, output: Output) -> ScreenMaps | None:
    """Return how a screen sees the incoming bunch, None where that takes more than constant maps."""
    place = output.place
    element = run.line.elements[place] if output.kind == "image" else None
    if element is None or run.by_cheetah or len(run.batch_shape) > 1 or run.stretches()[0][1] < place:
        return None
    if not run.is_active(element) or element.option("method") != "cloud-in-cell":
        return None
    matrix = run.map_to(place)
    half, offset = screen_edges(run, place)
    if any(value.requires_grad for value in (matrix, *half, *offset)):
        return None
    batch = run.batch_shape or (1,)
    maps = torch.stack((matrix[..., 0, :], matrix[..., 2, :]), dim=-2).expand(*batch, 2, 7)
    half, offset = ((x.expand(batch), y.expand(batch)) for x, y in (half, offset))
    return ScreenMaps(maps, half, offset, element.pixels)
