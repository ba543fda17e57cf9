"""A facility's names and units on top of any model: the mapping, its conversions, and the model."""

from lume_diff.models.facility.conversions import (
    BendField,
    Chain,
    Conversion,
    CorrectorField,
    Linear,
    Place,
    Polynomial,
    QuadrupoleField,
    SextupoleField,
    SolenoidField,
    Table,
    rigidity,
)
from lume_diff.models.facility.facility_model import FacilityModel
from lume_diff.models.facility.functions import Function, Product, Sum
from lume_diff.models.facility.mapping import ElementTable, FacilityMapping
from lume_diff.models.facility.mistakes import MappingError
from lume_diff.models.facility.templates import expanded

__all__ = [
    "BendField",
    "Chain",
    "Conversion",
    "CorrectorField",
    "ElementTable",
    "FacilityMapping",
    "FacilityModel",
    "Function",
    "Linear",
    "MappingError",
    "Place",
    "Polynomial",
    "Product",
    "QuadrupoleField",
    "SextupoleField",
    "SolenoidField",
    "Sum",
    "Table",
    "expanded",
    "rigidity",
]
