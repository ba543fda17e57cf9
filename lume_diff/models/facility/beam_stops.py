"""Inserted screens: where the beam ends, and what lies behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.particles import TorchMoments, TorchParticleGroup

_ENDS = ("final", "line")


@dataclass(frozen=True)
class Stop:
    """A choice that can end the beam at an element.

    Attributes:
        name: of the variable of the facility.
        place: where along the beam.
        blocks: options in which the beam ends there.
        reads: options in which what is read there sees the beam.
    """

    name: str
    place: float
    blocks: frozenset[str]
    reads: frozenset[str]


class BeamStops:
    """Tell which readings see the beam."""

    def __init__(self, stops: Sequence[Stop]) -> None:
        self._stops = tuple(stops)

    def __bool__(self) -> bool:
        return bool(self._stops)

    @property
    def names(self) -> tuple[str, ...]:
        """The variables of the facility that decide."""
        return tuple(stop.name for stop in self._stops)

    def stopping(self, inputs: Mapping[str, Any]) -> str | None:
        """Return the variable whose element ends the beam, the first along the beam; None where nothing does."""
        ends = [stop for stop in self._stops if inputs[stop.name] in stop.blocks]
        return min(ends, key=lambda stop: stop.place).name if ends else None

    def dark(self, inputs: Mapping[str, Any]) -> Dark:
        """Return where there is no beam."""
        ends = [stop.place for stop in self._stops if inputs[stop.name] in stop.blocks]
        blind = {stop.place for stop in self._stops if inputs[stop.name] not in stop.reads}
        return Dark(min(ends, default=math.inf), frozenset(blind))


@dataclass(frozen=True)
class Dark:
    """Where there is no beam to read.

    Attributes:
        behind: the place at which the beam ends.
        blind: places whose own diagnostics are out of the beam.
    """

    behind: float = math.inf
    blind: frozenset[float] = frozenset()

    def covers(self, place: float | None) -> bool:
        """Tell whether a reading at a place sees no beam."""
        return place is not None and (place > self.behind or place in self.blind)


class BeamOrder:
    """Find the place of elements along the beam.

    Args:
        order: elements from the first to the last.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self._places = {element: float(index) for index, element in enumerate(order)}

    def place(self, element: str) -> float:
        """Return the place of an element; ``final`` and ``line`` are behind all, of a stage behind its last one.

        Raises:
            ValidationError: for an element that is not in the order.
        """
        if element in self._places:
            return self._places[element]
        stage, separator, last = element.rpartition("/")
        if last in _ENDS and not separator:
            return float(len(self._places))
        inside = [place for name, place in self._places.items() if name.startswith(f"{stage}/")]
        if last in _ENDS and inside:
            return max(inside) + 0.5
        raise ValidationError(
            f"where {element!r} lies along the beam is not known{nearest_names(element, self._places)}; name it in "
            "order, or give the place of the reading"
        )


def order_of_names(names: Sequence[Sequence[str]]) -> list[str]:
    """Return the elements in the order in which several lists of native names have them.

    Raises:
        ValidationError: where two lists do not agree.
    """
    lists = [list(dict.fromkeys(n.rpartition(".")[0] for n in part if "." in n)) for part in names]
    lists = [[e for e in part if e.rpartition("/")[2] not in _ENDS] for part in lists]
    longest = max(lists, key=len)
    place = {element: index for index, element in enumerate(longest)}
    for part in lists:
        known = [place[element] for element in part if element in place]
        if known != sorted(known):
            raise ValidationError(
                "the model does not name its elements in one order, so that what lies behind an inserted screen is not "
                "known: give order, or a column s in the table of elements"
            )
    return longest


def without_beam(value: Any) -> Any:
    """Return a bunch that has died, or moments without charge."""
    if isinstance(value, TorchParticleGroup):
        return value._with(alive=torch.zeros_like(value.alive))
    if isinstance(value, TorchMoments):
        return value._with(charge=torch.zeros_like(value.charge))
    return value
