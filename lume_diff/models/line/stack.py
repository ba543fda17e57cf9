"""The numbers of all elements of one class side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.line.elements import Element


class Stack:
    """The elements of one class in a line.

    Args:
        elements: the line.
        positions: which of its elements belong here.
    """

    def __init__(self, elements: Sequence[Element], positions: Sequence[int]) -> None:
        self.positions = list(positions)
        self.members = [elements[position] for position in positions]
        self.everyone = tuple(range(len(self.members)))
        self.kind = self.members[0].kind
        self.constants: dict[str, Tensor] = {}
        self.knobs: dict[str, list[str]] = {}
        self._known: dict[str, frozenset[str]] = {}
        self._turned_by: dict[str, tuple[str, set[int]]] = {}
        self._is_zero: dict[str, bool] = {}
        self._live: dict[str, frozenset[int]] = {}
        for name in self.members[0].values:
            values = [member.values[name] for member in self.members]
            live = [i for i, member in enumerate(self.members) if name in member.trained or values[i].requires_grad]
            plain = torch.stack(torch.broadcast_tensors(*(value.detach() for value in values)), dim=stacked_at(name))
            self.constants[name] = plain
            self.knobs[name] = [f"{member.name}.{name}" for member in self.members]
            self._known[name] = frozenset(self.knobs[name])
            for i, knob in enumerate(self.knobs[name]):
                self._turned_by.setdefault(knob, (name, set()))[1].add(i)
            self._live[name] = frozenset(live)
            self._is_zero[name] = not live and bool((plain == 0).all())

    def varying(self, changed: Mapping[str, Tensor], names: Collection[str] | None = None) -> tuple[int, ...]:
        """Return the members with a number that is trained or changed."""
        found: set[int] = set()
        for name, live in self._live.items():
            if live and (names is None or name in names):
                found |= live
        for knob in self._turned_by.keys() & changed.keys():
            name, members = self._turned_by[knob]
            if names is None or name in names:
                found |= members
        return tuple(sorted(found))

    def varies_only(self, name: str, changed: Mapping[str, Tensor]) -> bool:
        """Tell whether no number but this one is trained or changed, of any member."""
        return all(
            other == name or (not live and self._known[other].isdisjoint(changed)) for other, live in self._live.items()
        )

    def is_zero(self, name: str, changed: Mapping[str, Tensor]) -> bool:
        """Tell whether a number is zero for all members, and nobody trains or changes it."""
        return self._is_zero[name] and self._known[name].isdisjoint(changed)

    def fresh(self, name: str, changed: Mapping[str, Tensor], members: Sequence[int], live: bool) -> dict[int, Tensor]:
        """Return the numbers that are trained or changed, by where they stand among ``members``."""
        knobs, trained = self.knobs[name], self._live[name] if live else ()
        if not trained and self._known[name].isdisjoint(changed):
            return {}
        found = {}
        for place, i in enumerate(members):
            if knobs[i] in changed:
                found[place] = changed[knobs[i]]
            elif i in trained:
                found[place] = self.members[i].number(name)
        return found


class Numbers:
    """The numbers of some members of a stack, ``(*batch, len(members))`` each.

    Args:
        stack: the elements of one class.
        changed: numbers that differ from those of the line, by knob.
        members: which elements.
        live: whether what is trained counts as it is now, rather than as it was read.
    """

    def __init__(
        self, stack: Stack, changed: Mapping[str, Tensor], members: tuple[int, ...], live: bool = True
    ) -> None:
        self.kind = stack.kind
        self.positions = [stack.positions[i] for i in members]
        self._stack, self._changed, self._members, self._live = stack, changed, members, live

    def __call__(self, name: str) -> Tensor:
        """Return one number of all members."""
        stack, members, at = self._stack, self._members, stacked_at(name)
        fresh = stack.fresh(name, self._changed, members, self._live)
        constant = stack.constants[name]
        if len(fresh) < len(members) < len(stack.members):
            constant = constant.index_select(at, torch.tensor(members, device=constant.device))
        if not fresh:
            return constant
        values = list(fresh.values())
        if any(value.shape != values[0].shape for value in values):
            values = list(torch.broadcast_tensors(*values))
        stacked = torch.stack(values, dim=at)
        if len(fresh) == len(members):
            return stacked
        batch = torch.broadcast_shapes(constant.shape[:at], stacked.shape[:at])
        constant = constant.expand(*batch, *constant.shape[at:])
        stacked = stacked.expand(*batch, *stacked.shape[at:])
        return constant.index_copy(at, torch.tensor(list(fresh), device=constant.device), stacked)

    def or_none(self, name: str) -> Tensor | None:
        """Return one number of all members, or None where it is zero for the whole class and nobody changed it."""
        return None if self._stack.is_zero(name, self._changed) else self(name)

    def pair(self, name: str) -> Tensor | None:
        """Return a vector such as the misalignment, ``(*batch, count, 2)``, or None where it is zero for all."""
        x, y = self.or_none(f"{name}_x"), self.or_none(f"{name}_y")
        if x is None and y is None:
            return None
        x = torch.zeros_like(y) if x is None else x  # type: ignore[arg-type]
        y = torch.zeros_like(x) if y is None else y
        return torch.stack(torch.broadcast_tensors(x, y), dim=-1)

    def option(self, name: str) -> Any:
        """Return a setting that all members have in common."""
        return self._stack.members[0].option(name)


def stacked_at(name: str) -> int:
    """Return the dimension of the members: a number is a scalar, a map is 7 x 7."""
    return -3 if name == "transfer_map" else -1
