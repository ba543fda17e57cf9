"""Survey: the variables of a model that has not been built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lume_diff.errors import LumeDiffError
from lume_diff.models.stage_names import chain_variables, join
from lume_diff.variables import Variable


@dataclass(frozen=True)
class Survey:
    """What a model will have: enough of a ``LUMEModel`` to name the variables of a chain.

    Attributes:
        supported_variables: by name.
    """

    supported_variables: Mapping[str, Variable]

    @classmethod
    def of(cls, variables: Iterable[Variable]) -> Survey:
        """Return the survey of some variables."""
        return cls(MappingProxyType({variable.name: variable for variable in variables}))

    @property
    def input_names(self) -> list[str]:
        """Names of the variables that can be written."""
        return [name for name, variable in self.supported_variables.items() if not variable.read_only]

    @property
    def output_names(self) -> list[str]:
        """Names of the variables that can only be read."""
        return [name for name, variable in self.supported_variables.items() if variable.read_only]


def chained(stages: Mapping[str, Survey], links: Mapping[str, str]) -> Survey:
    """Return what a chain of models will have.

    Raises:
        LumeDiffError: for a link or a border that does not fit.
    """
    if not stages:
        raise LumeDiffError("a chain needs at least one stage")
    known: Mapping[str, object] = stages
    variables, _ = chain_variables(known, join(known, links))  # type: ignore[arg-type]  # they look like models
    return Survey(MappingProxyType(variables))
