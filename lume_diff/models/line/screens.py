"""Screen images from particles: cloud-in-cell in one scatter, histogram, kernel density.

All functions take positions on the screen ``x, y`` [m] and charges [C], ``(*batch, n)``, the image's width and height
``pixels = (nx, ny)``, and half the width and height of the screen ``half`` [m], ``(*batch,)`` each; the screen is
centred on zero. Images are ``(*batch, ny, nx)``, row 0 at the lowest y, column 0 at the lowest x.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

Pair = tuple[Tensor, Tensor]


def cloud_in_cell(x: Tensor, y: Tensor, charge: Tensor, pixels: tuple[int, int], half: Pair) -> Tensor:
    """Spread each particle's charge over the four pixels around it, in proportion to its distance from their centres.

    Args:
        x, y, charge, pixels, half: see the module.

    Returns:
        Charge in each pixel [C]. Particles beyond the edge count nothing; of one in the outer half of an edge pixel,
        part of the charge is lost.

    Gradient:
        Exact; the image is piecewise linear in the positions.

    Source:
        C. K. Birdsall and D. Fuss, J. Comput. Phys. 3, 494 (1969), doi:10.1016/0021-9991(69)90058-8.
    """
    nx, ny = pixels
    width = nx + 2  # A frame of one pixel takes what falls over the edge, so that no corner needs a mask.
    inside = _inside(x, y, half)
    column = torch.where(inside, _pixel(x, nx, half[0]), 0.0)
    row = torch.where(inside, _pixel(y, ny, half[1]), 0.0)
    counted = torch.where(inside, charge, 0.0)
    column_part, row_part = column.frac(), row.frac()
    # As whole numbers: in single precision the pixels of a large image cannot be told apart.
    corner = torch.add(column.long(), row.long(), alpha=width)

    upper = counted * row_part
    lower = counted - upper
    upper_right, lower_right = upper * column_part, lower * column_part
    shares = torch.stack((lower - lower_right, lower_right, upper - upper_right, upper_right), dim=-2)
    neighbours = torch.tensor((0, 1, width, width + 1), device=corner.device).unsqueeze(-1)
    index = (corner.unsqueeze(-2) + neighbours).expand(shares.shape)
    frame = counted.new_zeros((*counted.shape[:-1], (ny + 2) * width))
    frame = frame.scatter_add(-1, index.flatten(-2), shares.flatten(-2))
    return torch.nn.functional.pad(frame.unflatten(-1, (ny + 2, width)), (-1, -1, -1, -1))


def _inside(x: Tensor, y: Tensor, half: Pair) -> Tensor:
    return (x.abs() <= half[0].unsqueeze(-1)) & (y.abs() <= half[1].unsqueeze(-1))


def _pixel(position: Tensor, count: int, half: Tensor) -> Tensor:
    """Return a position in pixels, 1 at the centre of the first one."""
    middle = torch.tensor(0.5 * (count + 1), dtype=position.dtype, device=position.device)
    return torch.addcmul(middle, position, (0.5 * count / half).unsqueeze(-1))


def _edges(count: int, half: Tensor) -> Tensor:
    """Return the edges between pixels, ``(*batch, count + 1)``."""
    steps = torch.arange(count + 1, dtype=half.dtype, device=half.device)
    half = half.unsqueeze(-1)
    step = 2.0 * half / count
    return torch.where(steps < (count + 1) // 2, steps * step - half, half - (count - steps) * step)


def histogram(x: Tensor, y: Tensor, charge: Tensor, pixels: tuple[int, int], half: Pair) -> Tensor:
    """Count each particle's charge in the pixel it hits.

    Args:
        x, y, charge, pixels, half: see the module.

    Returns:
        Charge in each pixel [C]; a pixel has its lower edges, and the last one its upper edge too.

    Gradient:
        None with respect to positions: the image is piecewise constant. Exact with respect to charges.
    """
    nx, ny = pixels
    inside = _inside(x, y, half)
    x, y, charge, inside = torch.broadcast_tensors(x, y, charge, inside)
    column, row = _bin(x, nx, half[0]), _bin(y, ny, half[1])
    index = torch.where(inside, row * nx + column, 0)
    flat = charge.new_zeros((*charge.shape[:-1], ny * nx)).scatter_add(-1, index, torch.where(inside, charge, 0.0))
    return flat.unflatten(-1, (ny, nx))


def _bin(position: Tensor, count: int, half: Tensor) -> Tensor:
    """Return the number of the pixel between whose edges a position lies, or some pixel where there is none."""
    if half.dim() or is_functorch_wrapped_tensor(half):
        edges = _edges(count, half)
    else:  # The same to the last digit as Cheetah's, for particles on an edge.
        edges = torch.linspace(-half.detach(), half.detach(), count + 1, dtype=half.dtype, device=half.device)
    edges = edges.expand(*position.shape[:-1], count + 1)
    guess = (position * (0.5 * count / half).unsqueeze(-1) + 0.5 * count).nan_to_num().clamp(0, count - 1).long()
    guess = guess - (position < edges.gather(-1, guess)).long()
    guess = guess + (position >= edges.gather(-1, (guess + 1).clamp(0, count))).long()
    return guess.clamp(0, count - 1)


def kernel_density(
    x: Tensor, y: Tensor, charge: Tensor, pixels: tuple[int, int], half: Pair, bandwidth: Tensor
) -> Tensor:
    """Smooth the particles by a Gaussian, with Cheetah's estimator.

    Args:
        x, y, charge, pixels, half: see the module.
        bandwidth: standard deviation of the Gaussian [m], ``(*batch,)``.

    Returns:
        Density in each pixel [1]; the pixels add up to one, wherever the particles are.

    Gradient:
        Exact.
    """
    nx, ny = pixels
    along_x = _kernels(x, nx, half[0], bandwidth) * charge.unsqueeze(-1)
    along_y = _kernels(y, ny, half[1], bandwidth)
    tiny = torch.finfo(x.dtype).tiny
    joint = along_y.clamp_min(tiny).mT @ along_x.clamp_min(tiny)
    return joint / (joint.sum((-2, -1), keepdim=True) + 1e-10)


def _kernels(position: Tensor, count: int, half: Tensor, bandwidth: Tensor) -> Tensor:
    """Return the Gaussian around each particle at the centre of each pixel, ``(*batch, n, count)``."""
    edges = _edges(count, half)
    centres = 0.5 * (edges[..., 1:] + edges[..., :-1])
    width = bandwidth[..., None, None]
    distance = (position.unsqueeze(-1) - centres.unsqueeze(-2)) / width
    return (-0.5 * distance.square()).exp() / (math.sqrt(2.0 * math.pi) * width)
