"""Where the pixels of an image are in space, and what part of the camera's frame they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lume_diff.errors import ShapeError, ValidationError

_ROUNDING = 1e-6  # relative


@dataclass(frozen=True)
class Frame:
    """Place the pixels of an image in space.

    The centre of the full frame is x = y = 0; row 0 is at the lowest y, column 0 at the lowest x. An image is a window
    of the full frame, with blocks of pixels added up.

    Attributes:
        full: shape of the full frame, ``(ny, nx)``.
        pixel: width and height of a pixel of the full frame [m].
        window: first row, row behind the last, first column, column behind the last, in pixels of the full frame.
        binning: how many pixels of the full frame one pixel has across and up.
    """

    full: tuple[int, int]
    pixel: tuple[float, float]
    window: tuple[int, int, int, int]
    binning: int = 1

    @classmethod
    def of(cls, shape: tuple[int, int], pixel: tuple[float, float]) -> Frame:
        """Return the frame of images that nothing was cut from, of a ``shape`` ``(ny, nx)`` and ``pixel`` size [m]."""
        return cls(shape, pixel, (0, shape[0], 0, shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of an image, ``(ny, nx)``."""
        top, bottom, left, right = self.window
        return (bottom - top) // self.binning, (right - left) // self.binning

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Width and height of a pixel of the image [m]."""
        return self.pixel[0] * self.binning, self.pixel[1] * self.binning

    @property
    def is_full(self) -> bool:
        """Whether nothing was cut off."""
        return self.window == (0, self.full[0], 0, self.full[1])

    @property
    def x(self) -> np.ndarray:
        """Centres of the columns [m], ``(nx,)``."""
        return _centres(self.window[2], self.shape[1], self.binning, self.full[1], self.pixel[0])

    @property
    def y(self) -> np.ndarray:
        """Centres of the rows [m], ``(ny,)``."""
        return _centres(self.window[0], self.shape[0], self.binning, self.full[0], self.pixel[1])

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Outer edges of the image: lowest x, highest x, lowest y, highest y [m]."""
        (dx, dy), x, y = self.pixel_size, self.x, self.y
        return x[0] - 0.5 * dx, x[-1] + 0.5 * dx, y[0] - 0.5 * dy, y[-1] + 0.5 * dy

    def agrees(self, other: Frame) -> bool:
        """Tell whether another frame shows the same pixels, whose size is the same but for rounding."""
        alike = all(math.isclose(a, b, rel_tol=_ROUNDING) for a, b in zip(self.pixel, other.pixel, strict=True))
        return alike and replace(other, pixel=self.pixel) == self

    def crop(self, rows: tuple[int, int], columns: tuple[int, int]) -> Frame:
        """Return the frame of some ``rows`` and ``columns``, ``(first, end)`` in pixels of the image, ends excluded."""
        top, _, left, _ = self.window
        b = self.binning
        window = (top + rows[0] * b, top + rows[1] * b, left + columns[0] * b, left + columns[1] * b)
        return replace(self, window=window)

    def bin(self, n: int) -> Frame:
        """Return the frame with blocks of n x n pixels added up; a rest at the upper end is cut off."""
        ny, nx = self.shape
        whole = self.crop((0, ny // n * n), (0, nx // n * n))
        return replace(whole, binning=self.binning * n)

    def flip(self, axis: str) -> Frame:
        """Return the frame turned over along x or y."""
        (ny, nx), (top, bottom, left, right) = self.full, self.window
        if axis == "x":
            return replace(self, window=(top, bottom, nx - right, nx - left))
        return replace(self, window=(ny - bottom, ny - top, left, right))

    def transpose(self) -> Frame:
        """Return the frame with x and y exchanged."""
        top, bottom, left, right = self.window
        return Frame(
            (self.full[1], self.full[0]), (self.pixel[1], self.pixel[0]), (left, right, top, bottom), self.binning
        )

    def view(self, images: Any) -> Any:
        """Cut images of the full frame to what this frame shows, and add up its blocks of pixels.

        Args:
            images: an array or tensor, ``(..., *full)``.

        Returns:
            The same kind, ``(..., *shape)``; binned pixels are added up.

        Raises:
            ShapeError: images of another shape.

        Gradient: exact.
        """
        if tuple(images.shape[-2:]) != self.full:
            raise ShapeError(f"images of shape {tuple(images.shape)}, expected (..., {self.full[0]}, {self.full[1]})")
        top, bottom, left, right = self.window
        return add_up(images[..., top:bottom, left:right], self.binning)


def add_up(images: Any, n: int) -> Any:
    """Return images with blocks of n x n pixels added up; array or tensor, ``(..., ny, nx)``, a rest is cut off."""
    if n == 1:
        return images
    ny, nx = images.shape[-2] // n, images.shape[-1] // n
    if not (ny and nx):
        raise ValidationError(f"bin: {n} is more than an image of {tuple(images.shape[-2:])} pixels has")
    blocks = images[..., : ny * n, : nx * n].reshape(*images.shape[:-2], ny, n, nx, n)
    return blocks.sum((-3, -1))


def _centres(first: int, count: int, binning: int, full: int, size: float) -> np.ndarray:
    return (first + binning * (np.arange(count) + 0.5) - 0.5 * full) * size
