"""Functions of several variables that derived ones are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Literal, final

import torch
from pydantic import Field
from torch import Tensor

from lume_diff.models.facility.installed import Installed
from lume_diff.models.facility.part import Part


class Function(Part, ABC):
    """Compute one number from several.

    A class is one file with a field ``kind: Literal["name"] = "name"``; it becomes known through an entry point of the
    group ``lume_diff.functions`` with that name.
    """

    kind: str

    @abstractmethod
    def sources(self) -> tuple[str, ...]:
        """Return the names that it needs."""

    @abstractmethod
    def compute(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the result, ``(*batch,)``, differentiable in all values."""


@final
class Sum(Function):
    """A linear combination, ``offset + sum of weight * variable``.

    Args:
        terms: weight by name.
        offset: what is added.

    Gradient:
        Exact.
    """

    kind: Literal["sum"] = "sum"
    terms: dict[str, float] = Field(min_length=1)
    offset: float = 0.0

    def sources(self) -> tuple[str, ...]:
        """Return the names of the terms."""
        return tuple(self.terms)

    def compute(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the sum."""
        parts = torch.broadcast_tensors(*(values[name] * weight for name, weight in self.terms.items()))
        return torch.stack(parts).sum(0) + self.offset


@final
class Product(Function):
    """A product of powers, ``factor * product of variable ** power``; a power of -1 divides.

    Args:
        powers: whole power by name.
        factor: what it is multiplied by.

    Gradient:
        Exact.
    """

    kind: Literal["product"] = "product"
    powers: dict[str, int] = Field(min_length=1)
    factor: float = 1.0

    def sources(self) -> tuple[str, ...]:
        """Return the names of the factors."""
        return tuple(self.powers)

    def compute(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the product."""
        parts = torch.broadcast_tensors(*(values[name] ** power for name, power in self.powers.items()))
        return torch.stack(parts).prod(0) * self.factor


AnyFunction = Annotated[Function, Installed("functions")]
