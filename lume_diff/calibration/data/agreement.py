"""Whether data fit a model: names, units, limits, shapes and pixels, everything that is wrong named at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lume_diff.calibration.data.arrays import raise_all
from lume_diff.calibration.data.history import Step
from lume_diff.calibration.data.settings import Settings
from lume_diff.errors import (
    LumeDiffError,
    ReadOnlyError,
    ShapeError,
    UnitError,
    ValidationError,
    unknown_variable,
)
from lume_diff.models import LUMEModel
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, conversion_factor

if TYPE_CHECKING:
    from lume_diff.calibration.data.scalars import Dataset
    from lume_diff.calibration.data.screens import ScreenDataset

_AGREES = 1e-3  # relative difference of pixel sizes


def check_screens(data: ScreenDataset, model: LUMEModel) -> ScreenDataset:
    """Check that a model can predict these data.

    Args:
        model: with an input for every setting, and the screen's image among its outputs.

    Returns:
        The data with settings in the units of the model; the same object where they are already.

    Raises:
        UnknownVariableError, ReadOnlyError, UnitError, ValidationError, ShapeError: all that does not fit, at once.
    """
    settings, problems = _checked_settings(data._settings, model)
    problems += _problems_of_screen(data, model)
    raise_all(f"data of {data.screen!r} and {type(model).__name__}", problems)
    if settings is data._settings:
        return data
    return data._with(Step("check_against", {"units": dict(settings.units)}), _settings=settings)


def check_scalars(data: Dataset, model: LUMEModel) -> Dataset:
    """Check that a model can predict these data.

    Args:
        model: with an input for every setting, and every measured quantity among its outputs.

    Returns:
        The data in the units of the model; the same object where they are already.

    Raises:
        UnknownVariableError, ReadOnlyError, UnitError, ValidationError: all that does not fit, at once.
    """
    settings, problems = _checked_settings(data._settings, model)
    factors: dict[str, float] = {}
    for name in data.outputs:
        variable = model.supported_variables.get(name)
        if variable is None:
            problems.append(unknown_variable(name, model.output_names, "the outputs of the model"))
            continue
        if not isinstance(variable, TorchScalarVariable):
            problems.append(ValidationError(f"{name!r} is a {type(variable).__name__} in the model, expected a number"))
            continue
        try:
            unit = data.units.get(name, variable.unit)
            factors[name] = conversion_factor(unit, variable.unit)
        except UnitError as problem:
            problems.append(UnitError(f"{name!r}: {problem}"))
    raise_all(f"data and {type(model).__name__}", problems)
    changed = {name: factor for name, factor in factors.items() if factor != 1.0}
    if settings is data._settings and not changed:
        return data
    units = {name: model.supported_variables[name].unit for name in changed}
    return data._converted(settings, changed, units)


def _checked_settings(settings: Settings, model: LUMEModel) -> tuple[Settings, list[LumeDiffError]]:
    """Return settings in the model's units, and what is wrong with them."""
    problems: list[LumeDiffError] = []
    values, units = dict(settings.values), dict(settings.units)
    for name, array in settings.values.items():
        variable = model.supported_variables.get(name)
        if variable is None:
            problems.append(unknown_variable(name, model.input_names, "the inputs of the model"))
            continue
        if variable.read_only:
            problems.append(ReadOnlyError(f"setting {name!r} is an output of the model; settings are inputs"))
            continue
        if not isinstance(variable, TorchScalarVariable):
            problems.append(
                ValidationError(f"setting {name!r} is a {type(variable).__name__} in the model, expected a number")
            )
            continue
        try:
            factor = conversion_factor(units.get(name, variable.unit), variable.unit)
        except UnitError as problem:
            problems.append(UnitError(f"setting {name!r}: {problem}"))
            continue
        if factor != 1.0:
            values[name], units[name] = array * factor, variable.unit
        try:
            variable.validate_value(np.array(values[name]), config="error")
        except LumeDiffError as problem:
            problems.append(problem)
    is_same = units == dict(settings.units)
    return settings if is_same else Settings(values, units, settings.count), problems


def _problems_of_screen(data: ScreenDataset, model: LUMEModel) -> list[LumeDiffError]:
    variable = model.supported_variables.get(data.screen)
    if variable is None:
        return [unknown_variable(data.screen, model.output_names, "the outputs of the model")]
    if not isinstance(variable, TorchNDVariable) or len(variable.shape) != 2:
        return [ValidationError(f"{data.screen!r} is no image in the model: {variable!r}")]
    frame, problems = data.frame, list[LumeDiffError]()
    if variable.shape != frame.full:
        ny, nx = variable.shape
        also = "" if frame.is_full and frame.binning == 1 else f", and these data show a part of it, {data.shape[2:]}"
        turned = "; transpose() exchanges x and y" if frame.full == (nx, ny) else ""
        problems.append(
            ShapeError(
                f"{data.screen!r} has (ny, nx) = {variable.shape} in the model and {frame.full} on the camera{also}; "
                f"give the model's screen resolution=({frame.full[1]}, {frame.full[0]}){turned}"
            )
        )
    for axis, measured, modelled in zip(
        "xy", frame.pixel, _modelled_pixel(variable, model) or frame.pixel, strict=True
    ):
        if abs(measured / modelled - 1.0) > _AGREES:
            problems.append(
                ValidationError(
                    f"pixels of {data.screen!r} are {modelled:.6g} m in {axis} in the model and {measured:.6g} m in "
                    "the data; set one of the two right"
                )
            )
    return problems


def _modelled_pixel(image: TorchNDVariable, model: LUMEModel) -> tuple[float, ...]:
    """Return width and height of a pixel as the model was built, times what was changed since; () if not known."""
    if image.pixel_size is None:
        return ()
    found = []
    for axis, size in zip("xy", image.pixel_size, strict=True):
        name = f"{image.name.rpartition('.')[0]}.pixel_size_{axis}"
        if name in model.input_names:
            size *= float(model.get(name)) / float(model.supported_variables[name].default_value)
        found.append(size)
    return tuple(found)
