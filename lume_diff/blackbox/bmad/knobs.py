"""What can be set on the elements of a Bmad lattice: the field's names for the usual ones, Tao's own for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lume_diff.blackbox.bmad.session import TaoSession, number
from lume_diff.blackbox.bmad.survey import BRANCH, Element, read_numbers
from lume_diff.errors import SimulatorError, UnitError, UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.variables import Variable

Probe = Callable[[str, str], tuple[np.ndarray, str]]

#: Our name -> Tao's, for all kinds of elements, and for single ones.
_NATIVE = {
    "length": "l",
    "frequency": "rf_frequency",
    "misalignment_x": "x_offset",
    "misalignment_y": "y_offset",
}
_NATIVE_OF: dict[str, dict[str, str]] = {
    "SBend": {"tilt": "ref_tilt"},
    "RBend": {"tilt": "ref_tilt"},
    "HKicker": {"hkick": "kick"},
    "VKicker": {"vkick": "kick"},
}
#: What is an input without being asked for, beside lengths.
_BEND = ("angle", "e1", "e2")
_CAVITY = ("voltage", "frequency", "phi0")
_OFFERED: dict[str, tuple[str, ...]] = {
    "Quadrupole": ("k1",),
    "Sextupole": ("k2",),
    "Octupole": ("k3",),
    "SBend": _BEND,
    "RBend": _BEND,
    "HKicker": ("hkick",),
    "VKicker": ("vkick",),
    "Kicker": ("hkick", "vkick"),
    "Solenoid": ("ks",),
    "Sol_Quad": ("ks", "k1"),
    "RFCavity": _CAVITY,
    "Lcavity": _CAVITY,
}
_CONTROLLERS = ("Overlay", "Group")
_NO_LENGTH = ("Beginning_Ele", "Marker", "Patch")
_SHORTEST = 1e-9
_UNITS = {"Volt": "V", "sec": "s", "rad/2pi": ""}
_KICKS = ("kick", "hkick", "vkick")
#: Tao's name -> (description, scale, whether that is a share of the value).
_KNOWN: dict[str, tuple[str, float | None, bool]] = {
    "l": ("length", 1e-2, True),
    "k1": ("quadrupole strength", None, False),
    "k2": ("sextupole strength", None, False),
    "k3": ("octupole strength", None, False),
    "ks": ("solenoid strength", None, False),
    "angle": ("bending angle", 1e-3, False),
    "e1": ("entrance pole face angle", 1e-3, False),
    "e2": ("exit pole face angle", 1e-3, False),
    "kick": ("kick", 1e-4, False),
    "hkick": ("horizontal kick", 1e-4, False),
    "vkick": ("vertical kick", 1e-4, False),
    "tilt": ("rotation about the beam axis", 1e-3, False),
    "ref_tilt": ("rotation of the bending plane about the beam axis", 1e-3, False),
    "x_offset": ("horizontal displacement", 1e-4, False),
    "y_offset": ("vertical displacement", 1e-4, False),
    "x_pitch": ("rotation about the vertical axis", 1e-4, False),
    "y_pitch": ("rotation about the horizontal axis", 1e-4, False),
    "voltage": ("voltage", 1e-2, True),
    "rf_frequency": ("frequency", 1e-6, True),
    "phi0": ("phase in units of a full turn", 1e-3, False),
}


@dataclass(frozen=True)
class Knob:
    """A number on all elements of one name.

    Attributes:
        name: ``"<element>.<attribute>"``.
        element: name of the elements.
        attribute: Tao's name of what is set.
        unit: its unit.
        value: what it is in the deck.
        kind: of the elements.
    """

    name: str
    element: str
    attribute: str
    unit: str
    value: float
    kind: str

    def variable(self) -> Variable:
        """Return its description."""
        from lume_diff.variables import TorchScalarVariable  # brings torch, which workers do without

        text, scale, relative = _KNOWN.get(self.attribute, (self.attribute, None, False))
        if scale is not None and relative:
            scale *= abs(self.value) or 1.0
        return TorchScalarVariable(
            name=self.name,
            unit=self.unit,
            default_value=self.value,
            value_range=(_SHORTEST, None) if self.attribute == "l" and self.value > _SHORTEST else None,
            scale=scale,
            description=f"{text} of {self.kind.lower()} {self.element}",
        )

    def read(self, session: TaoSession) -> float:
        """Return what it is now.

        Raises:
            SimulatorError: if elements of the name have different values by now.
        """
        values = read_numbers(session, self.element, self.attribute)
        if not values.size or np.ptp(values) != 0.0:
            raise SimulatorError(f"elements called {self.element!r} differ in {self.attribute!r} by now: {values}")
        return float(values[0])

    def set(self, session: TaoSession, value: float) -> None:
        """Set it, and see that Tao has taken it.

        Raises:
            SimulatorError: if Tao has something else.
        """
        session.command(f"set ele {BRANCH}{self.element} {self.attribute} = {number(value)}")
        self.check(session, value)

    def check(self, session: TaoSession, value: float) -> None:
        """See that Tao has a value.

        Raises:
            SimulatorError: if Tao has something else.
        """
        found = self.read(session)
        if not abs(found - value) <= 1e-14 * abs(value):
            raise SimulatorError(
                f"Tao has not taken {self.name} = {value!r}: it has {found!r}, as where another input of the element "
                "decides it"
            )


class KnobFinder:
    """Find what can be set.

    Args:
        elements: of the lattice, by name.
        probe: tells a number of all elements of a name, and why it cannot be set.
    """

    def __init__(self, elements: Mapping[str, Element], probe: Probe) -> None:
        self._elements = elements
        self._probe = probe

    def choose(self, controls: Sequence[str] | None) -> list[Knob]:
        """Return the knobs that are wanted, None for all that make sense.

        Raises:
            UnknownVariableError: for a control that does not exist.
            ValidationError: for one that is bound to another, of elements of one name that differ in it, and for two
                names of one number.
        """
        if controls is None:
            knobs = (self._knob(name) for name in self._offered())
            return [k for k in knobs if isinstance(k, Knob) and (k.attribute != "l" or k.value > _SHORTEST)]
        found: list[Knob] = []
        for name in dict.fromkeys(controls):
            knob = self._knob(name)
            if not isinstance(knob, Knob):
                raise ValidationError(f"control {name!r}: {knob}")
            same = next((k.name for k in found if (k.element, k.attribute) == (knob.element, knob.attribute)), None)
            if same is not None:
                raise ValidationError(f"controls {same!r} and {name!r} set the same number: choose one of them")
            found.append(knob)
        return found

    def _offered(self) -> list[str]:
        found = []
        for name, element in self._elements.items():
            if not element.own:
                continue
            names = list(_OFFERED.get(element.key, ()))
            if element.key in _CONTROLLERS:
                names = list(element.attributes)
            elif element.key not in _NO_LENGTH and element.place is not None and "l" in element.attributes:
                names.append("length")
            found += [f"{name}.{attribute}" for attribute in names if self._native(element, attribute) is not None]
        return found

    @staticmethod
    def _native(element: Element, attribute: str) -> str | None:
        native = _NATIVE_OF.get(element.key, {}).get(attribute, _NATIVE.get(attribute, attribute))
        return native if native in element.attributes else None

    def _knob(self, name: str) -> Knob | str:
        """Return a knob, or why there can be none.

        Raises:
            UnknownVariableError: if there is nothing of that name.
        """
        owner, _, attribute = name.rpartition(".")
        element = self._elements.get(owner)
        if element is None:
            raise UnknownVariableError(
                f"control {name!r}: there is no element {owner or name!r} in the lattice"
                f"{nearest_names(owner or name, self._elements)}"
            )
        native = self._native(element, attribute)
        if native is None:
            known = {*element.attributes, *(n for n in (*_NATIVE, *_KICKS, "tilt") if self._native(element, n))}
            raise UnknownVariableError(
                f"control {name!r}: {attribute!r} cannot be set on {owner!r}{nearest_names(attribute, known)}"
            )
        if not element.own:
            return "it is a piece of another element: choose that one"
        values, why_not = self._probe(owner, native)
        if why_not:
            return why_not
        return Knob(name, owner, native, _unit(native, element.attributes[native]), float(values[0]), element.key)


def _unit(attribute: str, given: str) -> str:
    """Return Tao's unit as one that variables know."""
    if attribute in _KICKS and not given:
        return "rad"
    from lume_diff.variables import parse_unit

    unit = _UNITS.get(given, given)
    try:
        parse_unit(unit)
    except UnitError:
        return ""
    return unit
