"""What a machine file says about single variables: limits, descriptions, alarms."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from lume_diff.errors import UnitError
from lume_diff.machine.sections import Positive, Section
from lume_diff.variables import Variable
from lume_diff.variables.limits import Policy, float_range
from lume_diff.variables.units import conversion_factor, parse_unit


def _check_range(ends: list[float | None]) -> list[float | None]:
    try:
        float_range(ends)
    except ValueError as error:
        raise ValueError(f"is {ends}: {error}") from None
    return ends


def _check_unit(unit: str) -> str:
    parse_unit(unit)
    return unit


Ends = Annotated[list[float | None], AfterValidator(_check_range)]


class VariableSection(Section):
    """``{value_range: [-10, 10], description: focusing of the first triplet, alarm_range: [-9, 9]}``.

    Attributes:
        description, value_range, warning_range, alarm_range, precision, scale, default_validation_config: see
            ``TorchScalarVariable``; None leaves an end open.
        unit: for a variable that has none, or the same unit in other words.
    """

    description: str | None = None
    unit: Annotated[str, AfterValidator(_check_unit)] | None = None
    value_range: Ends | None = None
    warning_range: Ends | None = None
    alarm_range: Ends | None = None
    precision: Annotated[int, Field(ge=0, le=17)] | None = None
    scale: Positive | None = None
    default_validation_config: Policy | None = None

    def applied(self, variable: Variable) -> Variable:
        """Return a variable with these fields.

        Raises:
            UnitError: for a unit that is another than the variable's.
            ValidationError: for a field that its kind does not have, or a default outside the limits.
        """
        fields: dict[str, Any] = {name: value for name, value in self.dumped().items() if value is not None}
        if self.unit is not None and variable.unit:
            self._check_same(variable, self.unit)
        return variable.replace(**fields)

    def _check_same(self, variable: Variable, unit: str) -> None:
        try:
            factor = conversion_factor(unit, variable.unit)
        except UnitError as error:
            raise UnitError(f"unit is {unit!r}, but {variable.name!r} is in {variable.unit!r}: {error}") from None
        if factor != 1.0:
            raise UnitError(
                f"unit is {unit!r}, but {variable.name!r} is in {variable.unit!r}: values are not converted here, "
                "give it another name with that unit by the mapping"
            )
