"""The facility's mapping of a machine: what it makes of a model, and its mistakes with their lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.models import LUMEModel
from lume_diff.models.facility import FacilityMapping
from lume_diff.models.facility.bind_inputs import bind_inputs
from lume_diff.models.facility.bind_outputs import bind_outputs
from lume_diff.models.facility.binding import Binding
from lume_diff.models.facility.mistakes import MappingError, Mistakes
from lume_diff.models.facility.templates import expanded
from lume_diff.variables import Variable


def bound_variables(model: LUMEModel, mapping: FacilityMapping, folder: Path) -> Mapping[str, Variable]:
    """Return the variables that a mapping gives a model, whatever the model's set-points are.

    Raises:
        MappingError: for names and units that do not fit.
    """
    mistakes = Mistakes()
    binding = Binding(model, mapping, expanded(mapping, folder, mistakes), mistakes)
    bind_inputs(binding)
    bind_outputs(binding)
    mistakes.refuse()
    return binding.variables


def located(error: MappingError, node: Node, where: str, file: str) -> list[Problem]:
    """Return the mistakes of a mapping with their lines.

    Args:
        error: what the mapping's check has found.
        node: the mapping as it was read.
        where: its place in the machine file; empty where it has a file of its own.
        file: that file's name.
    """
    found = []
    for location, message in error.mistakes:
        line, here = node.line, node
        for key in location:
            inner = here.child(key)
            if inner is None:
                break
            line, here = (here.line_of(key) if isinstance(key, str) else inner.line), inner
        place = ".".join(map(str, (where, *location) if where else location))
        found.append(Problem(line, place, message, file))
    return found
