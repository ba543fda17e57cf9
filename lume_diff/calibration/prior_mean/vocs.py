"""vocs_from_model: Xopt's variables, objectives and constraints from what a model knows of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from xopt.vocs import VOCS

from lume_diff.calibration.prior_mean.checks import checked_inputs, checked_outputs, raise_all
from lume_diff.errors import LumeDiffError
from lume_diff.models import LUMEModel


class Quantity(NamedTuple):
    """What an objective or a constraint is made of.

    Attributes:
        outputs: names of the model's outputs.
        transform: function of them, each ``(*batch, *shape)``, that returns ``(*batch,)``; None for one scalar output.
    """

    outputs: list[str]
    transform: Callable[..., Tensor] | None


#: Where a VOCS keeps what is remembered with it: pydantic's private values are copied along and never dumped, and the
#: VOCS stays Xopt's own class, as its files need it.
_PRIVATE = "__pydantic_private__"


def _remember(vocs: VOCS, quantities: Mapping[str, Quantity], units: Mapping[str, str]) -> VOCS:
    object.__setattr__(vocs, _PRIVATE, {"quantities": dict(quantities), "units": dict(units)})
    return vocs


def quantities_of(vocs: VOCS) -> dict[str, Quantity]:
    """Return what the outputs of a VOCS of ``vocs_from_model`` are made of; nothing for another VOCS."""
    return dict((getattr(vocs, _PRIVATE, None) or {}).get("quantities", {}))


def units_of(vocs: VOCS) -> dict[str, str]:
    """Return the units of variables, and of outputs that are the model's own, of a VOCS of ``vocs_from_model``."""
    return dict((getattr(vocs, _PRIVATE, None) or {}).get("units", {}))


#: "final.sigma_x", (["final.sigma_x", "final.sigma_y"], function) or ("final.sigma_x", torch.log10).
Definition = str | tuple[str | Sequence[str], Callable[..., Tensor] | None]


def quantity(model: LUMEModel, name: str, definition: Definition | None) -> Quantity:
    """Return what an output of a VOCS is made of; the model's output of that name where nothing is said.

    Raises:
        UnknownVariableError, ValidationError, ShapeError: if the model has no such outputs, or they make no number.
    """
    outputs, transform = (definition or name, None) if not isinstance(definition, tuple) else definition
    return Quantity(checked_outputs(model, outputs, transform), transform)


def vocs_from_model(
    model: LUMEModel,
    inputs: Sequence[str] | Mapping[str, tuple[float, float] | None],
    objectives: Mapping[str, Any],
    constraints: Mapping[str, Any] | None = None,
    observables: Sequence[str] = (),
    outputs: Mapping[str, Definition] | None = None,
) -> VOCS:
    """Make Xopt's VOCS for a model.

    Args:
        model: any model.
        inputs: names of scalar inputs, whose ``value_range`` the ranges are; or a mapping from names to ranges
            [the inputs' units], None for the model's.
        objectives: as in Xopt, ``{"final.sigma_x": "MINIMIZE"}``.
        constraints: as in Xopt, ``{"final.survival": ["GREATER_THAN", 0.99]}``.
        observables: names of more to record.
        outputs: how objectives, constraints and observables that the model does not have under their name are
            computed: ``{"log_size": ("final.sigma_x", torch.log10)}``, or a list of outputs and a function of them.

    Returns:
        The VOCS; ``xopt_evaluator`` knows from it how its outputs are computed, also from a copy, not from a file.

    Raises:
        UnknownVariableError, ValidationError: for inputs that the model does not have or that are no scalars.
        ValidationError: for inputs without a range or with one beyond the model's limits, and outputs that the model
            does not have or that are no numbers; all at once.

    Example:
        >>> import torch
        >>> from lume_diff import TorchModel
        >>> from lume_diff.variables import TorchScalarVariable as Scalar
        >>> knob = Scalar(name="a", unit="1/m^2", value_range=(-1.0, 2.0), default_value=0.0)
        >>> model = TorchModel(torch.nn.Softplus(), [knob], [Scalar(name="size", read_only=True)])
        >>> vocs = vocs_from_model(model, ["a"], {"log_size": "MINIMIZE"}, outputs={"log_size": ("size", torch.log10)})
        >>> vocs.variables["a"].domain
        [-1.0, 2.0]
    """
    names = checked_inputs(model, list(inputs) if isinstance(inputs, Mapping) else inputs)
    ranges: dict[str, Any] = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(names)
    problems: list[str] = []
    variables = {name: _range(model, name, ranges[name], problems) for name in names}
    wanted = [*objectives, *(constraints or {}), *observables]
    quantities: dict[str, Quantity] = {}
    for name in wanted:
        try:
            quantities[name] = quantity(model, name, (outputs or {}).get(name))
        except LumeDiffError as error:
            problems.append(f"{name!r}: {error}; say how it is computed in outputs={{...}}")
    for name in outputs or {}:
        if name not in wanted:
            problems.append(f"outputs has {name!r}; expected objectives, constraints and observables: {wanted}")
    raise_all(problems)
    vocs = VOCS(
        variables=variables,
        objectives=dict(objectives),
        constraints=dict(constraints or {}),
        observables=list(observables),
    )
    known = model.supported_variables
    units = {name: known[name].unit or "" for name in [*names, *quantities] if name in known}
    return _remember(vocs, quantities, units)


def _range(model: LUMEModel, name: str, given: tuple[float, float] | None, problems: list[str]) -> list[float]:
    """Return the range of a variable, and note what is wrong with it."""
    limits = model.supported_variables[name].value_range  # type: ignore[attr-defined]
    low, high = limits or (None, None)
    if given is None:
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            lacking = "no value_range" if limits is None else f"the value_range {limits}, which has no end"
            problems.append(f"input {name!r} has {lacking}: give its range, inputs={{{name!r}: (low, high), ...}}")
            return [0.0, 1.0]
        return [float(low), float(high)]
    least, most = given
    if (
        (low is not None and least < low)
        or (high is not None and most > high)
        or not -math.inf < least < most < math.inf
    ):
        within = "" if limits is None else f" within the model's {limits}"
        problems.append(f"range of {name!r} is {tuple(given)}; expected a finite, increasing one{within}")
        return [0.0, 1.0]
    return [float(least), float(most)]
