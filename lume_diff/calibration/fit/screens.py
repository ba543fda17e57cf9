"""Parameters of a screen and its camera: resolution, magnification, rotation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lume_diff.calibration.fit.parameters import Parameter
from lume_diff.calibration.fit.priors import Prior
from lume_diff.calibration.likelihoods.measures import axes
from lume_diff.errors import ValidationError


class Blur(Parameter):
    """The screen's resolution: an image is smoothed by a Gaussian of this standard deviation [m].

    Args:
        prior: of the standard deviation [m], positive: ``LogNormal`` or ``Bounded``.
        name: in reports.

    Gradient:
        Exact.

    Example:
        >>> from lume_diff.calibration import LogNormal
        >>> Blur(LogNormal(3e-5, 2.0)).unit
        'm'
    """

    def __init__(self, prior: Prior, *, name: str = "screen blur") -> None:
        super().__init__(name, prior, "m")

    def on_image(self, image: Tensor, value: Tensor, pixel_size: tuple[float, float]) -> Tensor:
        """Return the smoothed image; what is smoothed over the edge is lost."""
        ny, nx = image.shape[-2:]
        width = value.double()  # of a number in single precision torch's forward mode makes tangents in double
        across = _smoothing(nx, width / pixel_size[0]).to(image.dtype)
        along = _smoothing(ny, width / pixel_size[1]).to(image.dtype)
        return along @ image @ across.mT


def _smoothing(count: int, width: Tensor) -> Tensor:
    """Return the share of pixel j that comes to lie in pixel i, ``(*batch, count, count)``, for a width in pixels."""
    index = torch.arange(count, dtype=width.dtype, device=width.device)
    distance = index.unsqueeze(-1) - index
    scaled = math.sqrt(0.5) / width[..., None, None]
    return 0.5 * (torch.erf((distance + 0.5) * scaled) - torch.erf((distance - 0.5) * scaled))


class Magnification(Parameter):
    """The scale of the image: a length on the screen is this times what the pixel size says.

    Args:
        prior: of the factor, around 1.
        axis: ``"x"``, ``"y"``, or both by default.
        name: in reports.

    Raises:
        ValidationError: for another axis.

    Gradient:
        Exact, of the image interpolated between pixels.

    Example:
        >>> from lume_diff.calibration import Normal
        >>> Magnification(Normal(1.0, 0.05)).name
        'magnification'
    """

    def __init__(self, prior: Prior, *, axis: str = "xy", name: str = "magnification") -> None:
        super().__init__(name, prior, "")
        if axis not in ("x", "y", "xy"):
            raise ValidationError(f"axis of {name!r} is {axis!r}; expected 'x', 'y' or 'xy'")
        self.axis = axis

    def acts(self) -> dict[str, Any]:
        """Return the axis."""
        return {"axis": self.axis}

    def on_image(self, image: Tensor, value: Tensor, pixel_size: tuple[float, float]) -> Tensor:
        """Return the image as a camera sees it whose pixels are ``value`` times larger on the screen."""
        one, zero = torch.ones_like(value), torch.zeros_like(value)
        across = value if "x" in self.axis else one
        along = value if "y" in self.axis else one
        return _resampled(image, (across, zero, zero, along), pixel_size) * (across * along)[..., None, None]


class Rotation(Parameter):
    """The camera's rotation about its axis [rad], counterclockwise as seen on the image.

    Args:
        prior: of the angle [rad].
        name: in reports.

    Gradient:
        Exact, of the image interpolated between pixels.

    Example:
        >>> from lume_diff.calibration import Normal
        >>> Rotation(Normal(0.0, 0.01)).unit
        'rad'
    """

    def __init__(self, prior: Prior, *, name: str = "camera rotation") -> None:
        super().__init__(name, prior, "rad")

    def on_image(self, image: Tensor, value: Tensor, pixel_size: tuple[float, float]) -> Tensor:
        """Return the image that a camera turned by ``value`` sees."""
        cosine, sine = torch.cos(value), torch.sin(value)
        return _resampled(image, (cosine, -sine, sine, cosine), pixel_size)


def _resampled(image: Tensor, matrix: tuple[Tensor, ...], pixel_size: tuple[float, float]) -> Tensor:
    """Return at every pixel ``(x, y)`` of a camera what the screen shows at ``matrix @ (x, y)``, interpolated.

    By gathering: torch's own interpolation has no forward mode, by which models are fitted.
    """
    ny, nx = image.shape[-2:]
    x, y = axes(image, pixel_size)
    y = y.unsqueeze(-1)
    xx, xy, yx, yy = (entry.to(image.dtype)[..., None, None] for entry in matrix)
    # A dark frame of one pixel is what the camera sees beyond the image.
    column = ((xx * x + xy * y) / pixel_size[0] + 0.5 * (nx + 1)).clamp(0.0, nx + 1.0)
    row = ((yx * x + yy * y) / pixel_size[1] + 0.5 * (ny + 1)).clamp(0.0, ny + 1.0)
    left, low = column.floor().clamp_max(nx), row.floor().clamp_max(ny)
    corner = (low * (nx + 2) + left).long().expand(image.shape).flatten(-2)
    framed = torch.nn.functional.pad(image, (1, 1, 1, 1)).flatten(-2)
    steps = (0, 1, nx + 2, nx + 3)
    near = [framed.gather(-1, corner + step).unflatten(-1, (ny, nx)) for step in steps]
    lower, upper = (torch.lerp(first, second, column - left) for first, second in (near[:2], near[2:]))
    return torch.lerp(lower, upper, row - low)
