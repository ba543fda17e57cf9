"""Conversions of one kind, side by side."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.models.facility.conversions.base import Conversion, stacked
from lume_diff.models.facility.sources import Source
from lume_diff.models.stage_state import is_equal
from lume_diff.models.transforms import in_transform, is_wrapped

#: For how many requests it is remembered which of their conversions can be stacked.
_LAYOUTS = 64

#: For how many choices of conversions their numbers are kept side by side.
_CHOICES = 4096


@dataclass(frozen=True)
class Link:
    """A conversion between a variable of the facility and one of the model.

    Attributes:
        name: of the variable of the facility.
        native: of the variable of the model.
        conversion: between the two.
        numbers: what the conversion takes.
        energy: where its energy comes from, None where it needs none.
        dims: how many dimensions one value has; 0 for a single number.
    """

    name: str
    native: str
    conversion: Conversion
    numbers: dict[str, Any] = field(hash=False, compare=False)
    energy: Source | None = None
    dims: int = 0


class Groups:
    """Convert many values at once: those of one kind and shape are stacked.

    A value that carries a derivative is converted by itself, so that a derivative reaches only what depends on it.

    Args:
        links: the conversions.
        dtype, device: of their numbers.
    """

    def __init__(self, links: Sequence[Link], dtype: torch.dtype, device: torch.device) -> None:
        self.links = tuple(links)
        found: dict[Hashable, list[int]] = {}
        for index, link in enumerate(self.links):
            shapes = tuple((key, len(v) if isinstance(v, list | tuple) else 0) for key, v in link.numbers.items())
            found.setdefault((link.conversion.signature(), shapes, link.dims), []).append(index)
        self._chosen: dict[tuple[int, ...], dict[str, Tensor]] = {}
        self._layouts: dict[tuple[int, ...], list[list[int]]] = {}
        self._group_of, self._place_of = [0] * len(self.links), [0] * len(self.links)
        self._groups = []
        for group, members in enumerate(found.values()):
            for place, index in enumerate(members):
                self._group_of[index], self._place_of[index] = group, place
            numbers = stacked([self.links[index].numbers for index in members], dtype, device)
            self._groups.append((self.links[members[0]].conversion, numbers))

    def to_native(self, chosen: Sequence[int], values: Sequence[Tensor], energies: Sequence[Any]) -> list[Tensor]:
        """Return native values for those of the facility, for some of the links by their indices."""
        return self._converted("to_native", chosen, values, energies)

    def to_setpoint(self, chosen: Sequence[int], values: Sequence[Tensor], energies: Sequence[Any]) -> list[Tensor]:
        """Return values of the facility for native ones, for some of the links by their indices."""
        return self._converted("to_setpoint", chosen, values, energies)

    def _converted(
        self, direction: str, chosen: Sequence[int], values: Sequence[Tensor], energies: Sequence[Any]
    ) -> list[Tensor]:
        found: list[Any] = [None] * len(chosen)
        for positions in self._together(tuple(chosen), values, energies):
            results = self._apply(
                direction,
                [chosen[p] for p in positions],
                [values[p] for p in positions],
                [energies[p] for p in positions],
            )
            for position, value in zip(positions, results, strict=True):
                found[position] = value
        return found

    def _together(self, chosen: tuple[int, ...], values: Sequence[Tensor], energies: Sequence[Any]) -> list[list[int]]:
        """Return which positions can be converted together; for single numbers that is always the same."""
        given = [*values, *(energy for energy in energies if energy is not None)]
        is_plain = not any(value.dim() for value in given) and not any_derivative(given)
        if is_plain and chosen in self._layouts:
            return self._layouts[chosen]
        found: dict[Hashable, list[int]] = {}
        for position, (index, value, energy) in enumerate(zip(chosen, values, energies, strict=True)):
            shape = None if energy is None else energy.shape
            key: Hashable = self._group_of[index], value.shape, shape
            if not is_plain and (has_derivative(value) or (energy is not None and has_derivative(energy))):
                key = position
            found.setdefault(key, []).append(position)
        layout = list(found.values())
        if is_plain:
            self._layouts = {**(self._layouts if len(self._layouts) < _LAYOUTS else {}), chosen: layout}
        return layout

    def _apply(
        self, direction: str, chosen: Sequence[int], values: Sequence[Tensor], energies: Sequence[Any]
    ) -> Sequence[Tensor]:
        group = self._group_of[chosen[0]]
        conversion, _ = self._groups[group]
        numbers = self._numbers_of(group, tuple(chosen))
        energy = None if energies[0] is None else _side_by_side(energies)
        if energy is not None and (dims := self.links[chosen[0]].dims):  # one energy for a whole array
            energy = energy.reshape(*energy.shape[:-1], *[1] * dims, energy.shape[-1])
        convert = conversion.to_native if direction == "to_native" else conversion.to_setpoint
        return convert(_side_by_side(values), numbers, energy).unbind(-1)

    def _numbers_of(self, group: int, chosen: tuple[int, ...]) -> Mapping[str, Tensor]:
        """Return the numbers of some links of one group."""
        if chosen in self._chosen:
            return self._chosen[chosen]
        with torch.inference_mode(False):  # they outlive the mode of the caller
            places = torch.tensor([self._place_of[index] for index in chosen])
            numbers = {key: table[places.to(table.device)] for key, table in self._groups[group][1].items()}
        if not in_transform():  # they would carry its wrappers
            self._chosen = {**(self._chosen if len(self._chosen) < _CHOICES else {}), chosen: numbers}
        return numbers


def _side_by_side(values: Sequence[Tensor]) -> Tensor:
    return values[0].unsqueeze(-1) if len(values) == 1 else torch.stack(list(values), dim=-1)


def is_known(old: Any, new: Tensor) -> bool:
    """Tell whether a value is the very same, or the same numbers and nobody differentiates either."""
    return old is new or (not has_derivative(new) and is_equal(old, new))


def any_derivative(values: Sequence[Tensor]) -> bool:
    """Tell whether derivatives are, or may be, taken of any of some values."""
    if any(value.requires_grad for value in values):
        return True
    is_special = in_transform() or forward_ad._current_level >= 0
    return is_special and any(has_derivative(value) for value in values)


def has_derivative(value: Tensor) -> bool:
    """Tell whether derivatives are, or may be, taken of a value, or a transform has wrapped it."""
    if (value.requires_grad and torch.is_grad_enabled()) or is_wrapped(value):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None
