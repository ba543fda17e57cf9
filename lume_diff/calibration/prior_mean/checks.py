"""Do a model, a mean and a VOCS fit together? All that is wrong is said at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import LumeDiffError, ShapeError, UnknownVariableError, ValidationError, nearest_names
from lume_diff.models import LUMEModel
from lume_diff.models.derivatives import component_shape
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

#: A batch that no output has by chance.
_BATCH = (2, 3)


def raise_all(problems: Sequence[str], kind: type[LumeDiffError] = ValidationError) -> None:
    """Raise one error that names all problems, if there are any."""
    if problems:
        raise kind("; ".join(problems))


def checked_inputs(model: LUMEModel, inputs: Sequence[str]) -> list[str]:
    """Return the names of a mean's inputs.

    Raises:
        UnknownVariableError: for names that are not inputs of the model.
        ValidationError: for a single string, no name, a name twice, and inputs that are no scalars.
    """
    if isinstance(inputs, str):
        raise ValidationError(f"inputs must be a list of names, got the string {inputs!r}: write [{inputs!r}]")
    names = list(inputs)
    if not names:
        raise ValidationError("inputs is empty: name the variables that the optimiser changes")
    unknown = [name for name in names if name not in model.input_names]
    raise_all(
        [
            f"{name!r} is {'an output' if name in model.output_names else 'not an input'} of the model"
            f"{nearest_names(name, model.input_names)}"
            for name in unknown
        ],
        UnknownVariableError,
    )
    problems = [f"{name!r} appears twice in inputs" for name in sorted({n for n in names if names.count(n) > 1})]
    for name in names:
        variable = model.supported_variables[name]
        if not isinstance(variable, TorchScalarVariable):
            problems.append(f"input {name!r} is a {type(variable).__name__}; expected a scalar")
    raise_all(problems)
    return names


def checked_outputs(
    model: LUMEModel, output: str | Sequence[str], transform: Callable[..., Tensor] | None
) -> list[str]:
    """Return the names of the outputs that make an objective, tried at the set-points where the model has values.

    Raises:
        UnknownVariableError: for names that are not outputs of the model.
        ValidationError: for no name, several names without a transform, and a transform that raises or returns no
            tensor.
        ShapeError: for an array without a transform, and a transform that does not return one number for each point.
    """
    names = [output] if isinstance(output, str) else list(output)
    if not names:
        raise ValidationError("output is empty: name the output that is the objective")
    unknown = [name for name in names if name not in model.output_names]
    raise_all(
        [
            f"{name!r} is {'an input' if name in model.input_names else 'not an output'} of the model"
            f"{nearest_names(name, model.output_names)}"
            for name in unknown
        ],
        UnknownVariableError,
    )
    variables = {name: model.supported_variables[name] for name in names}
    for name, variable in variables.items():
        if not isinstance(variable, (TorchScalarVariable, TorchNDVariable)):
            raise ValidationError(
                f"output {name!r} is a {type(variable).__name__}; expected scalars or arrays: name a statistic of it"
            )
    if transform is None:
        if len(names) > 1:
            raise ValidationError(f"output names {names}, but there is no transform that makes one objective of them")
        if shape := component_shape(variables[names[0]]):
            raise ShapeError(
                f"output {names[0]!r} has shape {tuple(shape)}; expected a scalar, or a transform that makes one "
                "number of it for each point"
            )
        return names
    _try_transform(names, [component_shape(v) for v in variables.values()], transform, model)
    return names


def _try_transform(
    names: Sequence[str], shapes: Sequence[tuple[int, ...]], transform: Callable[..., Tensor], model: LUMEModel
) -> None:
    """Raise unless a transform keeps a batch: values do not matter, so no simulation is needed."""
    values = [torch.ones(*_BATCH, *shape, dtype=model.dtype, device=model.device) for shape in shapes]
    try:
        found: Any = transform(*values)
    except Exception as error:
        described = ", ".join(f"{n} {tuple(v.shape)}" for n, v in zip(names, values, strict=True))
        raise ValidationError(
            f"transform failed on a batch of {_BATCH} points ({described}): {error}; expected a function of "
            "tensors with leading batch dimensions"
        ) from error
    if not isinstance(found, Tensor):
        raise ValidationError(f"transform returned a {type(found).__name__}; expected a tensor of one number a point")
    if found.shape != _BATCH:
        raise ShapeError(
            f"transform of {list(names)} returned shape {tuple(found.shape)} for a batch of {_BATCH} points; expected "
            f"{_BATCH}: one number for each point"
        )


def matching_problems(
    inputs: Sequence[str],
    limits: Mapping[str, tuple[float, float]],
    columns: Sequence[str],
    bounds: Mapping[str, Sequence[float]] | None,
) -> list[str]:
    """Return in words what keeps a mean from being used for a VOCS: names, and ranges beyond the model's limits."""
    problems = [
        f"VOCS variable {name!r} is no input of the mean{nearest_names(name, inputs)}; add it to "
        "ModelMean(inputs=...), under the name that the model has for it"
        for name in columns
        if name not in inputs
    ]
    problems += [
        f"input {name!r} of the mean is no variable of the VOCS{nearest_names(name, columns)}; leave it out of "
        "ModelMean(inputs=...) to keep it at the model's set-point"
        for name in inputs
        if name not in columns
    ]
    for name, (low, high) in ((n, tuple(bounds[n])) for n in inputs if bounds is not None and n in bounds):
        least, most = limits[name]
        slack = 1e-9 * (high - low)
        if low < least - slack or high > most + slack:
            problems.append(
                f"VOCS variable {name!r} goes from {low:g} to {high:g}; the model's limits are {least:g} and {most:g}: "
                "narrow the VOCS, or widen the model's value_range if it is right there"
            )
    return problems
