"""The entries of a facility mapping: what a control-system name stands for, one kind of entry a class.

Names are those of the facility; ``native`` names are those of the model inside. In a template both may hold
placeholders: ``{element}``, ``{name}`` and any other column of the element table.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lume_diff.models.facility.conversions.base import AnyConversion
from lume_diff.models.facility.functions import AnyFunction
from lume_diff.models.facility.part import Part

_QUOTE = "an option is a text; in YAML quote it, because ON, OFF, YES and NO are truth values there"

Bounds = tuple[float | None, float | None]


class Constant(Part):
    """An energy that stays: ``{kind: constant, value: 1.35e8}`` [eV]."""

    kind: Literal["constant"] = "constant"
    value: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Named(Part):
    """An energy that an input of the facility, or of the model inside, holds: ``{kind: variable, name: REF:EDES}``."""

    kind: Literal["variable"] = "variable"
    name: str


class Live(Part):
    """The model's own reference energy at the element, as its cavities stand: ``{kind: model}``."""

    kind: Literal["model"] = "model"


Energy = Annotated[Live | Named | Constant, Field(discriminator="kind")]


class Action(Part):
    """What a setpoint does to one native input.

    Attributes:
        native: name of the input of the model inside.
        conversion: from the setpoint to it; None for the factor between the two units.
        length: of the element [m]; None for the model's own ``<element>.length``.
        energy: where a conversion takes the energy from; None for the mapping's.
        element: whose energy and length these are; None for what stands before the last dot of ``native``.
    """

    native: str
    conversion: AnyConversion | None = None
    length: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    energy: Energy | None = None
    element: str | None = None


class Described(Part):
    """What every entry may say about how its variable is shown.

    Attributes:
        description: free text.
        unit: of the control system's number; None for that of what it stands for.
    """

    description: str = ""
    unit: str | None = None


class Ranged(Described):
    """What an entry of numbers may say besides.

    Attributes:
        precision: digits after the decimal point.
        value_range: limits [unit]; of a setpoint they are enforced.
        warning_range, alarm_range: values outside have the severity MINOR, MAJOR [unit].
        scale: size of a typical change [unit].
    """

    precision: int | None = None
    value_range: Bounds | None = None
    warning_range: Bounds | None = None
    alarm_range: Bounds | None = None
    scale: float | None = None


class Setpoint(Ranged):
    """An input of the facility that acts on inputs of the model.

    Attributes:
        native: the one input that it acts on, with ``conversion``, ``length``, ``energy`` and ``element`` as in
            ``Action``.
        acts_on: several of them instead, for split and string-powered magnets.
        adds: whether its contribution is added to that of another setpoint, as a trim's is to the main one's; it then
            starts from 0.
        default: what it starts from [unit]; None for what the model stands at.
    """

    kind: Literal["setpoint"] = "setpoint"
    native: str | None = None
    conversion: AnyConversion | None = None
    length: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    energy: Energy | None = None
    element: str | None = None
    acts_on: tuple[Action, ...] = ()
    adds: bool = False
    default: Any = None

    @model_validator(mode="after")
    def _one_form(self) -> Setpoint:
        single = (self.conversion, self.length, self.energy, self.element)
        if (self.native is None) == (not self.acts_on):
            raise ValueError("give either native or acts_on")
        if self.acts_on and any(part is not None for part in single):
            raise ValueError("with acts_on, conversion, length, energy and element stand in each of its items")
        return self

    def actions(self) -> tuple[Action, ...]:
        """Return what it does, in one form."""
        if self.native is None:
            return self.acts_on
        return (
            Action(
                native=self.native,
                conversion=self.conversion,
                length=self.length,
                energy=self.energy,
                element=self.element,
            ),
        )


class Measured(Ranged):
    """What an entry of measured numbers may say besides.

    Attributes:
        noise: rms of what is drawn anew at every shot [unit].
        offset: what is always added [unit].
        offset_spread: rms of a further offset, drawn once by the seed [unit].
    """

    noise: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    offset_spread: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0


class Reading(Measured):
    """An output of the facility that shows an output, or an input, of the model; images and bunches too.

    Attributes:
        native: name in the model inside.
        conversion: as for a setpoint, from the control system's number to the model's; a reading shows its inverse.
        length, energy, element: as in ``Action``.
        without_beam: what it shows where an inserted screen has stopped the beam; None for NaN, and 0 in images.
        place: the element where the beam is read; None for what stands before the last dot of ``native``.
    """

    kind: Literal["reading"] = "reading"
    native: str
    conversion: AnyConversion | None = None
    length: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    energy: Energy | None = None
    element: str | None = None
    without_beam: float | None = None
    place: str | None = None


class Readback(Measured):
    """An output that follows another variable of the facility, as BACT follows BCTRL.

    Attributes:
        of: the name of that variable.
    """

    kind: Literal["readback"] = "readback"
    of: str


class Limit(Described):
    """An output that shows a limit of another variable, as BMIN does of BCTRL.

    Attributes:
        of: the name of that variable.
        end: ``"low"`` or ``"high"``.
    """

    kind: Literal["limit"] = "limit"
    of: str
    end: Literal["low", "high"]


class Fixed(Described):
    """An output that never changes.

    Attributes:
        value: a number, a truth value or a text.
    """

    kind: Literal["constant"] = "constant"
    value: bool | int | float | str


class Free(Ranged):
    """An input that acts on no input of the model by itself: an energy that conversions use, or part of a derived one.

    Attributes:
        value: what it starts from: a number, a truth value or a text.
    """

    kind: Literal["value"] = "value"
    value: bool | int | float | str


class Derived(Measured):
    """An output computed from other variables of the facility, or outputs of the model, by a registered function.

    Attributes:
        function: such as ``{kind: sum, terms: {A: 0.5, B: 0.5}}``.
    """

    kind: Literal["derived"] = "derived"
    function: AnyFunction


class State(Described):
    """A choice that acts on the model: on and off, in and out.

    Attributes:
        options: in the order of the control system's indices.
        default: what it starts from; None for the first.
        settings: values of native inputs, by option; they stand instead of what setpoints ask for. Where two choices
            set one input, that which comes first in the mapping decides.
        blocks: options in which the beam ends at ``element``: what lies behind reads as without beam.
        reads: options in which what is read at ``element`` sees the beam; None for those that block it.
        element: name of the element in the model; needed for ``blocks`` and ``reads``.
    """

    kind: Literal["state"] = "state"
    options: Annotated[tuple[str, ...], Field(min_length=2)]
    default: str | None = None
    settings: dict[str, dict[str, bool | int | float | str]] = Field(default_factory=dict)
    blocks: tuple[str, ...] = ()
    reads: tuple[str, ...] | None = None
    element: str | None = None

    @field_validator("options", "blocks", "reads", "default", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if any(isinstance(option, bool) for option in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError(_QUOTE)
        return value

    @field_validator("settings", mode="before")
    @classmethod
    def _keys(cls, value: Any) -> Any:
        if isinstance(value, dict) and any(isinstance(key, bool) for key in value):
            raise ValueError(_QUOTE)
        return value

    @model_validator(mode="after")
    def _known_options(self) -> State:
        named = [*self.settings, *self.blocks, *(self.reads or ()), *([self.default] if self.default else [])]
        unknown = sorted({name for name in named if name not in self.options})
        if unknown:
            raise ValueError(f"{', '.join(map(repr, unknown))} not among the options {list(self.options)}")
        if (self.blocks or self.reads is not None) and self.element is None:
            raise ValueError("blocks and reads need the element: give its name in the model")
        return self


class RegionOfInterest(Described):
    """An input that crops an image: one edge, or one size, in pixels.

    Attributes:
        of: the name of the image.
        side: ``min_x`` and ``min_y`` are the first column and row shown, ``size_x`` and ``size_y`` how many.
    """

    kind: Literal["roi"] = "roi"
    of: str
    side: Literal["min_x", "min_y", "size_x", "size_y"]


class ArraySize(Described):
    """An output that tells how many columns (x) or rows (y) of an image are shown.

    Attributes:
        of: the name of the image.
        axis: ``x`` or ``y``.
    """

    kind: Literal["array_size"] = "array_size"
    of: str
    axis: Literal["x", "y"]


Entry = Annotated[
    Setpoint | Reading | Readback | Limit | Fixed | Free | Derived | State | RegionOfInterest | ArraySize,
    Field(discriminator="kind"),
]
