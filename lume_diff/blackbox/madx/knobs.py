"""What can be set on the elements of a MAD-X sequence, by the field's names, and global variables of the deck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.errors import SimulatorError, UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.variables import Variable


@dataclass(frozen=True)
class Attribute:
    """A number of a kind of element.

    Attributes:
        name: as in ``"<element>.<name>"``.
        native: MAD-X's name.
        unit: its unit.
        description: what it is.
        index: which entry, of an attribute that is an array.
        factor: what MAD-X's number is multiplied by to be in the unit.
        scale: size of a typical change [unit]; None for the default of variables.
        relative: whether the scale is a share of the value.
        offered: whether it is an input without being asked for.
        moves: whether elements move or get another length with it, so that the sequence must be expanded anew.
    """

    name: str
    native: str
    unit: str
    description: str
    index: int | None = None
    factor: float = 1.0
    scale: float | None = None
    relative: bool = False
    offered: bool = True
    moves: bool = False


_LENGTH = Attribute("length", "l", "m", "length", scale=1e-2, relative=True, moves=True)
_TILT = Attribute("tilt", "tilt", "rad", "rotation about the beam axis", scale=1e-3, offered=False)
_K0 = Attribute("k0", "k0", "1/m", "dipole strength", scale=1e-3, offered=False)
_K1 = Attribute("k1", "k1", "1/m^2", "quadrupole strength")
_K1S = Attribute("k1s", "k1s", "1/m^2", "skew quadrupole strength", offered=False)
_K2 = Attribute("k2", "k2", "1/m^3", "sextupole strength")
_K2S = Attribute("k2s", "k2s", "1/m^3", "skew sextupole strength", offered=False)
_K3 = Attribute("k3", "k3", "1/m^4", "octupole strength")
_K3S = Attribute("k3s", "k3s", "1/m^4", "skew octupole strength", offered=False)
_FACES = (
    Attribute("e1", "e1", "rad", "entrance pole face angle", scale=1e-3),
    Attribute("e2", "e2", "rad", "exit pole face angle", scale=1e-3),
)


def _angle(moves: bool) -> Attribute:
    return Attribute("angle", "angle", "rad", "bending angle", scale=1e-3, moves=moves)


def _kick(name: str, native: str, text: str) -> Attribute:
    return Attribute(name, native, "rad", f"{text} kick", scale=1e-4)


def _thin() -> tuple[Attribute, ...]:
    kinds = ("dipole", "quadrupole", "sextupole", "octupole")
    return tuple(
        Attribute(
            f"k{order}{skew}l",
            "ksl" if skew else "knl",
            f"1/m^{order}" if order else "",
            f"integrated {'skew ' if skew else ''}{kind} strength",
            index=order,
            offered=False,
        )
        for skew in ("", "s")
        for order, kind in enumerate(kinds)
    )


#: Base type of MAD-X -> what can be set.
ATTRIBUTES: dict[str, tuple[Attribute, ...]] = {
    "quadrupole": (_K1, _K1S, _TILT),
    "sextupole": (_K2, _K2S, _TILT),
    "octupole": (_K3, _K3S, _TILT),
    "sbend": (_angle(False), *_FACES, _K0, _K1, _K2, _TILT),
    "rbend": (_angle(True), *_FACES, _K0, _K1, _K2, _TILT),
    "hkicker": (_kick("hkick", "kick", "horizontal"), _TILT),
    "vkicker": (_kick("vkick", "kick", "vertical"), _TILT),
    "kicker": (_kick("hkick", "hkick", "horizontal"), _kick("vkick", "vkick", "vertical"), _TILT),
    "tkicker": (_kick("hkick", "hkick", "horizontal"), _kick("vkick", "vkick", "vertical"), _TILT),
    "solenoid": (Attribute("ks", "ks", "1/m", "solenoid strength"),),
    "multipole": (*_thin(), _TILT),
    "rfcavity": (
        Attribute("voltage", "volt", "V", "voltage", factor=1e6, scale=1e-2, relative=True),
        Attribute("frequency", "freq", "Hz", "frequency", factor=1e6, scale=1e-6, relative=True),
        Attribute("lag", "lag", "", "phase lag in units of a full turn", scale=1e-3),
    ),
}


@dataclass(frozen=True)
class Knob:
    """A number of an element, or a global variable of the deck.

    Attributes:
        name: ``"<element>.<attribute>"``, or that of the variable.
        element: MAD-X's name of the element; None for a global variable.
        attribute: what it is.
        moves: whether the sequence must be expanded anew when it changes.
    """

    name: str
    element: str | None
    attribute: Attribute
    moves: bool

    def _parameter(self, session: MADXSession, native: Any = None) -> Any:
        if self.element is None:
            return session.madx.globals.cmdpar[self.name]
        native = session.madx.elements[self.element] if native is None else native
        return native.cmdpar[self.attribute.native]

    def _number(self, native: Any) -> float:
        if self.attribute.index is not None:
            native = native[self.attribute.index] if self.attribute.index < len(native) else 0.0
        return float(native)

    def value(self, session: MADXSession, native: Any = None) -> float:
        """Return what it is now [unit]; ``native`` is the element, where it is at hand."""
        return self.attribute.factor * self._number(self._parameter(session, native).value)

    def variable(self, value: float) -> Variable:
        """Return its description, with the value that it has."""
        from lume_diff.variables import TorchScalarVariable  # brings torch, which workers do without

        attribute = self.attribute
        scale = attribute.scale
        if scale is not None and attribute.relative:
            scale *= abs(value) or attribute.factor
        owner = "of the deck" if self.element is None else f"of {self.element}"
        return TorchScalarVariable(
            name=self.name,
            unit=attribute.unit,
            default_value=value,
            value_range=(1e-9, None) if attribute.native == "l" else None,
            scale=scale,
            description=f"{attribute.description} {owner}",
        )

    def commands(self, session: MADXSession, value: float) -> tuple[str, str]:
        """Return the command that sets a value [unit], and the one that brings back what is there now."""
        before = self._parameter(session)
        number = repr(value / self.attribute.factor)
        if self.element is None:
            return f"{self.name} = {number}", f"{self.name} {_definition(before)}"
        head = f"{self.element}, {self.attribute.native}"
        index = self.attribute.index
        if index is None:
            return f"{head} = {number}", f"{head} {_definition(before)}"
        old = list(before.value)
        entries = [*map(repr, old), *["0.0"] * (index + 1 - len(old))]
        kept = entries.copy()
        entries[index] = number
        bound = any(isinstance(entry, str) for entry in _expressions(before))
        restored = _definition(before) if bound else f"= {{{', '.join(kept)}}}"
        return f"{head} = {{{', '.join(entries)}}}", f"{head} {restored}"

    def check(self, session: MADXSession, value: float) -> None:
        """Raise unless MAD-X has taken a value, which it may leave out without a word.

        Raises:
            SimulatorError: with what is there instead.
        """
        wanted = value / self.attribute.factor
        found = self._number(self._parameter(session).value)
        if not abs(found - wanted) <= 1e-14 * abs(wanted):
            found *= self.attribute.factor
            raise SimulatorError(f"MAD-X has not taken {self.name} = {value!r}: it has {found!r}")


def _expressions(parameter: Any) -> list[Any]:
    given = parameter.definition
    return list(given) if isinstance(given, list) else [given]


def _definition(parameter: Any) -> str:
    """Return a parameter's present definition as MAD-X reads it, a deferred expression where there is one."""
    entries = _expressions(parameter)
    text = [entry if isinstance(entry, str) else repr(float(entry)) for entry in entries]
    sign = ":=" if any(isinstance(entry, str) for entry in entries) else "="
    return f"{sign} {{{', '.join(text)}}}" if isinstance(parameter.definition, list) else f"{sign} {text[0]}"


class KnobFinder:
    """Find what can be set.

    Args:
        session: with the deck loaded.
    """

    def __init__(self, session: MADXSession) -> None:
        self._session = session
        self._names = session.element_names()
        variables = session.madx.globals
        self._globals = [name for name in variables if variables.cmdpar[name].inform]  # not MAD-X's own constants

    def choose(self, controls: Sequence[str] | None) -> list[Knob]:
        """Return the knobs that are wanted.

        Without names these are the attributes of elements that are plain numbers, and the global variables that the
        other ones are bound to.

        Raises:
            UnknownVariableError: for a control that does not exist.
            ValidationError: for an attribute beside the variable that it is bound to.
        """
        if controls is None:
            return self._everything()
        knobs = [self._knob(name) for name in dict.fromkeys(controls)]
        chosen = {knob.name for knob in knobs if knob.element is None}
        for knob in knobs:
            bound = (self._variables(knob) & chosen) - {knob.name}
            if bound:
                raise ValidationError(
                    f"controls {knob.name!r} and {min(bound)!r}: the deck binds the first to the second, so they are "
                    "not independent: choose one of them"
                )
        return knobs

    def _everything(self) -> list[Knob]:
        knobs: dict[str, Knob] = {}
        for name in self._names:
            native = self._session.madx.elements[name]
            for attribute in self._attributes(native).values():
                knob = Knob(f"{name}.{attribute.name}", name, attribute, attribute.moves)
                bound = self._reached(knob._parameter(self._session, native))
                if bound:
                    knobs |= {variable: self._knob(variable) for variable in sorted(bound)}
                elif attribute.offered or (attribute.index is not None and knob.value(self._session, native)):
                    knobs[knob.name] = knob
        return [knob for name, knob in knobs.items() if knob.element is not None or self._is_free(name)]

    def _is_free(self, variable: str) -> bool:
        return not isinstance(self._session.madx.globals.cmdpar[variable].definition, str)

    def _attributes(self, native: Any) -> dict[str, Attribute]:
        found = {attribute.name: attribute for attribute in ATTRIBUTES.get(native.base_type.name, ())}
        if "l" in native and native["l"] > 0.0:
            found["length"] = _LENGTH
        return found

    def _knob(self, name: str) -> Knob:
        element, _, attribute = name.rpartition(".")
        if element in self._names:
            known = self._attributes(self._session.madx.elements[element])
            if attribute in known:
                return Knob(name, element, known[attribute], known[attribute].moves)
            raise UnknownVariableError(
                f"control {name!r}: {attribute!r} cannot be set on {element!r}{nearest_names(attribute, known)}"
            )
        if name in self._globals:
            return Knob(name, None, Attribute(name, name, "", "variable"), name in self._geometry())
        meant = [n for n in self._names if n == element.lower()]
        choices = [f"{n}.{a}" for n in meant for a in self._attributes(self._session.madx.elements[n])]
        raise UnknownVariableError(
            f"control {name!r} is neither an attribute of an element in sequence {self._session.sequence!r} nor a "
            f"variable of the deck{nearest_names(name, choices or [*self._names, *self._globals])}"
        )

    def _variables(self, knob: Knob) -> set[str]:
        """Return the global variables that a knob is bound to, directly or not."""
        return self._reached(knob._parameter(self._session))

    def _reached(self, *parameters: Any) -> set[str]:
        madx, found = self._session.madx, set()
        waiting = [entry for parameter in parameters for entry in _expressions(parameter) if isinstance(entry, str)]
        while waiting:
            for variable in madx.expr_vars(waiting.pop()):
                if variable not in found and variable in self._globals:
                    found.add(variable)
                    waiting += [e for e in _expressions(madx.globals.cmdpar[variable]) if isinstance(e, str)]
        return found

    def _geometry(self) -> set[str]:
        """Return the variables that lengths, places or rectangular bends hang on."""
        parameters = []
        for element in self._session.madx.sequence[self._session.sequence].elements:
            if hasattr(element, "cmdpar"):
                bend = ("angle",) if element.base_type.name == "rbend" else ()
                parameters += [element.cmdpar[name] for name in ("l", "at", *bend) if name in element.cmdpar]
        return self._reached(*parameters)


def values(session: MADXSession, knobs: Sequence[Knob]) -> dict[str, float]:
    """Return what knobs are now; every element is asked for once."""
    natives: dict[str | None, Any] = {None: None}
    for knob in knobs:
        if knob.element not in natives:
            natives[knob.element] = session.madx.elements[knob.element]
    return {knob.name: knob.value(session, natives[knob.element]) for knob in knobs}


def changed(knobs: Sequence[Knob], baseline: Mapping[str, float], inputs: Mapping[str, Any]) -> list[Knob]:
    """Return the knobs whose inputs are not what the deck has."""
    return [knob for knob in knobs if float(inputs[knob.name]) != baseline[knob.name]]
