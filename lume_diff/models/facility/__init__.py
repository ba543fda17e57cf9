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
from lume_diff.models.facility.functions import Function, Product, Sum
from lume_diff.models.facility.mapping import ElementTable, FacilityMapping

__all__ = [
    "BendField",
    "Chain",
    "Conversion",
    "CorrectorField",
    "ElementTable",
    "FacilityMapping",
    "Function",
    "Linear",
    "Place",
    "Polynomial",
    "Product",
    "QuadrupoleField",
    "SextupoleField",
    "SolenoidField",
    "Sum",
    "Table",
    "rigidity",
]
