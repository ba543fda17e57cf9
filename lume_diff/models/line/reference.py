"""The reference particle of a line: its energy, time and path length, computed where somebody asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lume_diff.particles.constants import c_light

if TYPE_CHECKING:
    from lume_diff.models.line.maps import LineMaps


class Reference:
    """The reference particle at one place; time and path length are computed when asked for.

    Args:
        energy: total energy [eV], ``(*batch,)``.
        time: arrival time [s], ``(*batch,)``, or what gives it.
        s: path length [m], ``(*batch,)``, or what gives it.
    """

    def __init__(self, energy: Tensor, time: Tensor | Callable[[], Tensor], s: Tensor | Callable[[], Tensor]) -> None:
        self.energy, self._time, self._s = energy, time, s

    @property
    def time(self) -> Tensor:
        """Arrival time [s], ``(*batch,)``."""
        return self._time if isinstance(self._time, Tensor) else self._time()

    @property
    def s(self) -> Tensor:
        """Path length [m], ``(*batch,)``."""
        return self._s if isinstance(self._s, Tensor) else self._s()


class ReferenceFlight:
    """The way of the reference particle along a line, as far as somebody asks.

    It knows nothing of the bunches, which know it: a run without reference cycles frees its memory at once.

    Args:
        line: the line.
        start: the reference particle at its entrance.
        mass: rest energy of a particle [eV].
        changed: numbers that differ from those of the line, by knob.
        energies: reference energy [eV] at every entrance and at the end, or one for all.
    """

    def __init__(
        self, line: LineMaps, start: Reference, mass: float, changed: Mapping[str, Tensor], energies: Tensor
    ) -> None:
        self._line, self._changed, self._energies = line, changed, energies
        self._start, self._mass = start, mass
        self._path: Tensor | None = None
        self._times: Tensor | None = None

    def reference(self, index: int) -> Reference:
        """Return the reference particle at the entrance of an element; ``count`` means the end."""
        energy = self._energies[..., 0] if self._energies.shape[-1] == 1 else self._energies[..., index]
        return Reference(energy, partial(self._time, index), partial(self._s, index))

    def along(self, start: int, stop: int) -> Reference:
        """Return the reference particle at all entrances from one to another, both included, as a last dimension."""
        part = slice(start, stop + 1)
        energy = self._energies if self._energies.shape[-1] == 1 else self._energies[..., part]

        def time() -> Tensor:
            self._time(start)
            return self._start.time.unsqueeze(-1) + self._times[..., part]  # type: ignore[index]

        return Reference(energy, time, lambda: self._start.s.unsqueeze(-1) + self._lengths_so_far()[..., part])

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
