"""Flow: a bunch as a normalizing flow, whose density is known at every particle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lume_diff.calibration.reconstruction.generators import DIMENSIONS
from lume_diff.errors import MissingExtraError, ValidationError


class Flow(nn.Module):
    """A neural spline flow by zuko, and a linear map behind it.

    At the start the splines contribute little. The map can be inverted, so that the entropy of the bunch is exact and
    costs no Jacobian: a flow is the choice where entropy matters. It takes several times as long as a ``Network``.

    Args:
        dimensions: 4 (transverse) or 6.
        transforms: how many spline transformations.
        bins: of each spline.
        width: of the two hidden layers of each.
        seed: of the first weights.
        dtype: of the splines.

    Raises:
        ValidationError: for another number of dimensions.
        MissingExtraError: without zuko.

    Source:
        C. Durkan, A. Bekasov, I. Murray and G. Papamakarios, NeurIPS 32 (2019), arXiv:1906.04032 (splines);
        D. P. Kingma et al., NeurIPS 29 (2016), arXiv:1606.04934 (the fast direction makes the samples).

    Example:
        >>> Flow(4)(torch.zeros(10, 4, dtype=torch.float64)).shape
        torch.Size([10, 4])
    """

    def __init__(
        self,
        dimensions: int = 4,
        transforms: int = 2,
        bins: int = 8,
        width: int = 32,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dimensions not in DIMENSIONS:
            raise ValidationError(f"dimensions is {dimensions!r}; expected one of {', '.join(map(str, DIMENSIONS))}")
        try:
            from zuko.flows import NSF
        except ImportError as error:
            raise MissingExtraError("a normalizing flow needs zuko: pip install 'lume-diff[flow]' (zuko)") from error
        self.dimensions = dimensions
        self.dtype = dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.splines = NSF(
                dimensions, transforms=transforms, bins=bins, hidden_features=(width, width), activation=nn.Tanh
            ).to(dtype)
            self.linear = nn.Linear(dimensions, dimensions, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(dimensions))
            self.linear.bias.zero_()
            for spline in self.splines.transform.transforms:
                for weights in spline.hyper[-1].parameters():
                    weights.mul_(0.1)

    def forward(self, base: Tensor) -> Tensor:
        """Map points of a standard normal distribution ``(n, d)`` to coordinates of order one ``(n, d)``.

        Gradient:
            Exact.
        """
        bent = self.splines().transform(base.to(self.dtype))
        made: Tensor = self.linear(bent.to(base.dtype))
        return made

    def log_volume(self, base: Tensor) -> Tensor:
        """Return the logarithm of the volume that the map gives to points ``(n, d)``, ``(n,)``.

        The density of the bunch at a particle is that of the base over this volume.

        Gradient:
            Exact, to the weights.
        """
        _, bent = self.splines().transform.call_and_ladj(base.to(self.dtype))
        found: Tensor = bent.to(base.dtype) + torch.linalg.slogdet(self.linear.weight).logabsdet
        return found
