"""Tracking a bunch along a line, only as far and only where somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lume_diff.models.line.apertures import Losses
from lume_diff.models.line.bunch import Tracked, TrackedBunch
from lume_diff.models.line.elements import Element
from lume_diff.models.line.linear_statistics import Lasting, LinearStatistics, is_linear, needs_momentum
from lume_diff.models.line.maps import LineMaps, Maps
from lume_diff.models.line.natives import track
from lume_diff.models.line.reference import Reference, ReferenceFlight
from lume_diff.models.line.special import Step, pass_special, step_of
from lume_diff.models.transforms import in_transform


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

    def keep(self, incoming: Tracked, place: int, bunch: TrackedBunch) -> None:
        """Remember the bunch at one place, for a few places."""
        if in_transform() or torch.is_inference_mode_enabled():
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
        by_cheetah: whether Cheetah tracks everything.
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
        by_cheetah: bool = False,
    ) -> None:
        self.line = line
        self.changed = changed
        self.losses = losses
        self.batch_shape = batch_shape
        self.by_cheetah = by_cheetah
        self._active = active
        self._incoming = incoming.passed(incoming.reference)  # The run's own: what it computes must not outlive it.
        self._steps: dict[int, Step] = {}
        self._between: dict[tuple[int, int], LinearStatistics | None] = {}
        for index in line.candidates:
            element = line.elements[index]
            step = step_of(element, self.is_active(element), changed, losses, by_cheetah)
            if step is not None:
                self._steps[index] = step
        self._special = list(self._steps)
        energy = incoming.reference.energy
        self._maps: Maps | None = None
        if by_cheetah:
            energies = line.energies(energy, changed, incoming.charge_number)
        else:
            self._maps = Maps(line, energy, changed, self._steps, incoming.mass, incoming.charge_number)
            energies = self._maps.energies
        self._flight = ReferenceFlight(line, incoming.reference, incoming.mass, changed, energies)
        self._seen: dict[int, Tracked] = {0: self._incoming}
        self._keep_at = 0
        if self._maps is None and isinstance(self._incoming, TrackedBunch):
            self._seen[0] = self._incoming.passed(incoming.reference, lasting=None)
        elif self._maps is not None and self._special and isinstance(incoming, TrackedBunch):
            unchanged = line.first_varying(changed, active)
            if self._maps.are_kept:  # else the maps there may have the batch of what changes behind them
                self._keep_at = max((place + 1 for place in self._special if place < unchanged), default=0)
            known = upstream.last(incoming, unchanged)
            if known is not None:
                place, bunch = known
                lasting = bunch.lasting if place == self._keep_at else None
                self._seen[place] = bunch.passed(self.reference(place), lasting=lasting)
        self._upstream, self._given = upstream, incoming

    def is_active(self, element: Element) -> bool:
        """Tell whether an element is switched on."""
        return self._active.get(element.name, element.is_active)

    def number(self, index: int, name: str) -> Tensor:
        """Return a number of one element as it is now."""
        element = self.line.elements[index]
        value = self.changed.get(f"{element.name}.{name}")
        return element.number(name) if value is None else value

    def changed_features(self, index: int) -> set[str]:
        """Return which numbers of one element are changed, trained or on a graph, by Cheetah's names."""
        element = self.line.elements[index]
        return {
            attribute.feature
            for attribute in element.attributes
            if f"{element.name}.{attribute.name}" in self.changed
            or attribute.name in element.trained
            or element.values[attribute.name].requires_grad
        }

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
                beam = pass_special(self._steps[place], self, place, beam)
                if start == self._keep_at and isinstance(beam, TrackedBunch):
                    beam = beam.passed(beam.reference, lasting=Lasting(beam.reference.energy))
                    self._upstream.keep(self._given, start, beam)
                self._seen[start] = beam
        return self._linear(start, index)

    def after(self, index: int) -> Tracked:
        """Return the bunch at the exit of element ``index``."""
        return self.before(index + 1)

    def _linear(self, start: int, stop: int) -> Tracked:
        """Carry the bunch over a stretch without special elements."""
        if stop not in self._seen:
            beam = self._seen[start]
            if self._maps is None:
                self._seen[stop] = track(self, start, stop, beam)
            else:
                matrix, reference = self._maps.stretch(start, stop), self.reference(stop)
                if isinstance(beam, TrackedBunch):
                    self._seen[stop] = beam.transported(matrix, reference, self.line.keeps_momentum(start, stop))
                else:
                    self._seen[stop] = beam.transported(matrix, reference)
        return self._seen[stop]

    def map_to(self, stop: int) -> Tensor:
        """Return the map from the start of the line to an entrance in its first linear stretch, ``(*batch, 7, 7)``."""
        if self._maps is None:
            raise ValueError("Cheetah tracks this run, which has no maps")
        return self._maps.stretch(0, stop)

    def stretches(self) -> list[tuple[int, int]]:
        """Return first and last entrance of all linear stretches; behind one that is not linear the next begins."""
        starts = [0, *(place + 1 for place in self._special)]
        return list(zip(starts, (*self._special, self.line.count), strict=True))

    def look_once(self) -> None:
        """Make statistics along the line follow from the moments at the start of each linear stretch.

        Taking these costs more than one statistic at one place, and saves looking at the particles at every place.
        """
        if self._maps is None:
            return
        for start, _ in self.stretches():
            beam = self.before(start)
            if isinstance(beam, TrackedBunch) and beam.lasting is None:
                self._seen[start] = beam.passed(beam.reference, lasting=Lasting(beam.reference.energy))

    def statistic_along(self, start: int, stop: int, key: str) -> Tensor | None:
        """Return a statistic at all entrances of a linear stretch, both ends included, ``(*batch, stop - start + 1)``.

        None where the particles have to be looked at, place by place.
        """
        beam = self.before(start)
        if self._maps is None or not isinstance(beam, TrackedBunch) or beam.lasting is None or not is_linear(key):
            return None
        keeps_momentum = beam.keeps_momentum and self.line.keeps_momentum(start, stop)
        if needs_momentum(key) and not keeps_momentum:
            return None
        if (start, stop) not in self._between:
            maps, reference = self._maps.along(start, stop), self._flight.along(start, stop)
            self._between[start, stop] = beam.linear_along(maps, reference)
        statistics = self._between[start, stop]
        if statistics is None:
            return None
        found = statistics[key]
        return found.expand(*found.shape[:-1], stop - start + 1)

    def along(self, indices: Sequence[int]) -> list[Tracked]:
        """Return the bunch at the entrances of several elements, computed in the order of the beam."""
        found = {index: self.before(index) for index in sorted(indices)}
        return [found[index] for index in indices]
