"""Tracking a bunch along a line, only as far and only where somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from lume_diff.models.line.apertures import Losses
from lume_diff.models.line.bunch import Reference, TrackedBunch, TrackedMoments
from lume_diff.models.line.elements import Element
from lume_diff.models.line.maps import LineMaps, Maps
from lume_diff.models.line.special import Step, pass_special, step_of
from lume_diff.models.transforms import in_transform
from lume_diff.particles.constants import c_light

Tracked = TrackedBunch | TrackedMoments


class ReferenceFlight:
    """The way of the reference particle along a line, as far as somebody asks.

    It knows nothing of the bunches, which know it: a run without reference cycles frees its memory at once.
    """

    def __init__(self, line: LineMaps, incoming: Tracked, changed: Mapping[str, Tensor], energies: Tensor) -> None:
        self._line, self._changed, self._energies = line, changed, energies
        self._start, self._mass = incoming.reference, incoming.mass
        self._path: Tensor | None = None
        self._times: Tensor | None = None

    def reference(self, index: int) -> Reference:
        """Return the reference particle at the entrance of an element; ``count`` means the end."""
        energy = self._energies[..., 0] if self._energies.shape[-1] == 1 else self._energies[..., index]
        return Reference(energy, partial(self._time, index), partial(self._s, index))

    def _lengths_so_far(self) -> Tensor:
        if self._path is None:
            self._path = self._line.positions_along(self._changed)
        return self._path

    def _s(self, index: int) -> Tensor:
        return self._start.s + self._lengths_so_far()[..., index]

    def _time(self, index: int) -> Tensor:
        """Return the arrival time [s], with the mean of both ends' slownesses in each element."""
        if self._times is None:
            path = self._lengths_so_far()
            gamma = self._energies / self._mass
            slowness = gamma / ((gamma - 1.0) * (gamma + 1.0)).sqrt() / c_light
            if slowness.shape[-1] > 1:
                slowness = 0.5 * (slowness[..., 1:] + slowness[..., :-1])
            lengths = path[..., 1:] - path[..., :-1]
            self._times = torch.nn.functional.pad((lengths * slowness).cumsum(-1), (1, 0))
        return self._start.time + self._times[..., index]


class Upstream:
    """The bunch behind the steps that nothing changes, kept from run to run.

    Without it, a knob at the end of a linac would cost the tracking of all cavities before it.
    """

    def __init__(self) -> None:
        self._kept: tuple[Tracked, dict[int, TrackedBunch]] | None = None

    def last(self, incoming: Tracked, limit: int) -> tuple[int, TrackedBunch] | None:
        """Return the last place up to ``limit`` where the bunch is known, and the bunch there."""
        kept = self._kept  # read once: another thread may replace it
        if kept is None or kept[0] is not incoming:
            return None
        place = max((place for place in kept[1] if place <= limit), default=None)
        return None if place is None else (place, kept[1][place])

    def keep(self, incoming: Tracked, place: int, bunch: Tracked) -> None:
        """Remember the bunch at one place, for a few places."""
        if not isinstance(bunch, TrackedBunch) or in_transform() or torch.is_inference_mode_enabled():
            return
        tensors = (bunch.rows, bunch.matrix, bunch.alive, bunch.weight)
        if any(tensor is not None and tensor.requires_grad for tensor in tensors):
            return
        kept = self._kept
        known = kept[1] if kept is not None and kept[0] is incoming else {}
        # The reference belongs to the run, and with it what the run was given.
        bunch = bunch.passed(incoming.reference)
        self._kept = incoming, {**(known if len(known) < 4 else {}), place: bunch}


class LineRun:
    """One passage of a bunch along a line.

    Linear stretches are one matrix each; particles are touched at the places where somebody looks, and where an
    element is not linear. What was computed is kept.

    Args:
        line: the line.
        incoming: the bunch at its entrance, at the line's reference.
        changed: numbers that differ from those of the line, by knob.
        active: switches that differ from those of the line, by element name.
        losses: how apertures act.
        batch_shape: leading dimensions that every output has.
        upstream: what earlier runs of this line have left.
    """

    def __init__(
        self,
        line: LineMaps,
        incoming: Tracked,
        changed: Mapping[str, Tensor],
        active: Mapping[str, bool],
        losses: Losses,
        batch_shape: tuple[int, ...],
        upstream: Upstream,
    ) -> None:
        self.line = line
        self.changed = changed
        self.losses = losses
        self.batch_shape = batch_shape
        self._active = active
        self._incoming = incoming.passed(incoming.reference)  # The run's own: what it computes must not outlive it.
        self._steps: dict[int, Step] = {}
        for index in line.candidates:
            element = line.elements[index]
            step = step_of(element, self.is_active(element), changed, losses)
            if step is not None:
                self._steps[index] = step
        self._special = list(self._steps)
        energy = incoming.reference.energy
        self._maps = Maps(line, energy, changed, self._steps, incoming.mass, incoming.charge_number)
        self._flight = ReferenceFlight(line, incoming, changed, self._maps.energies)
        self._seen: dict[int, Tracked] = {0: self._incoming}
        self._keep_at = 0
        if self._special and isinstance(incoming, TrackedBunch):
            unchanged = line.first_varying(changed, active)
            if self._maps.are_kept:  # else the maps there may have the batch of what changes behind them
                self._keep_at = max((place + 1 for place in self._special if place < unchanged), default=0)
            known = upstream.last(incoming, unchanged)
            if known is not None:
                self._seen[known[0]] = known[1].passed(self.reference(known[0]))
        self._upstream, self._given = upstream, incoming

    def is_active(self, element: Element) -> bool:
        """Tell whether an element is switched on."""
        return self._active.get(element.name, element.is_active)

    def number(self, index: int, name: str) -> Tensor:
        """Return a number of one element as it is now."""
        element = self.line.elements[index]
        value = self.changed.get(f"{element.name}.{name}")
        return element.number(name) if value is None else value

    def reference(self, index: int) -> Reference:
        """Return the reference particle at the entrance of an element; ``count`` means the end."""
        return self._flight.reference(index)

    def before(self, index: int) -> Tracked:
        """Return the bunch at the entrance of element ``index``; ``count`` means the end of the line."""
        if index in self._seen:
            return self._seen[index]
        # The last place that is known already, or behind the last element that is not linear.
        start = max(place for place in self._seen if place < index)
        for place in self._special:
            if start <= place < index:
                beam = self._linear(start, place)
                start = place + 1
                self._seen[start] = pass_special(self._steps[place], self, place, beam)
                if start == self._keep_at:
                    self._upstream.keep(self._given, start, self._seen[start])
        return self._linear(start, index)

    def after(self, index: int) -> Tracked:
        """Return the bunch at the exit of element ``index``."""
        return self.before(index + 1)

    def _linear(self, start: int, stop: int) -> Tracked:
        """Carry the bunch over a stretch without special elements."""
        if stop not in self._seen:
            self._seen[stop] = self._seen[start].transported(self._maps.stretch(start, stop), self.reference(stop))
        return self._seen[stop]

    def along(self, indices: Sequence[int]) -> list[Tracked]:
        """Return the bunch at the entrances of several elements, computed in the order of the beam."""
        found = {index: self.before(index) for index in sorted(indices)}
        return [found[index] for index in indices]
