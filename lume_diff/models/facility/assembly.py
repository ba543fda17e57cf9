"""A mapping bound to a model: the variables of the facility, and the plans by which it computes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lume_diff.models.base import LUMEModel
from lume_diff.models.facility.bind_inputs import bind_inputs
from lume_diff.models.facility.bind_outputs import bind_outputs, limit_of
from lume_diff.models.facility.binding import Binding
from lume_diff.models.facility.energies import Energies
from lume_diff.models.facility.groups import Groups
from lume_diff.models.facility.inputs import InputPlan
from lume_diff.models.facility.mapping import FacilityMapping
from lume_diff.models.facility.mistakes import Location, Mistakes
from lume_diff.models.facility.outputs import OutputPlan
from lume_diff.models.facility.starts import note_disagreement, starting_values
from lume_diff.models.facility.templates import expanded
from lume_diff.variables import TorchScalarVariable, Variable


class Assembly:
    """What a mapping means for a model.

    Args:
        model: the model inside, at the set-points that the facility is to start from.
        mapping: the mapping.
        folder: that its files are relative to.

    Raises:
        MappingError: with everything that is wrong.
    """

    def __init__(self, model: LUMEModel, mapping: FacilityMapping, folder: Path | str | None) -> None:
        mistakes = Mistakes()
        binding = Binding(model, mapping, expanded(mapping, folder, mistakes), mistakes)
        self._inputs, self._outputs = bind_inputs(binding), bind_outputs(binding)
        mistakes.refuse()
        self._sources, self._named, self._factors = binding.sources, binding.named, binding.factors
        self._mapping = mapping
        self.variables = {name: binding.variables[name] for name in {**binding.entries, **binding.variables}}
        plan = self.input_plan(model)
        starts = self.starts(model, plan)
        note_disagreement(model, plan, starts, self._inputs.given, mistakes)
        for name, value in starts.items():
            where: Location = binding.entries[name].where if name in binding.entries else ()
            with mistakes.noted(where, name):
                self.variables[name] = _with_default(self.variables[name], value)
        mistakes.refuse()

    def input_plan(self, model: LUMEModel) -> InputPlan:
        """Return how native inputs are computed, in the model's dtype and where it is."""
        links, direct, switches = self._inputs.links, self._inputs.direct, self._inputs.switches(model)
        live = {link.native for link in links if link.energy is not None}
        set_natives = [native for s in switches for values in s.settings.values() for native in values]
        settled = [
            name for name in dict.fromkeys([*(k.native for k in links), *direct, *set_natives]) if name not in live
        ]
        elements = [what for kind, what in self._sources if kind == "model"]
        energies = Energies(model, elements, self._factors, settled)
        groups = Groups(links, model.dtype, model.device)
        return InputPlan(groups, direct, switches, energies, self._sources, self._named)

    def output_plan(self, model: LUMEModel) -> OutputPlan:
        """Return how outputs are computed, in the model's dtype and where it is."""
        out = self._outputs
        return OutputPlan(
            Groups(out.links, model.dtype, model.device),
            out.shown,
            out.follows,
            out.derived,
            {name: _placed(value, model) for name, value in out.fixed.items()},
            out.crops,
            out.sizes,
            out.stops,
            out.noise,
            out.offsets,
            self._mapping.seed,
            self._mapping.shot if out.noise else None,
        )

    def with_limits(self, variables: Mapping[str, Variable]) -> dict[str, Variable]:
        """Return variables of the facility that are described anew, and the outputs that show their limits.

        Raises:
            ValidationError: for a variable without the limit that an output shows.
        """
        found = dict(variables)
        for name, (of, end) in self._outputs.limits.items():
            if of in variables:
                changes: Mapping[str, Any] = {"default_value": limit_of(variables[of], end)}
                found[name] = found.get(name, self.variables[name]).replace(**changes)
        return found

    def describe(self, variables: Mapping[str, Variable]) -> None:
        """Take over variables that ``with_limits`` has returned."""
        self.variables |= variables
        for name in self._outputs.limits.keys() & variables.keys():
            self._outputs.fixed[name] = torch.tensor(variables[name].default_value, dtype=torch.float64)

    def starts(self, model: LUMEModel, plan: InputPlan) -> dict[str, Any]:
        """Return what the inputs start from, by where the model stands."""
        inputs = {name: variable for name, variable in self.variables.items() if not variable.read_only}
        return starting_values(model, plan, inputs, self._inputs.given, self._inputs.adds)


def _placed(value: Any, model: LUMEModel) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device=model.device, dtype=model.dtype if value.is_floating_point() else None)


def _with_default(variable: Variable, value: Any) -> Variable:
    """Return a variable whose default is what it starts from, as far as that is one number or one word."""
    if isinstance(variable, TorchScalarVariable) and isinstance(value, torch.Tensor) and value.dim() == 0:
        changes: Mapping[str, Any] = {"default_value": float(value)}
        return variable.replace(**changes)
    if value is not None:
        variable.validate_value(value)
    return variable
