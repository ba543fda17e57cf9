"""Conversions one after the other."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any, Literal, final

from pydantic import Field
from torch import Tensor

from lume_diff.models.facility.conversions.base import AnyConversion, Conversion, Numbers, Place


@final
class Chain(Conversion):
    """Conversions one after the other, as from a current by a measured table to a field, and from that to k1.

    Args:
        steps: from the setpoint to the model. A field in a chain says itself in which ``unit`` it takes its number.

    Gradient:
        Exact.
    """

    kind: Literal["chain"] = "chain"
    steps: tuple[AnyConversion, ...] = Field(min_length=1)

    @property
    def is_live(self) -> bool:
        """Whether any step needs the energy."""
        return any(step.is_live for step in self.steps)

    @property
    def setpoint_range(self) -> tuple[float, float] | None:
        """That of the first step."""
        return self.steps[0].setpoint_range

    def signature(self) -> Hashable:
        """Return the signatures of the steps."""
        return type(self), *(step.signature() for step in self.steps)

    def numbers(self, place: Place) -> dict[str, Any]:
        """Return the numbers of all steps."""
        found = {}
        for index, step in enumerate(self.steps):
            # A strength in the middle is not the model's number yet.
            is_inner = step.is_live and index + 1 < len(self.steps)
            here = replace(place, native_unit="") if is_inner else place
            found.update({f"{index}.{key}": number for key, number in step.numbers(here).items()})
            place = replace(place, value_range=None)
        return found

    def to_native(self, setpoint: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Apply the steps in order."""
        value = setpoint
        for index, step in enumerate(self.steps):
            value = step.to_native(value, _of_step(numbers, index), energy)
        return value

    def to_setpoint(self, native: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Undo the steps from the last one on."""
        value = native
        for index, step in reversed(list(enumerate(self.steps))):
            value = step.to_setpoint(value, _of_step(numbers, index), energy)
        return value


def _of_step(numbers: Numbers, index: int) -> Numbers:
    prefix = f"{index}."
    return {key.removeprefix(prefix): number for key, number in numbers.items() if key.startswith(prefix)}
