"""The numbers of an IMPACT-T deck that can be set, under lume-impact's names."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lume_diff.blackbox.impact.deck import Deck, used_elements
from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.variables import Variable

HEADER, CHARGE = "header", "total_charge"

#: What is worth setting without being asked for, by type.
_MAIN: dict[str, tuple[str, ...]] = {
    "quadrupole": ("b1_gradient",),
    "solenoid": ("b_field",),
    "dipole": ("b_field",),
    "solrf": ("rf_field_scale", "theta0_deg", "solenoid_field_scale"),
    "emfield_cartesian": ("rf_field_scale", "theta0_deg"),
    "emfield_cylindrical": ("rf_field_scale", "theta0_deg"),
}
_RF = ("rf_field_scale", "theta0_deg")
#: Numbers that come from the bunch where one is given: IMPACT-T does not look at them, or they are set for every run.
_OF_BUNCH = (
    *("sigx", "sigpx", "muxpx", "xscale", "pxscale", "xmu1", "xmu2"),
    *("sigy", "sigpy", "muxpy", "yscale", "pyscale", "ymu1", "ymu2"),
    *("sigz", "sigpz", "muxpz", "zscale", "pzscale", "zmu1", "zmu2"),
    *("Tini", "Bmass", "Bcharge", "Temission"),
)
#: Errors of placement, which IMPACT-T looks at only if the deck's Flagerr says so.
_ERRORS = ("x_offset", "y_offset", "x_rotation", "y_rotation", "z_rotation")
_SHARES = {"rf_frequency": 1e-6}
_SCALES = {"deg": 1.0, "rad": 1e-3, "m": 1e-3}


@dataclass(frozen=True)
class Knob:
    """A number of a deck.

    Attributes:
        name: ``"<element>.<attribute>"``, ``"<group>.<variable>"``, ``"header.<name>"`` or ``"total_charge"``.
        owner: the element or group, ``"header"``, or empty for the charge.
        attribute: lume-impact's name of it.
        kind: of the owner, for people.
        unit: of the number.
        low: least value allowed.
    """

    name: str
    owner: str
    attribute: str
    kind: str
    unit: str
    low: float | None = None

    def read(self, native: Any) -> float:
        """Return what stands in the deck."""
        if not self.owner:
            return float(native.total_charge)
        if self.owner == HEADER:
            return float(native.header[self.attribute])
        if self.owner in native.group:
            return float(native.group[self.owner].value)
        return float(native.ele[self.owner][self.attribute])

    def write(self, deck: Deck, value: float, native: Any) -> None:
        """Set it in a copy of the deck."""
        if not self.owner:
            deck.header["Bcurr"] = value * float(deck.header["Bfreq"])
        elif self.owner == HEADER:
            deck.header[self.attribute] = value
        elif self.owner in native.group:
            group = copy.copy(native.group[self.owner])
            group.ele_dict = deck.elements
            group[self.attribute] = value
        else:
            deck.elements[self.owner][self.attribute] = value

    def variable(self, native: Any) -> Variable:
        """Return its description."""
        from lume_diff.variables import TorchScalarVariable  # brings torch, which workers do without

        value = self.read(native)
        share = _SHARES.get(self.attribute, 1e-2) * abs(value)
        return TorchScalarVariable(
            name=self.name,
            unit=self.unit,
            default_value=value,
            value_range=None if self.low is None or value < self.low else (self.low, None),
            scale=_SCALES.get(self.unit) or share or 1e-2,
            description=f"{self.attribute} of {self.kind} {self.owner}".strip()
            if self.owner
            else "charge of the bunch",
        )


class Knobs:
    """Find what can be set in a deck.

    Args:
        native: an ``impact.Impact``.
        has_bunch: whether a bunch is given, which some numbers then come from.
    """

    def __init__(self, native: Any, has_bunch: bool) -> None:
        self._native, self._has_bunch = native, has_bunch
        self._elements = {element["name"]: element for element in used_elements(native)}

    def choose(self, controls: Sequence[str] | None) -> list[Knob]:
        """Return the knobs that are wanted, None for the strengths and phases of all elements, and the groups.

        Raises:
            UnknownVariableError: for a control that does not exist.
            ValidationError: for one that would do nothing or is not a real number, and for two names of the charge.
        """
        if controls is None:
            controls = [f"{name}.{attribute}" for name, e in self._elements.items() for attribute in _main(e)]
            controls += [f"{name}.{group.var_name}" for name, group in self._native.group.items()]
        if CHARGE in controls and f"{HEADER}.Bcurr" in controls:
            raise ValidationError(f"controls {CHARGE!r} and '{HEADER}.Bcurr' set the same number: choose one of them")
        return [self._knob(name) for name in dict.fromkeys(controls)]

    def _knob(self, name: str) -> Knob:
        owner, _, attribute = name.rpartition(".")
        if name == CHARGE:
            return Knob(name, "", CHARGE, "bunch", "C", 0.0)
        if owner == HEADER:
            return self._header_knob(name, attribute)
        if owner in self._native.group:
            return self._group_knob(name, owner, attribute)
        if owner not in self._elements:
            known: Iterable[str] = (*self._elements, *self._native.group, HEADER)
            if not owner:
                known = (CHARGE, *(f"{n}.{a}" for n, e in self._elements.items() for a in _numbers(e)))
            raise UnknownVariableError(
                f"control {name!r}: there is no element {owner or name!r} in the deck"
                f"{nearest_names(owner or name, known)}"
            )
        element = self._elements[owner]
        known = _numbers(element)
        if attribute not in known:
            raise UnknownVariableError(
                f"control {name!r}: {attribute!r} of {element['type']} {owner!r} cannot be set"
                f"{nearest_names(attribute, known)}"
            )
        turns_always = element["type"] == "quadrupole" and attribute == "z_rotation"
        is_real = "zedge" in element
        if is_real and attribute in _ERRORS and not turns_always and int(self._native.header["Flagerr"]) != 1:
            raise ValidationError(
                f"control {name!r} does nothing in this deck, because its Flagerr is {self._native.header['Flagerr']}: "
                "set it to 1"
            )
        return Knob(name, owner, attribute, element["type"], _unit(attribute), 1e-9 if attribute == "L" else None)

    def _header_knob(self, name: str, attribute: str) -> Knob:
        from impact.parsers import HEADER_TYPE, HEADER_UNITS

        known = [other for other, kind in HEADER_TYPE.items() if kind is float]
        if attribute not in HEADER_TYPE:
            raise UnknownVariableError(
                f"control {name!r}: {attribute!r} is not in the header{nearest_names(attribute, known)}"
            )
        if attribute not in known:
            raise ValidationError(
                f"control {name!r} is a whole number: set it with model.simulator.header[{attribute!r}] and refresh()"
            )
        if self._has_bunch and attribute in _OF_BUNCH:
            raise ValidationError(f"control {name!r} does nothing here: the bunch that is given says what it is")
        unit = {"Bmass": "eV"}.get(attribute) or HEADER_UNITS.get(attribute, "")
        return Knob(name, HEADER, attribute, "the", unit, 0.0 if attribute in ("Dt", "Bcurr") else None)

    def _group_knob(self, name: str, owner: str, attribute: str) -> Knob:
        group = self._native.group[owner]
        if attribute != group.var_name:
            raise UnknownVariableError(
                f"control {name!r}: group {owner!r} has no {attribute!r}{nearest_names(attribute, [group.var_name])}"
            )
        units = {_unit(each) for each in group.attributes}
        return Knob(name, owner, attribute, "group", units.pop() if len(units) == 1 else "")


def _main(element: Mapping[str, Any]) -> list[str]:
    """Return what is worth setting on an element: of what acts, or could."""
    names = [name for name in _MAIN.get(element["type"], ()) if name in element]
    if element["type"] == "solrf" and not element["rf_field_scale"] and element["solenoid_field_scale"]:
        return [name for name in names if name not in _RF]
    return names


def _numbers(element: Mapping[str, Any]) -> list[str]:
    """Return the real numbers of an element that are written for IMPACT-T."""
    derived = ("s",) if "zedge" in element else ()
    return [name for name, value in element.items() if isinstance(value, float) and name not in derived]


def _unit(attribute: str) -> str:
    from impact.parsers import ELE_UNITS

    return str(ELE_UNITS.get(attribute, ""))


def write_all(knobs: Iterable[Knob], deck: Deck, values: Mapping[str, float], native: Any) -> None:
    """Set knobs in a copy of a deck; groups last, which may act on what was set before."""
    for knob in sorted(knobs, key=lambda knob: knob.kind == "group"):
        knob.write(deck, float(values[knob.name]), native)
