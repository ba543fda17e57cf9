"""Tracking a bunch along a line, only as far and only where somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.line.bunch import Reference, TrackedBunch, TrackedMoments
from lume_diff.models.line.elements import Element
from lume_diff.models.line.maps import LineMaps, product
from lume_diff.models.line.special import Losses, pass_special, step_of
from lume_diff.particles.constants import c_light

Tracked = TrackedBunch | TrackedMoments


class LineRun:
    """One passage of a bunch along a line.

    Linear stretches are one matrix each; particles are touched at the places where somebody looks, and where an
    element is not linear. What was computed is kept.

    Args:
        maps: the line.
        incoming: the bunch at its entrance, at the line's reference.
        changed: numbers that differ from those of the line, by knob.
        active: switches that differ from those of the line, by element name.
        losses: how apertures act.
    """

    def __init__(
        self,
        maps: LineMaps,
        incoming: Tracked,
        changed: Mapping[str, Tensor],
        active: Mapping[str, bool],
        losses: Losses,
    ) -> None:
        self.maps = maps
        self.changed = changed
        self.losses = losses
        self._active = active
        self._energies = maps.energies(incoming.reference.energy, changed, incoming.charge_number)
        self._path = maps.positions_along(changed)
        self._incoming = incoming
        self._matrices = maps.matrices(self._energies, changed, incoming.mass, incoming.charge_number)
        self._steps = {
            index: step
            for index, element in enumerate(maps.elements)
            if (step := step_of(element, self.is_active(element), changed, losses)) is not None
        }
        self._special = sorted(self._steps)
        self._times: Tensor | None = None
        self._seen: dict[int, Tracked] = {0: incoming}

    def is_active(self, element: Element) -> bool:
        """Tell whether an element is switched on."""
        return self._active.get(element.name, element.is_active)

    def number(self, index: int, name: str) -> Tensor:
        """Return a number of one element as it is now."""
        element = self.maps.elements[index]
        return self.changed.get(f"{element.name}.{name}", element.values[name])

    def energy(self, index: int) -> Tensor:
        """Return the reference energy [eV] at the entrance of an element, ``(*batch,)``."""
        return self._energies[..., 0] if self._energies.shape[-1] == 1 else self._energies[..., index]

    def reference(self, index: int) -> Reference:
        """Return the reference particle at the entrance of an element; ``count`` means the end."""
        start = self._incoming.reference
        return Reference(self.energy(index), start.time + self._arrival(index), start.s + self._path[..., index])

    def _arrival(self, index: int) -> Tensor:
        """Return the time of flight [s] from the start, at the mean of both ends' slownesses in each element."""
        if self._times is None:
            gamma = self._energies / self._incoming.mass
            slowness = gamma / ((gamma - 1.0) * (gamma + 1.0)).sqrt() / c_light
            if slowness.shape[-1] > 1:
                slowness = 0.5 * (slowness[..., 1:] + slowness[..., :-1])
            lengths = self._path[..., 1:] - self._path[..., :-1]
            self._times = torch.nn.functional.pad((lengths * slowness).cumsum(-1), (1, 0))
        return self._times[..., index]

    def before(self, index: int) -> Tracked:
        """Return the bunch at the entrance of element ``index``; ``count`` means the end of the line."""
        if index in self._seen:
            return self._seen[index]
        # The last place that is known already, or behind the last element that is not linear.
        start = max(place for place in self._seen if place < index)
        for place in self._special:
            if start <= place < index:
                bunch = self._linear(start, place)
                start = place + 1
                self._seen[start] = pass_special(self._steps[place], self, place, bunch)
        return self._linear(start, index)

    def after(self, index: int) -> Tracked:
        """Return the bunch at the exit of element ``index``."""
        return self.before(index + 1)

    def _linear(self, start: int, stop: int) -> Tracked:
        """Carry the bunch over a stretch without special elements."""
        if stop not in self._seen:
            bunch = self._seen[start]
            matrix = product(self._matrices[..., start:stop, :, :])
            self._seen[stop] = bunch.transported(matrix, self.reference(stop))
        return self._seen[stop]

    def along(self, indices: Sequence[int]) -> list[Tracked]:
        """Return the bunch at the entrances of several elements, computed in the order of the beam."""
        found: dict[int, Any] = {index: self.before(index) for index in sorted(indices)}
        return [found[index] for index in indices]
