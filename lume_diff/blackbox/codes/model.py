"""CodeModel: a black box around a code with a native object that users work on by hand."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lume_diff.blackbox.model import BlackBoxModel
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import UnknownVariableError, nearest_names


class CodeSimulator(Simulator):
    """A simulator that works on a native object: a lattice, a session with a code.

    Between runs the native object stands at the baseline: a run puts back what it has set.
    """

    @property
    @abstractmethod
    def native(self) -> Any:
        """The native object."""

    @property
    @abstractmethod
    def baseline(self) -> Mapping[str, float]:
        """The inputs as they stand on the native object now."""

    @property
    @abstractmethod
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""

    @property
    @abstractmethod
    def reference_energy(self) -> float:
        """Total energy that the native object is set for [eV]."""


class CodeModel(BlackBoxModel):
    """Make a ``CodeSimulator`` a model; see ``BlackBoxModel``.

    ``simulator`` is the native object, and ``refresh()`` reads from it what was changed by hand.
    """

    @property
    def simulator(self) -> Any:
        """The native object; call ``refresh()`` after changing it."""
        return self._runner.simulator.native

    def refresh(self) -> None:
        """Read the inputs from the native object again and forget what was computed before.

        What was changed there becomes the baseline, and inputs that were not set follow.
        """
        fresh = self._runner.simulator.baseline
        values = {name: self._checked_input(name, float(fresh[name])) for name in fresh}
        super().refresh()
        with self._lock:
            follow = {n: v for n, v in values.items() if self._setpoints[n] is self._baseline[n]}
            self._setpoints, self._baseline = {**self._setpoints, **follow}, {**self._baseline, **values}

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] of the lattice, one for all elements, ``(*batch,)``, without tracking.

        Raises:
            UnknownVariableError: for an element that is not in the lattice.

        Gradient:
            Exact.
        """
        simulator = self._runner.simulator
        known = simulator.elements
        for name in elements:
            if name not in known:
                raise UnknownVariableError(f"there is no element {name!r} in the lattice{nearest_names(name, known)}")
        values = {**self._setpoints, **self._checked_inputs(inputs or {})}
        energy = values.get("reference_energy")
        if energy is None:
            energy = torch.tensor(simulator.reference_energy, dtype=self.dtype, device=self.device)
        return dict.fromkeys(elements, energy)
