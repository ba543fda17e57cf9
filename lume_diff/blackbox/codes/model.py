"""CodeModel: a black box around a code with a native object that users work on by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lume_diff.blackbox.model import BlackBoxModel
from lume_diff.blackbox.runners.proxy import consult
from lume_diff.blackbox.simulator import PlainValue
from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names
from lume_diff.models.guards import concrete, is_differentiated, refuse_gradient
from lume_diff.models.transforms import tensors_in
from lume_diff.particles import TorchParticleGroup


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

        What was changed there becomes the baseline, and inputs that were not set follow; a baseline that
        ``make_baseline`` has made stays.
        """
        fresh = self._runner.simulator.baseline
        values = {name: self._checked_input(name, float(fresh[name])) for name in fresh if name not in self._rebased}
        super().refresh()
        with self._lock:
            follow = {n: v for n, v in values.items() if self._setpoints[n] is self._baseline[n]}
            self._setpoints, self._baseline = {**self._setpoints, **follow}, {**self._baseline, **values}

    def _reset_simulator(self) -> None:
        """Do nothing: a run puts back what it has set, and what was changed by hand belongs to the baseline."""

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``(*batch,)``, without tracking.

        Where the code refers everything to one energy, cavities or not, that is it.

        Raises:
            UnknownVariableError: for an element that is not in the lattice.
            LatticeError: behind an element that changes the reference energy, if the code does not tell by how much.
            ValidationError: there, for a batch.

        Gradient:
            Exact; none behind an element that changes the reference energy, where it raises ``GradientError``.
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
        found = dict.fromkeys(elements, energy)
        behind = [name for name in dict.fromkeys(elements) if name in simulator.accelerated]
        return found | (self._accelerated(simulator, values, behind) if behind else {})

    def _accelerated(self, simulator: Any, values: Mapping[str, Any], names: list[str]) -> dict[str, torch.Tensor]:
        """Return reference energies that the code has to tell, which is for one setting at a time."""
        for name, value in values.items():
            if math.prod(self._variables[name].batch_shape(value)) != 1:
                raise ValidationError(
                    f"the reference energy at {names[0]!r}, behind an element that accelerates, is known for one "
                    f"setting at a time, and {name!r} is a batch"
                )
        point = {name: _plain(value) for name, value in values.items()}
        energies = consult(simulator.energies, point, names)
        anchors = tuple(tensor for tensor in tensors_in(values) if is_differentiated(tensor))
        found = {}
        for name in names:
            found[name] = torch.tensor(energies[name], dtype=self.dtype, device=self.device)
            if anchors:
                message = f"the reference energy at {name!r}, behind an element that accelerates, has no gradient"
                found[name] = found[name] + refuse_gradient(anchors, message)
        return found


def _plain(value: Any) -> PlainValue:
    """Return a single value as codes take it."""
    if isinstance(value, TorchParticleGroup):
        return (value.batch_item(0) if value.batch_shape else value).to_particle_group()
    return concrete(value).reshape(()).item() if isinstance(value, torch.Tensor) else value
