"""From what the model inside has computed to what the facility shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.facility.beam_stops import without_beam
from lume_diff.models.facility.groups import any_derivative
from lume_diff.models.facility.inputs import Natives
from lume_diff.models.facility.outputs import OutputPlan


class Reader:
    """Compute outputs of a facility once.

    Args:
        plan: what they are made of.
        inputs: of the facility.
        natives: what the model ran with.
        standing: values of native inputs that the facility does not touch.
        take: gives native outputs by name.
        batch: gives the batch dimensions of the inputs.
        like: a tensor whose dtype and device to take.
    """

    def __init__(
        self,
        plan: OutputPlan,
        inputs: Mapping[str, Any],
        natives: Natives,
        standing: Mapping[str, Any],
        take: Callable[[list[str]], Mapping[str, Any]],
        batch: Callable[[], tuple[int, ...]],
        like: Tensor,
    ) -> None:
        self._plan, self._inputs, self._natives, self._standing = plan, inputs, natives, standing
        self._take, self._batch, self._like = take, batch, like
        self._found: dict[str, Any] = {}

    def read(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what the facility shows under some names."""
        plan, found = self._plan, self._found
        wanted = plan.readings(names)
        self._show(wanted, self._take(plan.natives(names, self._inputs)))
        for name in plan.crops.keys() & wanted:
            found[name] = plan.crops[name].cut(found[name], self._inputs)
        self._add([name for name in wanted if name in plan.noisy])
        self._follow([name for name in names if name in plan.follows])
        return {name: found[name] if name in found else self._one(name) for name in names}

    def _show(self, names: Sequence[str], values: Mapping[str, Any]) -> None:
        """Convert native values."""
        plan, found, like = self._plan, self._found, self._like
        dark = plan.dark(self._inputs)
        converted: list[str] = []
        chosen: list[int] = []
        for name in names:
            shown = plan.shown[name]
            is_dark = dark is not None and dark.covers(shown.place)
            if is_dark and shown.without is not None:
                found[name] = like.new_full((*self._batch(), *(shown.shape or ())), shown.without)
                continue
            value = self._input(shown.native) if shown.is_input else values[shown.native]
            found[name] = without_beam(value) if is_dark else value
            if shown.link is not None:
                converted.append(name)
                chosen.append(shown.link)
        links, energies = plan.groups.links, self._natives.energies
        given = [found[name] for name in converted]
        given = [value if value.dtype is like.dtype else value.to(like.dtype) for value in given]
        at = [None if (source := links[index].energy) is None else energies[source] for index in chosen]
        found.update(zip(converted, plan.groups.to_setpoint(chosen, given, at), strict=True))

    def _input(self, native: str) -> Any:
        value = self._natives.values.get(native, self._standing.get(native))
        return value.clone() if isinstance(value, Tensor) else value

    def _follow(self, names: Sequence[str]) -> None:
        """Read readbacks: copies, with noise and offset."""
        plan, found, inputs = self._plan, self._found, self._inputs
        plain = []
        for name in names:
            of = plan.follows[name]
            found[name] = value = inputs[of] if of in inputs else self._one(of)
            if name not in plan.noisy and isinstance(value, Tensor):
                plain.append(name)
        values = [found[name] for name in plain]
        copies: Iterable[Tensor] = (
            torch.stack(values).unbind() if values and _can_stack(values) else [value.clone() for value in values]
        )
        found.update(zip(plain, copies, strict=True))
        self._add([name for name in names if name in plan.noisy])

    @cached_property
    def _added(self) -> Tensor:
        return self._plan.added(self._inputs, self._like)

    def _add(self, names: Sequence[str]) -> None:
        """Add noise and offsets."""
        if not names:
            return
        added = self._added[..., self._plan.places_in_noise(names)]
        values = [self._found[name] for name in names]
        if added.dim() == 1 and _can_stack(values):
            results: Iterable[Tensor] = (torch.stack(values) + added).unbind()
        else:
            results = [value + part for value, part in zip(values, added.unbind(-1), strict=True)]
        self._found.update(zip(names, results, strict=True))

    def _one(self, name: str) -> Any:
        """Return what has been found, or else an input, a constant, a size, a readback or a derived value."""
        plan, found = self._plan, self._found
        if name in found:
            return found[name]
        if name in self._inputs:
            return self._inputs[name]
        if name in plan.fixed:
            value = plan.fixed[name]
            return value.clone() if isinstance(value, Tensor) else value
        if name in plan.sizes:
            image, axis = plan.sizes[name]
            _, _, height, width = plan.crops[image].window(self._inputs)
            return torch.tensor(width if axis == "x" else height, device=self._like.device)
        if name in plan.follows:
            self._follow([name])
            return found[name]
        function = plan.derived[name]
        found[name] = function.compute({source: self._one(source) for source in function.sources()})
        self._add([name] if name in plan.noisy else [])
        return found[name]


def _can_stack(values: Sequence[Tensor]) -> bool:
    """Tell whether values are single numbers of one kind that nobody differentiates."""
    is_plain = len({value.dtype for value in values}) == 1 and not any(value.dim() for value in values)
    return is_plain and not any_derivative(values)
