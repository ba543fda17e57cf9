"""What the YAML files of lume-torch and lume-model say, as plain data and variables of ours."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lume_diff.errors import LumeDiffError, PhysicsWarning, UnitError, ValidationError, nearest_names
from lume_diff.models.surrogates.modules import file_error
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable, parse_unit
from lume_diff.variables.serialization import from_dict

_KEYS = {
    *("model_class", "input_variables", "output_variables", "input_validation_config", "output_validation_config"),
    *("model", "models", "input_transformers", "output_transformers", "precision"),
    # These say how lume-torch runs a model, which is not taken over.
    *("output_format", "device", "fixed_model", "require_all_inputs"),
    *("description", "accuracy"),  # for people
}
_OLD_FIELDS = {"default": "default_value", "range": "value_range", "units": "unit"}
_PRECISIONS = ("double", "single")


@dataclass(frozen=True)
class Description:
    """One file.

    Attributes:
        path: the file.
        kind: ``TorchModel`` or ``NNEnsemble``.
        inputs: in the order of the columns; those that are read-only are constants.
        outputs: in the order of the columns, read-only.
        validation: what a value outside its limits does, where the file says it for a variable.
        single: whether the model has single precision.
        module: the file of the module, relative to this one, or its layers and the file of its weights; None of an
            ensemble.
        members: the files of an ensemble's modules.
        input_transformers: files, or what they are.
        output_transformers: likewise.
    """

    path: Path
    kind: str
    inputs: tuple[Variable, ...]
    outputs: tuple[Variable, ...]
    validation: Mapping[str, str]
    single: bool
    module: str | dict[str, Any] | None
    members: tuple[str, ...]
    input_transformers: tuple[Any, ...]
    output_transformers: tuple[Any, ...]

    def beside(self, name: str) -> Path:
        """Return a path that the file names; relative ones start where the file is."""
        return self.path.parent / name

    def error(self, problem: str) -> ValidationError:
        """Return an error that names the file."""
        return file_error(self.path, problem)


def read_description(path: Path) -> Description:
    """Read a YAML file of lume-torch, or of lume-model from its version 1 on.

    A limit's policy ``none`` that stands at the variable is LUME's default and is not taken over; one of
    ``input_validation_config`` and ``output_validation_config`` is. A unit that is not known is left out with a
    ``PhysicsWarning``.

    Raises:
        ValidationError: for a file that is missing, is something else, or has mistakes: all of them at once.
    """
    data = _inner(path, _mapping(path))
    kind = data.get("model_class")
    if kind == "GPModel":
        raise file_error(
            path,
            "is a GPModel, which lume-torch keeps as a pickle that runs code when it is opened. If you trust it, load "
            "it with lume_torch, and give what it loads to lume_diff.GPModel(lume_model.model, inputs, outputs)",
        )
    if kind not in ("TorchModel", "NNEnsemble"):
        raise file_error(
            path, f"model_class is {kind!r}; expected 'TorchModel', 'TorchModule' or 'NNEnsemble' of lume-torch"
        )
    mistakes = [f"{key!r} is not known{nearest_names(key, _KEYS)}" for key in data if key not in _KEYS]
    inputs = _variables(data.get("input_variables"), "input_variables", mistakes)
    outputs = _variables(data.get("output_variables"), "output_variables", mistakes, read_only=True)
    mistakes += [f"input {v.name!r} has no default value" for v in inputs if v.read_only and v.default_value is None]
    validation = _policies(data, {v.name for v in (*inputs, *outputs)}, mistakes)
    precision = data.get("precision", "double")
    if precision not in _PRECISIONS:
        mistakes.append(f"precision is {precision!r}; expected 'double' or 'single'")
    module = data.get("model")
    members = _files(data, "models", mistakes)
    is_network = isinstance(module, dict) and set(module) == {"layers", "weights"}
    if kind == "TorchModel" and not isinstance(module, str) and not is_network:
        mistakes.append(f"model is {module!r:.60}; expected the name of a file, or a mapping with layers and weights")
    if kind == "NNEnsemble" and not members:
        mistakes.append("models is empty; expected the names of the members' files")
    before, after = (_files(data, key, mistakes, dict) for key in ("input_transformers", "output_transformers"))
    if mistakes:
        raise file_error(path, "; ".join(mistakes))
    single = precision == "single"
    return Description(path, kind, inputs, outputs, validation, single, module, members, before, after)


def _mapping(path: Path) -> dict[str, Any]:
    from lume_diff.variables.text import load_yaml

    if not path.is_file():
        raise file_error(path, "does not exist")
    data = load_yaml(path)
    if not isinstance(data, dict):
        raise file_error(path, f"is a {type(data).__name__}; expected a mapping with model_class")
    return data


def _inner(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Return the description of the model itself where lume-torch has wrapped it."""
    model = data.get("model")
    if data.get("model_class") == "TorchModule":
        if not isinstance(model, dict):
            raise file_error(path, f"model of a TorchModule is {model!r:.60}; expected a mapping")
        return {"model_class": "TorchModel"} | model
    if isinstance(model, dict) and "model_class" in model:
        raise file_error(
            path,
            "is of a lume-model before version 1.0, whose files name Python classes; load it with that version and "
            "dump it with a later one",
        )
    return data


def _variables(
    section: Any, where: str, mistakes: list[str], read_only: bool | None = None
) -> tuple[TorchScalarVariable | TorchNDVariable, ...]:
    if isinstance(section, list):
        section = {str(fields.get("name")): fields for fields in section if isinstance(fields, dict)}
    if not isinstance(section, dict) or not section:
        mistakes.append(f"{where} is {section!r:.60}; expected a mapping from names to fields")
        return ()
    found = []
    for name, given in section.items():
        try:
            variable = from_dict(_fields(str(name), given, read_only))
        except LumeDiffError as error:
            mistakes.append(str(error))
            continue
        if not isinstance(variable, TorchScalarVariable | TorchNDVariable):
            mistakes.append(f"{name!r} is a {type(variable).__name__}; expected numbers or arrays")
            continue
        found.append(variable)
    return tuple(found)


def _fields(name: str, given: Any, read_only: bool | None) -> dict[str, Any]:
    """Return the fields of a variable as our classes have them."""
    if given is not None and not isinstance(given, Mapping):
        raise ValidationError(f"variable {name!r} is {given!r:.60}; expected a mapping of fields")
    fields: dict[str, Any] = {_OLD_FIELDS.get(str(key), str(key)): value for key, value in (given or {}).items()}
    kind = fields.pop("variable_type", "scalar")
    if kind != "scalar":
        raise ValidationError(f"variable {name!r} has variable_type {kind!r}; expected 'scalar'")
    if fields.get("variable_class") == "DistributionVariable":
        fields["variable_class"] = "TorchScalarVariable"
    if fields.get("default_validation_config") == "none":
        del fields["default_validation_config"]
    try:
        parse_unit(fields.get("unit") or "")
    except UnitError:
        warnings.warn(
            f"unit {fields.pop('unit')!r} of variable {name!r} is not known and is left out",
            PhysicsWarning,
            stacklevel=2,
        )
    return fields | {"name": name} | ({} if read_only is None else {"read_only": read_only})


def _policies(data: Mapping[str, Any], names: set[str], mistakes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in ("input_validation_config", "output_validation_config"):
        section = data.get(key) or {}
        if not isinstance(section, dict):
            mistakes.append(f"{key} is {section!r:.60}; expected a mapping from names to policies")
            continue
        for name, policy in section.items():
            if name not in names:
                mistakes.append(f"{key} has {name!r}, which is no variable{nearest_names(str(name), names)}")
            elif policy not in ("error", "warn", "none", None):
                mistakes.append(f"{key} of {name!r} is {policy!r}; expected 'error', 'warn' or 'none'")
            elif policy is not None:
                found[name] = policy
    return found


def _files(data: Mapping[str, Any], key: str, mistakes: list[str], *others: type) -> tuple[Any, ...]:
    names = data.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, (str, *others)) for name in names):
        mistakes.append(f"{key} is {names!r:.60}; expected a list of file names")
        return ()
    return tuple(names)
