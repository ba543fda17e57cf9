"""Functions of several variables that derived ones are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field, GetCoreSchemaHandler
from torch import Tensor

from lume_diff.models.facility.part import Part
from lume_diff.registry import every_plugin


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


@lru_cache(maxsize=1)
def _installed() -> Any:
    return Annotated[reduce(or_, every_plugin("functions")), Field(discriminator="kind")]


class _Installed:
    """Make a field take any function that an installed package offers, told apart by ``kind``."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(_installed())


AnyFunction = Annotated[Function, _Installed]
