"""Generators: a bunch of any shape as a smooth map of a normal distribution, with parameters to be fitted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lume_diff.errors import ValidationError

#: What each dimension of a bunch is: position [m], angle [rad], and for six dimensions time [m] and momentum [1].
DIMENSIONS = {4: ("x", "px", "y", "py"), 6: ("x", "px", "y", "py", "tau", "p")}


class Network(nn.Module):
    """A linear map, which makes any ellipsoid, plus a small network, which bends it.

    At the start the network contributes little, so that the bunch is round and smooth.

    Args:
        dimensions: 4 (transverse) or 6.
        width: of the hidden layers.
        layers: how many hidden ones.
        seed: of the first weights.

    Raises:
        ValidationError: for another number of dimensions.

    Source:
        R. Roussel et al., Phys. Rev. Lett. 130, 145001 (2023), doi:10.1103/PhysRevLett.130.145001.

    Example:
        >>> Network(4)(torch.zeros(10, 4, dtype=torch.float64)).shape
        torch.Size([10, 4])
    """

    def __init__(self, dimensions: int = 4, width: int = 64, layers: int = 2, seed: int = 0) -> None:
        super().__init__()
        if dimensions not in DIMENSIONS:
            raise ValidationError(f"dimensions is {dimensions!r}; expected one of {', '.join(map(str, DIMENSIONS))}")
        self.dimensions = dimensions
        sizes = [dimensions, *([width] * layers), dimensions]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(dimensions, dimensions, dtype=torch.float64)
            parts: list[nn.Module] = []
            for first, second in zip(sizes[:-1], sizes[1:], strict=True):
                parts += [nn.Linear(first, second, dtype=torch.float64), nn.Tanh()]
            self.bend = nn.Sequential(*parts[:-1])
        last = parts[-2]
        assert isinstance(last, nn.Linear)
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
        return self.linear(base) + self.bend(base)


def base_points(count: int, dimensions: int, seed: int) -> Tensor:
    """Return points that fill a standard normal distribution evenly, ``(count, dimensions)``.

    Args:
        count: how many.
        dimensions: of the space.
        seed: of the scrambling.

    Source:
        A. B. Owen, J. Complexity 14, 466 (1998), doi:10.1006/jcom.1998.0487 (scrambled Sobol points).
    """
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
    even = engine.draw(count, dtype=torch.float64)
    edge = 0.5 / max(count, 1)
    return torch.special.ndtri(even.clamp(edge, 1.0 - edge))
