"""Descriptions of values: name, unit, type, shape and limits. A variable never holds a value."""

from lume_diff.variables.array import TorchNDVariable
from lume_diff.variables.base import Variable
from lume_diff.variables.beam import MomentsVariable, ParticleGroupVariable
from lume_diff.variables.discrete import BoolVariable, EnumVariable, IntVariable, StrVariable
from lume_diff.variables.scalar import TorchScalarVariable
from lume_diff.variables.serialization import (
    from_dict,
    from_json,
    from_yaml,
    to_dict,
    to_json,
    to_yaml,
    variable_class,
    variables_from_data,
    variables_from_json,
    variables_from_yaml,
    variables_to_json,
    variables_to_yaml,
)
from lume_diff.variables.units import Unit, conversion_factor, convert, parse_unit, same_dimension

__all__ = [
    # classes
    "Variable",
    "TorchScalarVariable",
    "TorchNDVariable",
    "IntVariable",
    "BoolVariable",
    "EnumVariable",
    "StrVariable",
    "ParticleGroupVariable",
    "MomentsVariable",
    # to and from data
    "to_dict",
    "from_dict",
    "to_yaml",
    "from_yaml",
    "to_json",
    "from_json",
    "variable_class",
    "variables_from_data",
    "variables_to_yaml",
    "variables_from_yaml",
    "variables_to_json",
    "variables_from_json",
    # units
    "Unit",
    "parse_unit",
    "same_dimension",
    "conversion_factor",
    "convert",
]
