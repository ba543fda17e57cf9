"""FacilityMapping: which control-system name stands for what, as data for Python and for YAML."""

from __future__ import annotations

from typing import Any

from pydantic import Field, GetJsonSchemaHandler, RootModel, field_validator
from pydantic.json_schema import JsonSchemaValue

from lume_diff.models.facility.entries import Energy, Entry, Live
from lume_diff.models.facility.part import Part

Cell = bool | int | float | str | None


class Columns(Part):
    """Which columns of an element table mean what; further ones are placeholders of templates by their own names.

    Attributes:
        element: name of the element in the model.
        name: name in the control system.
        template: class of the element, which picks the template.
        rename: further columns under names that can be placeholders, ``{placeholder: column}``.
    """

    element: str = "element"
    name: str = "name"
    template: str = "class"
    rename: dict[str, str] = Field(default_factory=dict)


class ElementTable(Part):
    """A table of elements and their control-system names, as facilities keep them.

    Attributes:
        rows: the table itself, a mapping a row; or
        file: a CSV or YAML file that holds it, relative to the mapping's own file.
        columns: which columns mean what.
        select: rows to use, ``{column: [values]}``; all if empty.
        ignore: classes that have no template on purpose.
    """

    rows: tuple[dict[str, Cell], ...] = ()
    file: str | None = None
    columns: Columns = Columns()
    select: dict[str, tuple[Cell, ...]] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()


class TemplateEntry(RootModel[dict[str, Any]]):
    """An entry whose texts may hold placeholders; it is checked as an entry for every element.

    ``{element}``, ``{name}`` and other columns are replaced by the element's; a text that is nothing but a placeholder
    becomes the cell's number, and ``{column?}`` may be an empty cell, which leaves the field out.
    """

    @field_validator("root", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, Part):
            return value.model_dump(exclude_unset=True)
        return value

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        return {**schema, "required": ["kind"], "properties": {"kind": {"type": "string"}}}


class FacilityMapping(Part):
    """Name the variables of a facility, say what they stand for, and in which units.

    Attributes:
        variables: entries by control-system name.
        templates: for a class of elements, entries by suffix: ``{quadrupole: {BCTRL: {kind: setpoint, ...}}}``. The
            name of the variable is that of the element, the separator and the suffix.
        separator: between name and suffix.
        elements: the table of elements that the templates apply to.
        keep: patterns (``final*``) of native names that the facility shows as they are.
        energy: where conversions take the energy from unless they say so themselves.
        species: of the particles; sets the rest energy, and the charge that the rigidity refers to.
        order: elements in the order of the beam, for what lies behind an inserted screen; by default the order of
            the table's column ``s``, or else that in which the model names them.
        seed: of the noise and the offsets.
        shot: name of the whole number that redraws the noise; the variable is there where anything has noise.

    Example:
        >>> field = {"kind": "quadrupole_field"}
        >>> bctrl = {"kind": "setpoint", "native": "Q1.k1", "unit": "kG", "conversion": field}
        >>> mapping = FacilityMapping(variables={"QUAD:IN20:425:BCTRL": bctrl})
        >>> mapping.variables["QUAD:IN20:425:BCTRL"].unit
        'kG'
    """

    variables: dict[str, Entry] = Field(default_factory=dict)
    templates: dict[str, dict[str, TemplateEntry]] = Field(default_factory=dict)
    separator: str = ":"
    elements: ElementTable | None = None
    keep: tuple[str, ...] = ()
    energy: Energy = Live()
    species: str = "electron"
    order: tuple[str, ...] | None = None
    seed: int = 0
    shot: str = "SHOT"
