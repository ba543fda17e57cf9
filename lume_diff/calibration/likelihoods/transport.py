"""Transport: how far light has to be moved to make a predicted image a measured one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.calibration.likelihoods.measures import axes, normalised
from lume_diff.calibration.likelihoods.shots import screen_shots
from lume_diff.errors import ValidationError

#: As many independent numbers as the first two moments of an image.
_NUMBERS = 5


class Quantiles(NamedTuple):
    """Where the light of measured images lies along some directions, ``(directions, settings, quantiles)`` [m]."""

    output: str
    valid: Tensor
    width: float
    places: Tensor
    lines: list[Line]
    counted: Tensor


class Line(NamedTuple):
    """A direction as a row of bins, each pixel's light shared between the two bins next to its centre.

    Attributes:
        edges: of the bins [m], ``(bins + 1,)``.
        lower: the lower of the two bins of each pixel, ``(ny nx,)``.
        share: of the light that goes to the upper one, ``(ny nx,)``.
    """

    edges: Tensor
    lower: Tensor
    share: Tensor


class Transport(Likelihood):
    """Compare images by the sliced Wasserstein distance: its gradient is there even where images do not overlap.

    Along each direction the deviation is the distance between equal quantiles of predicted and measured light. All
    deviations of an image together weigh as much as its centroid and its second moments would.

    Args:
        sigma: distance that counts as one standard deviation [m]; a pixel by default.
        directions: how many, over half a turn.
        quantiles: how many along each.
        robust: see ``Likelihood``.

    Raises:
        ValidationError: for numbers that are not positive.

    Gradient:
        Exact, between pixels by interpolation.

    Source:
        N. Bonneel et al., J. Math. Imaging Vis. 51, 22 (2015), doi:10.1007/s10851-014-0506-3.
    """

    def __init__(
        self, sigma: float | None = None, directions: int = 8, quantiles: int = 32, robust: float | None = None
    ) -> None:
        super().__init__(robust)
        for name, value in (("sigma", sigma), ("directions", directions), ("quantiles", quantiles)):
            if value is not None and not value > 0:
                raise ValidationError(f"{name} is {value!r}; expected a positive number")
        self.sigma, self.directions, self.quantiles = sigma, directions, quantiles

    def target(self, data: Any) -> Quantiles:
        """Take the quantiles of the mean images."""
        shots = screen_shots(data)
        width = max(shots.pixel_size) if self.sigma is None else self.sigma
        x, y = axes(shots.mean, shots.pixel_size)
        angles = [math.pi * k / self.directions for k in range(self.directions)]
        lines = [_line((math.cos(a) * x + math.sin(a) * y.unsqueeze(-1)).reshape(-1), shots.pixel_size) for a in angles]
        places = self._places((shots.mean * shots.valid).clamp_min(0.0), lines)
        return Quantiles(shots.output, shots.valid, width, places, lines, shots.present.any(1))

    def deviations(self, predicted: Mapping[str, Tensor], target: Quantiles) -> Tensor:
        """Return the deviation of every quantile that counts, ``(n,)``."""
        light = predicted[target.output] * target.valid
        places = self._places(light, target.lines)
        weight = math.sqrt(_NUMBERS / (self.directions * self.quantiles)) / target.width
        return ((places - target.places) * weight)[:, target.counted].flatten()

    def _places(self, light: Tensor, lines: list[Line]) -> Tensor:
        """Return quantiles along all directions, ``(directions, settings, quantiles)`` [m]."""
        flat = normalised(light).flatten(-2)
        steps = torch.arange(self.quantiles, dtype=light.dtype, device=light.device)
        wanted = ((steps + 0.5) / self.quantiles).expand(*flat.shape[:-1], self.quantiles).contiguous()
        found = []
        for edges, lower, share in lines:
            bins = flat.new_zeros((*flat.shape[:-1], len(edges) - 1))
            bins = bins.index_add(-1, lower, flat * (1.0 - share)).index_add(-1, lower + 1, flat * share)
            below = torch.nn.functional.pad(bins.cumsum(-1), (1, 0))
            upper = torch.searchsorted(below.detach().contiguous(), wanted).clamp(1, below.shape[-1] - 1)
            low, high = below.gather(-1, upper - 1), below.gather(-1, upper)
            lit = high > low
            part = torch.where(lit, (wanted - low) / torch.where(lit, high - low, torch.ones_like(low)), 0.5)
            left, right = edges[upper - 1], edges[upper]
            found.append(left + part.clamp(0.0, 1.0) * (right - left))
        return torch.stack(found)

    def __repr__(self) -> str:
        return f"Transport({self.sigma}, {self.directions}, {self.quantiles}, robust={self.robust})"


def _line(position: Tensor, pixel_size: tuple[float, float]) -> Line:
    """Return the bins for pixels at positions along a direction ``(ny nx,)`` [m]."""
    width = min(pixel_size)
    first = position.min() - width
    place = (position - first) / width - 0.5
    lower = place.floor()
    count = int(lower.max()) + 2
    edges = first + width * torch.arange(count + 1, dtype=position.dtype, device=position.device)
    return Line(edges, lower.long(), place - lower)
