"""Posterior: what the data say of the parameters around the best fit, and what they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lume_diff.calibration.fit.parameters import Parameter


@dataclass(frozen=True)
class Unresolved:
    """A combination of parameters of which the data say less than the prior.

    Attributes:
        direction: how the parameters move along it, in standard deviations of their priors; the largest is positive.
        information: of the data relative to that of the prior: 0 for nothing at all, below 1 for less.
    """

    direction: dict[str, float]
    information: float

    def __str__(self) -> str:
        terms = sorted(self.direction.items(), key=lambda term: -abs(term[1]))
        shown = " ".join(f"{weight:+.2f} {name}" for name, weight in terms if abs(weight) > 0.1)
        left = (1.0 + self.information) ** -0.5
        return f"{shown}, in widths of their priors (the data leave {left:.0%} of the prior's width along this)"


@dataclass(frozen=True)
class Laplace:
    """A normal distribution around the best fit, in the coordinates in which the prior is a standard one.

    Attributes:
        covariance: of the coordinates, ``(p, p)``.
        information: of the data alone, ``J^T J`` ``(p, p)``; the prior's is the identity.
    """

    covariance: Tensor
    information: Tensor

    @classmethod
    def around(cls, slope: Tensor) -> Laplace:
        """Build from derivatives of all residuals, those of the prior included, ``(m, p)``.

        Source:
            D. J. C. MacKay, Neural Comput. 4, 448 (1992), doi:10.1162/neco.1992.4.3.448.
        """
        precision = slope.mT @ slope
        identity = torch.eye(len(precision), dtype=precision.dtype)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        return cls(covariance, precision - identity)

    @classmethod
    def sandwich(cls, precision: Tensor, noise: Tensor) -> Laplace:
        """Build for residuals whose variances are not all 1.

        Args:
            precision: ``J^T J`` of all residuals, those of the prior included, ``(p, p)``.
            noise: covariance of ``J^T r``, ``(p, p)``.

        Source:
            P. J. Huber, Proc. 5th Berkeley Symp. Math. Stat. Prob. 1, 221 (1967).
        """
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        covariance = inverse @ noise @ inverse
        covariance = 0.5 * (covariance + covariance.mT)
        identity = torch.eye(len(precision), dtype=precision.dtype)
        return cls(covariance, torch.cholesky_inverse(torch.linalg.cholesky(covariance)) - identity)

    @property
    def errors(self) -> Tensor:
        """Standard errors of the coordinates, ``(p,)``; 1 where the data say nothing."""
        return self.covariance.diagonal().sqrt()

    @property
    def correlation(self) -> Tensor:
        """Correlation matrix, ``(p, p)``."""
        errors = self.errors
        return self.covariance / torch.outer(errors, errors)

    def unresolved(self, parameters: Sequence[Parameter]) -> list[Unresolved]:
        """Return the combinations of which the data say less than the prior, the least known first."""
        information, directions = torch.linalg.eigh(self.information)
        found = []
        for value, direction in zip(information.tolist(), directions.unbind(-1), strict=True):
            if value < 1.0:
                direction = direction * direction[direction.abs().argmax()].sign()
                names = {p.name: float(weight) for p, weight in zip(parameters, direction, strict=True)}
                found.append(Unresolved(names, max(value, 0.0)))
        return found


def standard_errors(parameters: Sequence[Parameter], u: Tensor, errors: Tensor) -> Tensor:
    """Return the standard errors of the values in their units, ``(p,)``: half the width of the 68 % interval."""
    upper, lower = (
        torch.stack([p.prior.at(part) for p, part in zip(parameters, (u + sign * errors).unbind(), strict=True)])
        for sign in (1.0, -1.0)
    )
    return 0.5 * (upper - lower).abs()
