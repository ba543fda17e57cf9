"""Priors: what is known of a parameter before the data are looked at."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lume_diff.errors import ValidationError


class Prior(ABC):
    """Tell how likely a value is before the data, in the parameter's unit.

    A fit works on a coordinate ``u`` in which the prior is a standard normal distribution: ``value = at(u)``. There
    a Gauss-Newton step, a finite difference and a sampler all know what a typical change is.
    """

    @abstractmethod
    def at(self, u: Tensor) -> Tensor:
        """Return the value at a coordinate, monotone and smooth; shape as given."""

    @abstractmethod
    def coordinate(self, value: float) -> float:
        """Return the coordinate of a value; the inverse of ``at``."""

    @property
    @abstractmethod
    def support(self) -> tuple[float, float]:
        """The open interval outside which nothing lies."""

    def check(self, name: str, value: float) -> None:
        """Refuse a value outside the support.

        Args:
            name: of the parameter, for the message.
            value: in its unit.

        Raises:
            ValidationError: with the parameter's name, the value and the interval.
        """
        low, high = self.support
        if not low < value < high:
            raise ValidationError(f"{name} is {value!r}; its prior {self} allows values between {low:g} and {high:g}")


def _is_finite(value: float) -> bool:
    """Tell whether a value is a number, and not an infinite one."""
    try:
        return math.isfinite(value)
    except TypeError:
        return False


def _positive(prior: Prior, **values: float) -> None:
    for name, value in values.items():
        if not (_is_finite(value) and value > 0.0):
            raise ValidationError(f"{name} of {type(prior).__name__} is {value!r}; expected a positive number")


@dataclass(frozen=True)
class Normal(Prior):
    """Expect a value around a mean.

    Args:
        mean: [unit of the parameter].
        std: standard deviation [same unit].

    Raises:
        ValidationError: for a standard deviation that is not positive, or a mean that is not finite.

    Example:
        >>> Normal(1.0, 0.5).coordinate(2.0)
        2.0
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        _positive(self, std=self.std)
        if not _is_finite(self.mean):
            raise ValidationError(f"mean of Normal is {self.mean!r}; expected a finite number")

    def at(self, u: Tensor) -> Tensor:
        """Return ``mean + std u``."""
        return self.mean + self.std * u

    def coordinate(self, value: float) -> float:
        """Return how many standard deviations a value lies above the mean."""
        return (value - self.mean) / self.std

    @property
    def support(self) -> tuple[float, float]:
        """Everything."""
        return -math.inf, math.inf


@dataclass(frozen=True)
class LogNormal(Prior):
    """Expect a positive value around a median: emittances, beta functions, sizes.

    Args:
        median: [unit of the parameter].
        factor: one standard deviation is this factor up or down; 2 for "known to a factor of two".

    Raises:
        ValidationError: for a median that is not positive, or a factor that is not above 1.

    Example:
        >>> round(LogNormal(1e-6, 2.0).coordinate(4e-6), 12)
        2.0
    """

    median: float
    factor: float

    def __post_init__(self) -> None:
        _positive(self, median=self.median, factor=self.factor)
        if self.factor <= 1.0:
            raise ValidationError(f"factor of LogNormal is {self.factor!r}; expected more than 1")

    def at(self, u: Tensor) -> Tensor:
        """Return ``median factor^u``."""
        return self.median * torch.exp(u * math.log(self.factor))

    def coordinate(self, value: float) -> float:
        """Return how many factors a value lies above the median."""
        return math.log(value / self.median) / math.log(self.factor)

    @property
    def support(self) -> tuple[float, float]:
        """All positive numbers."""
        return 0.0, math.inf


@dataclass(frozen=True)
class Uniform(Prior):
    """Expect any value between two bounds alike.

    Args:
        low, high: the bounds [unit of the parameter].

    Raises:
        ValidationError: unless both are finite and in order.

    Example:
        >>> Uniform(-1.0, 3.0).coordinate(1.0)
        0.0
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (_is_finite(self.low) and _is_finite(self.high) and self.low < self.high):
            raise ValidationError(
                f"bounds of Uniform are {self.low!r} and {self.high!r}; expected finite ones, the lower first"
            )

    def at(self, u: Tensor) -> Tensor:
        """Return the value below which the share of a standard normal distribution below ``u`` lies."""
        return self.low + (self.high - self.low) * torch.special.ndtr(u)

    def coordinate(self, value: float) -> float:
        """Return the quantile of a standard normal distribution at the value's share of the interval."""
        share = torch.tensor((value - self.low) / (self.high - self.low), dtype=torch.float64)
        return float(torch.special.ndtri(share))

    @property
    def support(self) -> tuple[float, float]:
        """The interval."""
        return self.low, self.high


@dataclass(frozen=True)
class Bounded(Prior):
    """Expect a value around a mean, and never outside bounds.

    Args:
        mean: most likely value, between the bounds [unit of the parameter].
        std: standard deviation without the bounds [same unit].
        low, high: the bounds [same unit]; either may be infinite.

    Raises:
        ValidationError: unless the mean lies between the bounds.

    Example:
        >>> prior = Bounded(0.0, 1.0, -0.5, 3.0)
        >>> bool(prior.at(torch.tensor(-50.0, dtype=torch.float64)) >= -0.5)
        True
    """

    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        _positive(self, std=self.std)
        if not (_is_finite(self.mean) and self.low <= self.mean <= self.high and self.low < self.high):
            raise ValidationError(
                f"mean of Bounded is {self.mean!r}; expected a value between its bounds {self.low!r} and {self.high!r}"
            )

    def _shares(self) -> tuple[float, float]:
        ends = [(end - self.mean) / self.std for end in (self.low, self.high)]
        low, high = torch.special.ndtr(torch.tensor(ends, dtype=torch.float64)).tolist()
        return low, high

    def at(self, u: Tensor) -> Tensor:
        """Return the quantile of the truncated normal distribution."""
        low, high = self._shares()
        share = low + (high - low) * torch.special.ndtr(u)
        tiny = torch.finfo(torch.float64).eps
        value = self.mean + self.std * torch.special.ndtri(share.clamp(tiny, 1.0 - tiny))
        return value.clamp(self.low, self.high)

    def coordinate(self, value: float) -> float:
        """Return the standard normal quantile at the value's share of the truncated distribution."""
        low, high = self._shares()
        share = torch.special.ndtr(torch.tensor((value - self.mean) / self.std, dtype=torch.float64))
        return float(torch.special.ndtri((share - low) / (high - low)))

    @property
    def support(self) -> tuple[float, float]:
        """The interval between the bounds."""
        return self.low, self.high
