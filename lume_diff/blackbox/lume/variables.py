"""Variables and values of LUME (lume-base) as ours, and the other way."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lume_diff.blackbox.codes.missing import require
from lume_diff.errors import PhysicsWarning, ShapeError, UnitError, ValidationError
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    ParticleGroupVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
    Variable,
    parse_unit,
)
from lume_diff.variables.limits import INT64_ENDS

_PIP = 'pip install "lume_diff[lume]"'


def lume(module: str) -> Any:
    """Return a module of lume-base.

    Raises:
        MissingExtraError: if it is not installed.
    """
    return require(f"lume.{module}", "lume-base", _PIP)


@dataclass(frozen=True)
class Translation:
    """One of LUME's variables here.

    Attributes:
        variable: our description.
        theirs: makes a value that LUME's variable takes from a plain one.
        ours: makes a plain value from LUME's.
    """

    variable: Variable
    theirs: Callable[[Any], Any]
    ours: Callable[[Any], Any]


def translated(native: Any, unit: str | None = None, default: Any = None) -> Translation:
    """Return what one of LUME's variables is here.

    Args:
        native: a ``lume.variables.Variable``.
        unit: to use instead of the declared one.
        default: to use instead of the declared one, as LUME has it.

    Raises:
        ValidationError: for a kind of variable that has no counterpart.
        UnitError: for a unit in ``unit`` that is not known.
    """
    classes = lume("variables")
    common: dict[str, Any] = {
        "name": native.name,
        "description": native.description or "",
        "read_only": bool(native.read_only),
    }
    policy = native.default_validation_config
    policy = str(getattr(policy, "value", policy))
    if "default_validation_config" in native.model_fields_set or policy != "none":  # "none" is LUME's default
        common["default_validation_config"] = policy
    default = getattr(native, "default_value", None) if default is None else default
    declared = getattr(native, "unit", None)
    common["unit"] = _known_unit(native.name, declared) if unit is None else unit
    if isinstance(native, classes.IntVariable):
        number = None if default is None else int(default)
        variable: Variable = IntVariable(**common, default_value=number, value_range=native.value_range)
        return Translation(variable, int, int)
    if isinstance(native, classes.ScalarVariable):
        variable = TorchScalarVariable(**common, default_value=_number(default), value_range=native.value_range)
        return Translation(variable, lambda value: _taken(native, float(value)), _number)
    if isinstance(native, classes.NDVariable):
        array = None if default is None else _array(default)
        variable = TorchNDVariable(**common, shape=native.shape, default_value=array)
        return Translation(variable, lambda value: _taken(native, np.asarray(value, dtype=float)), _array)
    if isinstance(native, classes.BoolVariable):
        flag = None if default is None else bool(default)
        return Translation(BoolVariable(**common, default_value=flag), bool, bool)
    if isinstance(native, classes.StrVariable):
        variable = StrVariable(
            **common,
            default_value=default,
            pattern=native.regex,
            min_length=native.min_length,
            max_length=native.max_length,
        )
        return Translation(variable, str, str)
    if isinstance(native, classes.EnumVariable):
        return _enum(native, common, default)
    if isinstance(native, classes.ParticleGroupVariable):
        return Translation(ParticleGroupVariable(**common), _same, _same)
    raise ValidationError(
        f"variable {native.name!r} is a {type(native).__qualname__}, which has no counterpart here: name the variables "
        "to use as controls and outputs, without it"
    )


def _enum(native: Any, common: Mapping[str, Any], default: Any) -> Translation:
    options = {str(option): option for option in native.options}
    if len(options) < len(native.options):
        raise ValidationError(
            f"variable {native.name!r}: some of its options {native.options} read the same as text: leave it out"
        )
    text = None if default is None else str(default)
    variable = EnumVariable(**common, options=list(options), default_value=text)
    return Translation(variable, options.__getitem__, str)


def _same(value: Any) -> Any:
    return value


def _known_unit(name: str, unit: str | None) -> str:
    try:
        parse_unit(unit or "")
    except UnitError:
        warnings.warn(
            f"unit {unit!r} of variable {name!r} is not known and is left out; give units={{{name!r}: ...}}",
            PhysicsWarning,
            stacklevel=4,
        )
        return ""
    return unit or ""


def _array(value: Any) -> Any:
    """Return numbers as a float64 array, whether they come as a list, an array or a tensor."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.array(value, dtype=float)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    array = _array(value)
    if array.size != 1:
        raise ShapeError(f"received a value of shape {array.shape} where a single number was declared")
    return float(array.reshape(()))


def _taken(native: Any, value: Any) -> Any:
    """Return a value in the form that a variable takes: as it is, in its dtype, or as a tensor."""
    dtype = getattr(native, "dtype", None)
    if isinstance(value, np.ndarray) and isinstance(dtype, np.dtype):
        cast = value.astype(dtype)
        if dtype.kind not in "f" and not np.array_equal(cast, value):
            raise ValidationError(f"{native.name!r} holds {dtype} and cannot take these numbers")
        value = cast
    try:
        native.validate_value(value)
    except TypeError:
        import torch

        is_torch = isinstance(dtype, torch.dtype)
        tensor = torch.as_tensor(value, dtype=dtype if is_torch else torch.float64)
        try:
            native.validate_value(tensor)
        except TypeError:
            return value
        return tensor
    return value


def native_variable(variable: Variable) -> Any | None:
    """Return LUME's variable for one of ours, None for moments, which LUME does not have.

    Limits are told but not enforced by it: the model judges its values itself.
    """
    classes = lume("variables")
    common: dict[str, Any] = {
        "name": variable.name,
        "description": variable.description,
        "read_only": variable.read_only,
        "default_validation_config": "none",
    }
    unit = variable.unit or None
    if isinstance(variable, TorchScalarVariable):
        return classes.ScalarVariable(
            **common, default_value=variable.default_value, value_range=variable.value_range, unit=unit
        )
    if isinstance(variable, IntVariable):
        limits = variable.value_range
        is_open = limits is None or tuple(limits) == INT64_ENDS
        return classes.IntVariable(
            **common, default_value=variable.default_value, value_range=None if is_open else limits, unit=unit
        )
    if isinstance(variable, TorchNDVariable):
        default = None if variable.default_value is None else np.array(variable.default_value, dtype=float)
        return classes.NDVariable(
            **common, shape=tuple(variable.shape), dtype=np.dtype(float), default_value=default, unit=unit
        )
    if isinstance(variable, BoolVariable):
        return classes.BoolVariable(**common, default_value=variable.default_value)
    if isinstance(variable, StrVariable):
        return classes.StrVariable(
            **common,
            default_value=variable.default_value,
            regex=variable.pattern,
            min_length=variable.min_length,
            max_length=variable.max_length,
        )
    if isinstance(variable, EnumVariable):
        return classes.EnumVariable(**common, options=list(variable.options), default_value=variable.default_value)
    if isinstance(variable, ParticleGroupVariable):
        return classes.ParticleGroupVariable(**common)
    return None


def native_value(variable: Variable, value: Any) -> Any:
    """Return a value of one of our variables as LUME has it: a Python number, an array, a text, a ParticleGroup.

    Raises:
        ValidationError: for an input without a value.
        ShapeError: for a batch, which LUME does not have.
    """
    if value is None:
        raise ValidationError(f"input {variable.name!r} has no value: set it")
    batch = tuple(variable.batch_shape(value))
    if math.prod(batch) != 1:
        raise ShapeError(f"{variable.name!r} is a batch of shape {batch}, which LUME does not have: set single values")
    if isinstance(variable, ParticleGroupVariable):
        return (value.batch_item(0) if batch else value).to_particle_group()
    if isinstance(variable, (EnumVariable, StrVariable)):
        return value
    if isinstance(variable, TorchNDVariable):
        return value.detach().cpu().double().numpy().reshape(variable.shape).copy()
    return value.detach().reshape(()).item()
