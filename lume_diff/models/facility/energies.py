"""The energies that conversions by rigidity use: the model's own, a variable's, or a constant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.models.base import LUMEModel
from lume_diff.models.facility.groups import is_known
from lume_diff.models.facility.sources import Source
from lume_diff.models.transforms import tensors_in
from lume_diff.variables import TorchScalarVariable


class Energies:
    """Give the energy [eV] at each place that a conversion asks for.

    Args:
        model: the model inside.
        elements: whose reference energy is wanted.
        factors: for each named variable, its factor to eV.
        settled: native inputs that are known without any energy.
    """

    def __init__(
        self, model: LUMEModel, elements: Sequence[str], factors: Mapping[str, float], settled: Iterable[str]
    ) -> None:
        self.elements = tuple(dict.fromkeys(elements))
        self._factors = dict(factors)
        #: The native inputs that the model's reference energies depend on.
        self.inputs = _what_matters(model, self.elements, tuple(settled)) if self.elements else ()

    def of_model(
        self, model: LUMEModel, natives: Mapping[str, Any], known: Sequence[Mapping[str, Tensor]] = ()
    ) -> Mapping[str, Tensor]:
        """Return the reference energy at each element; where it is what is ``known``, the same object."""
        if not self.elements:
            return {}
        inputs = {name: natives[name] for name in self.inputs if natives.get(name) is not None}
        found = model.reference_energy(inputs, self.elements)
        tables = [table for table in known if table]
        return {
            name: next((table[name] for table in tables if is_known(table[name], value)), value)
            for name, value in found.items()
        }

    def of(self, source: Source, at_elements: Mapping[str, Tensor], values: Mapping[str, Any], like: Tensor) -> Tensor:
        """Return one energy [eV].

        Args:
            source: which.
            at_elements: what ``of_model`` returned.
            values: of named variables, in their units.
            like: a tensor whose dtype and device to take.
        """
        kind, what = source
        if kind == "constant":
            return torch.full((), what, dtype=like.dtype, device=like.device)
        value: Tensor = at_elements[what] if kind == "model" else values[what] * self._factors[what]
        return value if value.dtype == like.dtype else value.to(like.dtype)


def _what_matters(model: LUMEModel, elements: Sequence[str], settled: Sequence[str]) -> tuple[str, ...]:
    """Return which native inputs the energies depend on: by the graph, and switches, which have none, always."""
    leaves, others = {}, []
    for name in settled:
        value = model._setpoints[name]
        if isinstance(model.supported_variables[name], TorchScalarVariable) and value is not None:
            leaves[name] = value.detach().clone().requires_grad_()
        elif value is not None and not model.supported_variables[name].is_differentiable:
            others.append(name)
    with torch.enable_grad():
        found = model.reference_energy(leaves, elements)
    reached = _leaves_of(found.values())
    return (*(name for name, leaf in leaves.items() if id(leaf) in reached), *others)


def _leaves_of(values: Iterable[Tensor]) -> set[int]:
    """Return the identities of the leaves that the graphs of values hang on."""
    pending = [tensor.grad_fn for value in values for tensor in tensors_in(value) if tensor.grad_fn is not None]
    reached = {id(value) for value in values}
    seen = set(pending)
    while pending:
        node: Any = pending.pop()
        if hasattr(node, "variable"):
            reached.add(id(node.variable))
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                pending.append(after)
    return reached
