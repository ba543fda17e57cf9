"""Screen images from particles: cloud-in-cell in one scatter, histogram, kernel density."""

from __future__ import annotations

import torch

#: Ways to make an image, and whether it can be differentiated.
METHODS = {"cloud-in-cell": True, "kde": True, "histogram": False}


def cloud_in_cell(
    x: torch.Tensor, y: torch.Tensor, charge: torch.Tensor, pixels: tuple[int, int], pixel_size: torch.Tensor
) -> torch.Tensor:
    """Spread each particle's charge over the four pixels around it, in proportion to its distance from their centres.

    Args:
        x, y: positions on the screen [m], ``(*batch, n)``; the screen is centred on zero.
        charge: charge of each particle [C], ``(*batch, n)``.
        pixels: ``(nx, ny)``.
        pixel_size: width and height of a pixel [m], ``(*batch, 2)``.

    Returns:
        Charge in each pixel [C], ``(*batch, ny, nx)``, row 0 at the lowest y, column 0 at the lowest x. Particles
        beyond the edge count nothing; of one in the outer half of an edge pixel, part of the charge is lost.

    Gradient:
        Exact; the image is piecewise linear in the positions.

    Source:
        C. K. Birdsall and D. Fuss, J. Comput. Phys. 3, 494 (1969), doi:10.1016/0021-9991(69)90058-8.
    """
    nx, ny = pixels
    column = x / pixel_size[..., 0:1] + 0.5 * (nx - 1)
    row = y / pixel_size[..., 1:2] + 0.5 * (ny - 1)
    inside = (column >= -0.5) & (column <= nx - 0.5) & (row >= -0.5) & (row <= ny - 0.5)
    column, row, charge, inside = torch.broadcast_tensors(column, row, charge, inside)
    column, row = torch.where(inside, column, 0.0), torch.where(inside, row, 0.0)
    column_floor, row_floor = column.floor(), row.floor()
    column_part, row_part = column - column_floor, row - row_floor

    # A frame of one pixel takes what falls over the edge, so that no corner needs a mask.
    width = nx + 2
    corner = ((row_floor + 1) * width + column_floor + 1).long()
    counted = torch.where(inside, charge, 0.0)
    upper = counted * row_part
    lower = counted - upper
    upper_right, lower_right = upper * column_part, lower * column_part
    shares = torch.stack((lower - lower_right, lower_right, upper - upper_right, upper_right), dim=-2)
    index = torch.stack((corner, corner + 1, corner + width, corner + width + 1), dim=-2)
    frame = counted.new_zeros((*counted.shape[:-1], (ny + 2) * width))
    frame = frame.scatter_add(-1, index.flatten(-2), shares.flatten(-2))
    return frame.reshape(*frame.shape[:-1], ny + 2, width)[..., 1:-1, 1:-1]


def histogram(
    x: torch.Tensor, y: torch.Tensor, charge: torch.Tensor, pixels: tuple[int, int], pixel_size: torch.Tensor
) -> torch.Tensor:
    """Count each particle's charge in the pixel it hits; arguments and result as ``cloud_in_cell``.

    Gradient:
        None: the image is piecewise constant.
    """
    nx, ny = pixels
    column = (x / pixel_size[..., 0:1] + 0.5 * nx).floor()
    row = (y / pixel_size[..., 1:2] + 0.5 * ny).floor()
    inside = (column >= 0) & (column < nx) & (row >= 0) & (row < ny)
    column, row, charge, inside = torch.broadcast_tensors(column, row, charge, inside)
    index = torch.where(inside, row * nx + column, 0.0).long()
    flat = charge.new_zeros((*charge.shape[:-1], ny * nx)).scatter_add(-1, index, torch.where(inside, charge, 0.0))
    return flat.reshape(*flat.shape[:-1], ny, nx)


def kernel_density(
    x: torch.Tensor,
    y: torch.Tensor,
    charge: torch.Tensor,
    pixels: tuple[int, int],
    pixel_size: torch.Tensor,
    bandwidth: torch.Tensor,
) -> torch.Tensor:
    """Smooth the particles by a Gaussian of ``bandwidth`` [m], with Cheetah's own estimator.

    Arguments and result as ``cloud_in_cell``; the pixels add up to the whole charge.

    Gradient:
        Exact.
    """
    from cheetah.utils import kde_histogram_2d

    centres = [
        (torch.arange(count, dtype=x.dtype, device=x.device) - 0.5 * (count - 1)) * pixel_size[..., axis]
        for axis, count in enumerate(pixels)
    ]
    x, y, charge = torch.broadcast_tensors(x, y, charge)
    return kde_histogram_2d(x1=x, x2=y, bins1=centres[0], bins2=centres[1], bandwidth=bandwidth, weights=charge).mT
