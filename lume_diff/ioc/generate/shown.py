"""Which variables of a model are shown."""

from __future__ import annotations

from collections.abc import Sequence

from lume_diff.errors import unknown_variable
from lume_diff.models import LUMEModel
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, Variable


def shown(model: LUMEModel, names: Sequence[str] | None = None) -> list[Variable]:
    """Return variables of a model, beams left out.

    Args:
        model: whose variables.
        names: of those to show; all if None.

    Raises:
        UnknownVariableError: for a name that the model does not have.
    """
    known = model.supported_variables
    for name in names or ():
        if name not in known:
            raise unknown_variable(name, known, "the model to show")
    found = [known[name] for name in (known if names is None else names)]
    return [variable for variable in found if not isinstance(variable, MomentsVariable | ParticleGroupVariable)]
