"""What a prior mean may learn from the data: scales and offsets of its inputs and of the objective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from gpytorch.priors import NormalPrior
from torch import Tensor, nn

from lume_diff.calibration.fit.parameters import InputParameter, Parameter, Scale
from lume_diff.calibration.fit.priors import Normal, Prior
from lume_diff.errors import ValidationError
from lume_diff.models import LUMEModel

#: What is expected of a strength where the user says nothing: right to a fifth.
_SCALE = Normal(1.0, 0.2)


class OutputScale(Parameter):
    """The objective is the model's times this, around a level that an ``OutputOffset`` can move.

    Args:
        prior: of the factor.
        name: in reports.

    Example:
        >>> OutputScale(Normal(1.0, 0.2)).name
        'scale of the objective'
    """

    def __init__(self, prior: Prior, *, name: str = "scale of the objective") -> None:
        super().__init__(name, prior, "")

    def on_objective(self, objective: Tensor, value: Tensor) -> Tensor:
        """Return ``objective value``."""
        return objective * value


class OutputOffset(Parameter):
    """The objective is the model's plus this: for a logarithm of a size, the size times a factor.

    Args:
        prior: of the offset [unit of the objective].
        unit: of the objective.
        name: in reports.

    Example:
        >>> OutputOffset(Normal(0.0, 0.1)).name
        'offset of the objective'
    """

    def __init__(self, prior: Prior, *, unit: str = "", name: str = "offset of the objective") -> None:
        super().__init__(name, prior, unit)

    def on_objective(self, objective: Tensor, value: Tensor) -> Tensor:
        """Return ``objective + value``."""
        return objective + value


@dataclass(frozen=True)
class Learned:
    """One parameter of a mean as it stands.

    Attributes:
        name: of the parameter.
        value: [unit].
        unit: of the value.
        expected: where its prior has the middle [unit].
    """

    name: str
    value: float
    unit: str
    expected: float


class MeanParameters(gpytorch.Module):
    """The unknowns of a mean as one vector of standard normal coordinates, so that training moves all alike.

    Attributes:
        coordinates: ``(p,)``, in standard deviations of the priors; zero is the middle of each.
    """

    coordinates: nn.Parameter

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        super().__init__()
        self.described = list(parameters)
        self._settled: tuple[tuple[Any, ...], list[tuple[Parameter, Tensor]]] | None = None
        self.register_parameter("coordinates", nn.Parameter(torch.zeros(len(self.described), dtype=torch.float64)))
        if self.described:
            # Named functions: a mean is pickled, and gpytorch's own closures cannot be.
            self.register_prior("standard_normal", NormalPrior(0.0, 1.0), _coordinates, _set_coordinates)

    @property
    def is_learning(self) -> bool:
        """Whether training moves anything."""
        return bool(self.described) and self.coordinates.requires_grad

    @property
    def touched(self) -> list[str]:
        """Names of the model's inputs that parameters act on."""
        return list(dict.fromkeys(name for p in self.described for name in getattr(p, "inputs", ())))

    def pairs(self, coordinates: Tensor) -> list[tuple[Parameter, Tensor]]:
        """Return the parameters with their values [their units], ``(*c, 1)`` for coordinates ``(*c, p)``."""
        if coordinates is self.coordinates and not coordinates.requires_grad and not coordinates.is_inference():
            # An optimiser of the acquisition function asks many times while nothing trains them.
            state = coordinates._version, coordinates.dtype, coordinates.device
            if self._settled is None or self._settled[0] != state:
                self._settled = state, self._pairs(coordinates)
            return self._settled[1]
        return self._pairs(coordinates)

    def _pairs(self, coordinates: Tensor) -> list[tuple[Parameter, Tensor]]:
        return [(p, p.prior.at(coordinates[..., i, None])) for i, p in enumerate(self.described)]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was remembered: a copy counts the versions of its coordinates anew."""
        return {**self.__dict__, "_settled": None}

    def learned(self) -> list[Learned]:
        """Return the parameters as they stand, in their units."""
        found = []
        for (parameter, value), (_, middle) in zip(
            self.pairs(self.coordinates.detach()), self.pairs(torch.zeros_like(self.coordinates)), strict=True
        ):
            found.append(Learned(parameter.name, float(value), parameter.unit, float(middle)))
        return found


def _coordinates(parameters: MeanParameters) -> Tensor:
    return parameters.coordinates


def _set_coordinates(parameters: MeanParameters, value: Tensor) -> None:
    parameters.initialize(coordinates=value)


def checked_parameters(
    trainable: Sequence[Parameter] | None, inputs: Sequence[str], model: LUMEModel
) -> list[Parameter]:
    """Return what a mean may learn: as asked, or a scale for each input.

    Raises:
        ValidationError: for what is no parameter of inputs or of the objective, and for names that appear twice.
        UnknownVariableError, ReadOnlyError, UnitError: for parameters that do not fit the model.
    """
    parameters: list[Parameter] = [Scale(name, _SCALE) for name in inputs] if trainable is None else list(trainable)
    for parameter in parameters:
        if not isinstance(parameter, (InputParameter, OutputScale, OutputOffset)):
            raise ValidationError(
                f"trainable has {parameter!r}; expected parameters of inputs (Scale, Offset, Value, BeamMomentum) or "
                "of the objective (OutputScale, OutputOffset)"
            )
        parameter.check(model)
    names = [parameter.name for parameter in parameters]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValidationError(f"trainable has more than one {', '.join(map(repr, twice))}: give each a name of its own")
    return parameters
