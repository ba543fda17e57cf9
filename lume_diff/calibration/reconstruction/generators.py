"""Generators: a bunch of any shape as a smooth map of a normal distribution, with parameters to be fitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from lume_diff.errors import ValidationError

#: What each dimension of a bunch is: position [m], angle [rad], and for six dimensions time [m] and momentum [1].
DIMENSIONS = {4: ("x", "px", "y", "py"), 6: ("x", "px", "y", "py", "tau", "p")}

_FEW = 1_000_000  # points


class Network(nn.Module):
    """A linear map, which makes any ellipsoid, plus a small network, which bends it.

    At the start the network contributes little, so that the bunch is round and smooth. Its first weights are twice as
    large as is usual, so that it bends within the bunch rather than across it. Points are columns inside: layers as
    narrow as these are then twice as fast.

    Args:
        dimensions: 4 (transverse) or 6.
        width: of the hidden layers.
        layers: how many hidden ones.
        seed: of the first weights.
        dtype: of the small network: single precision takes half the time, and what it bends is smooth.

    Raises:
        ValidationError: for another number of dimensions.

    Source:
        R. Roussel et al., Phys. Rev. Lett. 130, 145001 (2023), doi:10.1103/PhysRevLett.130.145001.

    Example:
        >>> Network(4)(torch.zeros(10, 4, dtype=torch.float64)).shape
        torch.Size([10, 4])
    """

    def __init__(
        self, dimensions: int = 4, width: int = 24, layers: int = 2, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        if dimensions not in DIMENSIONS:
            raise ValidationError(f"dimensions is {dimensions!r}; expected one of {', '.join(map(str, DIMENSIONS))}")
        self.dimensions = dimensions
        self.dtype = dtype
        sizes = [dimensions, *([width] * layers)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(dimensions, dimensions, dtype=torch.float64)
            parts: list[nn.Module] = []
            for first, second in pairwise(sizes):
                layer = nn.Linear(first, second, dtype=dtype)
                with torch.no_grad():
                    layer.weight.mul_(2.0)
                parts += [layer, nn.SiLU()]
            last = nn.Linear(width, dimensions, dtype=dtype)
            self.bend = nn.Sequential(*parts, last)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dimensions))
            self.linear.bias.zero_()
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, base: Tensor) -> Tensor:
        """Map points of a standard normal distribution ``(n, d)`` to coordinates of order one ``(n, d)``.

        Gradient:
            Exact.
        """
        columns = base.mT
        bent = columns.to(self.dtype)
        for part in self.bend:
            bent = _passed(part, bent) if isinstance(part, nn.Linear) else part(bent)
        return (_passed(self.linear, columns) + bent.to(base.dtype)).mT


def _passed(layer: nn.Linear, columns: Tensor) -> Tensor:
    """Return what a layer makes of points that are columns, ``(d, n)``, in their precision."""
    bias, weight = layer.bias.to(columns.dtype), layer.weight.to(columns.dtype)
    return torch.addmm(bias.unsqueeze(-1), weight, columns)


def even_points(count: int, dimensions: int, seed: int) -> Tensor:
    """Return points that fill the unit cube evenly, ``(count, dimensions)``.

    Up to a million of them are in single precision, which moves them by a small part of their spacing.

    Args:
        count: how many.
        dimensions: of the space.
        seed: of the scrambling.

    Source:
        A. B. Owen, J. Complexity 14, 466 (1998), doi:10.1006/jcom.1998.0487 (scrambled Sobol points).
    """
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
    # One coordinate after the other in memory, as the bunch is used.
    return engine.draw(count, dtype=torch.float32 if count <= _FEW else torch.float64).mT.contiguous().mT


def normal_points(even: Tensor, shift: Tensor | None = None) -> Tensor:
    """Return points that fill a standard normal distribution as evenly as ``even`` fills the unit cube.

    Args:
        even: points in the unit cube, ``(n, d)``; what is returned has their precision.
        shift: by which they are moved around in it, 0 to 1, ``(d,)``: other points, as even as these.

    Source:
        R. Cranley and T. N. L. Patterson, SIAM J. Numer. Anal. 13, 904 (1976), doi:10.1137/0713071 (shifted points).
    """
    moved = even if shift is None else (even + shift).frac_()
    edge = 0.5 / max(len(even), 1)
    # The inverse of the normal distribution, by a function that torch computes for several numbers at once.
    return (2.0 * moved).sub_(1.0).clamp_(2.0 * edge - 1.0, 1.0 - 2.0 * edge).erfinv_().mul_(math.sqrt(2.0))


def entropy(generator: nn.Module, base: Tensor) -> Tensor:
    """Return how much larger the entropy of a generated bunch is than that of its base, per coordinate.

    Args:
        generator: maps ``(n, d)`` to ``(n, d)``; its ``log_volume`` of points, ``(n,)``, is used where it has one.
        base: points to average over, ``(n, d)``.

    Returns:
        The mean logarithm of the volume that the map gives to a point, over d; ``()``.

    Gradient:
        Exact, to the weights of the generator.

    Source:
        A. Hoover and J. C. Wong, Phys. Rev. Research 6, 033163 (2024), doi:10.1103/PhysRevResearch.6.033163.
    """
    log_volume: Callable[[Tensor], Tensor] | None = getattr(generator, "log_volume", None)
    if log_volume is not None:
        return log_volume(base).mean() / base.shape[-1]
    slopes = torch.func.vmap(torch.func.jacrev(lambda point: generator(point.unsqueeze(0)).squeeze(0)))(base)
    return torch.linalg.slogdet(slopes).logabsdet.mean() / base.shape[-1]
