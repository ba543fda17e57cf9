"""Conversions between the control system's numbers and the model's, as plug-ins."""

from lume_diff.models.facility.conversions.base import Conversion, Place
from lume_diff.models.facility.conversions.chain import Chain
from lume_diff.models.facility.conversions.fields import (
    BendField,
    CorrectorField,
    QuadrupoleField,
    SextupoleField,
    SolenoidField,
    rigidity,
)
from lume_diff.models.facility.conversions.linear import Linear
from lume_diff.models.facility.conversions.polynomial import Polynomial
from lume_diff.models.facility.conversions.table import Table

__all__ = [
    "BendField",
    "Chain",
    "Conversion",
    "CorrectorField",
    "Linear",
    "Place",
    "Polynomial",
    "QuadrupoleField",
    "SextupoleField",
    "SolenoidField",
    "Table",
    "rigidity",
]
