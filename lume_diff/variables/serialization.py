"""Descriptions as plain data, YAML and JSON, and back; loading is safe and creates variables only."""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lume_diff.errors import ValidationError, nearest_names, shortened
from lume_diff.variables.base import Variable, subclasses
from lume_diff.variables.limits import end_words

LARGEST_LIST = 256
"""Arrays with more elements are written as compressed bytes, smaller ones as readable lists."""


def variable_class(name: str) -> type[Variable]:
    """Return the class of variable with a name, ours or LUME's.

    Args:
        name: such as ``"TorchScalarVariable"``, or ``"ScalarVariable"`` as LUME has it.

    Returns:
        The class.

    Raises:
        ValidationError: there is none; the message has the nearest names.

    Example:
        >>> variable_class("NDVariable").__name__
        'TorchNDVariable'
    """
    classes = {cls.__name__: cls for cls in subclasses()}
    for cls in list(classes.values()):
        for other in cls.upstream_names:
            classes.setdefault(other, cls)
    if name == "DistributionVariable":
        raise ValidationError(
            "variable_class='DistributionVariable' is not supported; declare the mean and the standard deviation "
            "as two TorchScalarVariables"
        )
    if not isinstance(name, str) or name not in classes:
        raise ValidationError(f"variable_class={name!r} is not a class of variable{nearest_names(str(name), classes)}")
    return classes[name]


def to_dict(variable: Variable) -> dict[str, Any]:
    """Return a variable as plain data: the class and every field that was given.

    Args:
        variable: any variable.

    Returns:
        Strings, numbers, bools, None, lists and mappings, for JSON, YAML or anything like them. A large array
        becomes a mapping with ``shape`` and ``zlib`` (base64 text of compressed little-endian float64).

    Example:
        >>> from lume_diff.variables import TorchScalarVariable
        >>> to_dict(TorchScalarVariable(name="Q1.k1", unit="1/m^2", default_value=1.5))
        {'variable_class': 'TorchScalarVariable', 'name': 'Q1.k1', 'unit': '1/m^2', 'default_value': 1.5}
    """
    return {"variable_class": type(variable).__name__} | {k: _plain(v) for k, v in variable._given().items()}


def from_dict(data: Mapping[str, Any]) -> Variable:
    """Return the variable that plain data describe.

    Args:
        data: what `to_dict` or LUME's ``model_dump`` returned. Without ``variable_class`` it is a TorchScalarVariable.

    Returns:
        The variable.

    Raises:
        ValidationError: not a mapping, an unknown class, or a field that is unknown, missing or wrong.
        UnitError: the unit is not known.
        ShapeError: a default value does not have the declared shape.

    Example:
        >>> from_dict({"variable_class": "ScalarVariable", "name": "x", "value_range": [0, 1]}).value_range
        (0.0, 1.0)
    """
    if not isinstance(data, Mapping):
        raise ValidationError(
            f"expected the fields of a variable, received {shortened(repr(data))}; give a mapping with 'name'"
        )
    fields = {str(key): value for key, value in data.items()}
    cls = variable_class(fields.pop("variable_class", None) or "TorchScalarVariable")
    default = fields.get("default_value")
    if isinstance(default, Mapping) and set(default) == {"shape", "zlib"}:
        fields["default_value"] = _unpack(str(fields.get("name")), default)
    return cls(**fields)


def to_yaml(variable: Variable) -> str:
    """Return a variable as YAML text."""
    return str(_text().dump_yaml(to_dict(variable)))


def from_yaml(text: str | Path) -> Variable:
    """Return the variable that a YAML text, or the file at a `pathlib.Path`, describes.

    Raises:
        ValidationError: not YAML, or not a variable.
    """
    return from_dict(_text().load_yaml(text))


def to_json(variable: Variable) -> str:
    """Return a variable as JSON text."""
    return str(_text().dump_json(to_dict(variable)))


def from_json(text: str | Path) -> Variable:
    """Return the variable that a JSON text, or the file at a `pathlib.Path`, describes.

    Raises:
        ValidationError: not JSON, or not a variable.
    """
    return from_dict(_text().load_json(text))


def variables_to_yaml(variables: Iterable[Variable]) -> str:
    """Return several variables as YAML text, in order."""
    return str(_text().dump_yaml([to_dict(variable) for variable in variables]))


def variables_from_yaml(text: str | Path) -> list[Variable]:
    """Return the variables that a YAML text, or the file at a `pathlib.Path`, describes (see `variables_from_data`).

    Raises:
        ValidationError: not YAML, not variables, or a name is there twice.
    """
    return variables_from_data(_text().load_yaml(text))


def variables_to_json(variables: Iterable[Variable]) -> str:
    """Return several variables as JSON text, in order."""
    return str(_text().dump_json([to_dict(variable) for variable in variables]))


def variables_from_json(text: str | Path) -> list[Variable]:
    """Return the variables that a JSON text, or the file at a `pathlib.Path`, describes (see `variables_from_data`).

    Raises:
        ValidationError: not JSON, not variables, or a name is there twice.
    """
    return variables_from_data(_text().load_json(text))


def variables_from_data(data: Any) -> list[Variable]:
    """Return the variables that plain data describe.

    Args:
        data: a list of mappings; a mapping from names to fields; or LUME's file, a mapping with
            ``input_variables`` and ``output_variables``, of which the latter become read-only.

    Returns:
        The variables, in order.

    Raises:
        ValidationError: anything else, or a name that is there twice.

    Example:
        >>> data = {"input_variables": {"k1": {}}, "output_variables": {"sigma_x": {"unit": "m"}}}
        >>> [(v.name, v.read_only) for v in variables_from_data(data)]
        [('k1', False), ('sigma_x', True)]
    """
    if isinstance(data, Mapping) and data.keys() & {"input_variables", "output_variables"}:
        inputs = _fields(data.get("input_variables") or [])
        outputs = [fields | {"read_only": True} for fields in _fields(data.get("output_variables") or [])]
        found = [from_dict(fields) for fields in inputs + outputs]
    else:
        found = [from_dict(fields) for fields in _fields(data)]
    names = [variable.name for variable in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValidationError(f"variable names {twice} are there more than once; give each variable its own name")
    return found


def _fields(data: Any) -> list[dict[str, Any]]:
    """Return one mapping of fields for each variable."""
    if isinstance(data, Mapping):
        data = [{"name": name} | _mapping(fields or {}) for name, fields in data.items()]
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise ValidationError(
            f"expected a list of variables, received {shortened(repr(data))}; give a list of mappings"
        )
    return [_mapping(fields) for fields in data]


def _mapping(fields: Any) -> dict[str, Any]:
    if not isinstance(fields, Mapping):
        raise ValidationError(f"expected the fields of a variable, received {shortened(repr(fields))}; give a mapping")
    return dict(fields)


def _plain(value: Any) -> Any:
    """Return a field as plain data; an open end of a range is None."""
    if isinstance(value, np.ndarray):
        if value.size <= LARGEST_LIST:
            return value.tolist()
        packed = zlib.compress(np.ascontiguousarray(value, dtype="<f8").tobytes())
        return {"shape": list(value.shape), "zlib": base64.b64encode(packed).decode("ascii")}
    if isinstance(value, tuple):
        if all(isinstance(item, str) for item in value):
            return list(value)
        return [None if end_words(item) in ("-inf", "inf") else item for item in value]
    return value


def _unpack(name: str, packed: Mapping[str, Any]) -> np.ndarray:
    try:
        shape = tuple(int(length) for length in packed["shape"])
        expected = 8 * math.prod(shape)
        decoder = zlib.decompressobj()
        # One byte more than expected is enough to notice a file that unpacks to more than it says.
        data = decoder.decompress(base64.b64decode(packed["zlib"], validate=True), expected + 1)
        if len(data) != expected:
            raise ValueError(f"{len(data)} bytes for shape {shape}")
        return np.frombuffer(data, dtype="<f8").reshape(shape)
    except (ValueError, TypeError, zlib.error) as error:
        raise ValidationError(f"variable {name!r}: default_value is damaged ({error}); write the file again") from None


def _text() -> ModuleType:
    """Return the module that reads and writes texts; it loads PyYAML, so it loads when it is used."""
    from lume_diff.variables import text

    return text
