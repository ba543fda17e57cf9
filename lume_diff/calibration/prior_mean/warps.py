"""What to interpolate in the place of an objective: the square of a beam size is smoother than its logarithm."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import softplus

#: A part of the smallest value known: what a positive quantity is not predicted below.
_FLOOR = 0.125


class Warp(ABC):
    """A monotone function of the objective, and the way back."""

    def fits(self, values: Tensor) -> bool:
        """Tell whether it can be used for these values."""
        return True

    @abstractmethod
    def forward(self, values: Tensor) -> Tensor:
        """Return what is interpolated."""

    @abstractmethod
    def back(self, warped: Tensor, known: Tensor) -> Tensor:
        """Return objectives from interpolated values; ``known`` are those that were interpolated."""


class Itself(Warp):
    """Interpolate the objective."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def back(self, warped: Tensor, known: Tensor) -> Tensor:
        """Return the values."""
        return warped


class Square(Warp):
    """Interpolate the square of a positive objective, such as a beam size."""

    def fits(self, values: Tensor) -> bool:
        """Tell whether all are positive."""
        return bool((values > 0.0).all())

    def forward(self, values: Tensor) -> Tensor:
        """Return squares."""
        return values.square()

    def back(self, warped: Tensor, known: Tensor) -> Tensor:
        """Return roots."""
        return _positive(warped, known).sqrt()


class Exponential(Warp):
    """Interpolate the square of what the objective is the logarithm of.

    Args:
        base: of the logarithm.
    """

    def __init__(self, base: float) -> None:
        self._rate = 2.0 * math.log(base)

    def fits(self, values: Tensor) -> bool:
        """Tell whether the powers are numbers of similar size."""
        return float(values.max() - values.min()) * self._rate < 30.0 and float(values.abs().max()) * self._rate < 300.0

    def forward(self, values: Tensor) -> Tensor:
        """Return powers."""
        return (self._rate * values).exp()

    def back(self, warped: Tensor, known: Tensor) -> Tensor:
        """Return logarithms."""
        return _positive(warped, known).log() / self._rate


def _positive(warped: Tensor, known: Tensor) -> Tensor:
    """Return values as they are where they are well above zero, and a smooth floor below."""
    floor = _FLOOR * known.min()
    return floor * (1.0 + softplus(warped / floor - 1.0))


#: From the plainest on.
WARPS: tuple[Warp, ...] = (Itself(), Square(), Exponential(10.0), Exponential(math.e))


def slope(warp: Warp, warped: Tensor, known: Tensor) -> Tensor:
    """Return how far the objective moves with what is interpolated, at each value."""
    with torch.enable_grad():
        at = warped.detach().requires_grad_()
        (found,) = torch.autograd.grad(warp.back(at, known).sum(), at)
    return found
