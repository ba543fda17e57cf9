"""What can be set on the elements of a pyAT lattice, by the field's names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.variables import Variable

Values = dict[str, Any]


@dataclass(frozen=True)
class Attribute:
    """A number on an element.

    Attributes:
        name: as in ``"<element>.<name>"``.
        unit: its unit.
        description: what it is.
        read: gives its value.
        write: sets it; puts new arrays in place of old ones, which may be shared.
        scale: size of a typical change, from the value; None for the default of variables.
        low: least value allowed, None for none.
    """

    name: str
    unit: str
    description: str
    read: Callable[[Any], float]
    write: Callable[[Any, float], None]
    scale: Callable[[float], float] | None = None
    low: float | None = None


@dataclass(frozen=True)
class Knob:
    """A number on all elements of one name.

    Attributes:
        name: ``"<element>.<attribute>"``.
        attribute: what it is.
        elements: where it is set.
    """

    name: str
    attribute: Attribute
    elements: tuple[Any, ...]

    @property
    def value(self) -> float:
        """What it is now."""
        return self.attribute.read(self.elements[0])

    def variable(self) -> Variable:
        """Return its description."""
        from lume_diff.variables import TorchScalarVariable  # brings torch, which workers do without

        attribute, value = self.attribute, self.value
        kind, element = type(self.elements[0]).__name__.lower(), self.name.rpartition(".")[0]
        return TorchScalarVariable(
            name=self.name,
            unit=attribute.unit,
            default_value=value,
            value_range=None if attribute.low is None else (attribute.low, None),
            scale=None if attribute.scale is None else attribute.scale(value),
            description=f"{attribute.description} of {kind} {element}",
        )


def _fixed(scale: float) -> Callable[[float], float]:
    return lambda value: scale


def _share(part: float) -> Callable[[float], float]:
    return lambda value: part * abs(value) or part


def _plain(name: str, native: str, unit: str, text: str, scale: Callable[[float], float] | None = None) -> Attribute:
    def read(element: Any) -> float:
        return float(getattr(element, native, 0.0))

    def write(element: Any, value: float) -> None:
        setattr(element, native, value)

    return Attribute(name, unit, text, read, write, scale)


def _multipole(order: int, skew: bool, integrated: bool) -> Attribute:
    """Return a multipole strength in the convention of MAD: ``order!`` times the coefficient of pyAT."""
    array, factor = "PolynomA" if skew else "PolynomB", math.factorial(order)
    name = f"k{order}{'s' if skew else ''}{'l' if integrated else ''}"
    power = order + (0 if integrated else 1)
    kind = ("dipole", "quadrupole", "sextupole", "octupole")[order]

    def read(element: Any) -> float:
        values = getattr(element, array)
        return factor * float(values[order]) if order < len(values) and order <= element.MaxOrder else 0.0

    def write(element: Any, value: float) -> None:
        state = vars(element)
        for each in ("PolynomA", "PolynomB"):
            values = np.asarray(state[each], dtype=float)
            state[each] = np.pad(values, (0, max(0, order + 1 - len(values))))
        if element.MaxOrder < order:  # what lay beyond was not used so far, and shall not be
            for each in ("PolynomA", "PolynomB"):
                state[each][element.MaxOrder + 1 :] = 0.0
            state["MaxOrder"] = order
        state[array] = state[array].copy()
        state[array][order] = value / factor

    text = f"{'integrated ' if integrated else ''}{'skew ' if skew else ''}{kind} strength"
    return Attribute(name, f"1/m^{power}" if power else "", text, read, write)


def _kick(name: str, index: int, text: str) -> Attribute:
    def read(element: Any) -> float:
        return float(element.KickAngle[index])

    def write(element: Any, value: float) -> None:
        kick = np.array(element.KickAngle, dtype=float)
        kick[index] = value
        element.KickAngle = kick

    return Attribute(name, "rad", text, read, write, _fixed(1e-4))


def _placement(name: str, native: str, unit: str, text: str, scale: float) -> Attribute:
    def read(element: Any) -> float:
        return float(getattr(element, native))

    def write(element: Any, value: float) -> None:
        import at

        at.transform_elem(element, **{native: value})

    return Attribute(name, unit, text, read, write, _fixed(scale))


_LENGTH = Attribute(
    "length",
    "m",
    "length",
    lambda element: float(element.Length),
    lambda element, value: setattr(element, "Length", value),
    _share(1e-2),
    1e-9,
)
_BEND = (
    _plain("angle", "BendingAngle", "rad", "bending angle", _fixed(1e-3)),
    _plain("e1", "EntranceAngle", "rad", "entrance pole face angle", _fixed(1e-3)),
    _plain("e2", "ExitAngle", "rad", "exit pole face angle", _fixed(1e-3)),
)
_CAVITY = (
    _plain("voltage", "Voltage", "V", "voltage", _share(1e-2)),
    _plain("frequency", "Frequency", "Hz", "frequency", _share(1e-6)),
    _plain("time_lag", "TimeLag", "m", "time lag", _fixed(1e-3)),
)
_SOLENOID = _plain("ks", "K", "1/m", "solenoid strength")
_KICKS = (_kick("hkick", 0, "horizontal kick"), _kick("vkick", 1, "vertical kick"))
_PLACEMENT = (
    _placement("misalignment_x", "dx", "m", "horizontal displacement", 1e-4),
    _placement("misalignment_y", "dy", "m", "vertical displacement", 1e-4),
    _placement("tilt", "tilt", "rad", "rotation about the beam axis", 1e-3),
)
_MULTIPOLES = {
    integrated: {a.name: a for skew in (False, True) for n in range(4) for a in (_multipole(n, skew, integrated),)}
    for integrated in (False, True)
}


def attributes(element: Any) -> tuple[dict[str, Attribute], set[str]]:
    """Return everything that can be set on an element, and which of that is worth setting without being asked for."""
    import at

    found: dict[str, Attribute] = {}
    main: set[str] = set()

    def add(items: Iterable[Attribute], offered: Iterable[str] = ()) -> None:
        found.update({item.name: item for item in items})
        main.update(offered)

    if element.Length > 0.0:
        add([_LENGTH], ["length"])
    if isinstance(element, at.ThinMultipole):
        thick = isinstance(element, at.Multipole)
        multipoles = _MULTIPOLES[not thick]
        bend = isinstance(element, at.Dipole)
        add([m for m in multipoles.values() if not (bend and m.name in ("k0", "k0s"))])
        order = getattr(element, "DefaultOrder", None)
        if order is not None:
            main.add(f"k{order}")
        else:
            main.update(name for name, item in multipoles.items() if item.read(element) != 0.0)
        if bend:
            add(_BEND, ["angle", "e1", "e2"])
    if hasattr(element, "KickAngle"):
        add(_KICKS, ["hkick", "vkick"])
    if isinstance(element, at.RFCavity):
        add(_CAVITY, [a.name for a in _CAVITY] if element.longt_motion else [])
    if element.PassMethod == "SolenoidLinearPass":
        add([_SOLENOID], ["ks"])
    own = {"T1", "T2", "R1", "R2"} & vars(element).keys()
    if isinstance(element, (at.ThinMultipole, at.RFCavity, at.Corrector)) and (not own or "_dx" in vars(element)):
        add(_PLACEMENT)
    return found, main


class Knobs:
    """Find what can be set on a lattice, and set it for the time of a run.

    Args:
        lattice: a pyAT lattice, which is changed by ``at``, for a time only.
    """

    def __init__(self, lattice: Any) -> None:
        self._families: dict[str, dict[int, Any]] = {}
        for element in lattice:
            self._families.setdefault(element.FamName, {})[id(element)] = element

    def choose(self, controls: Sequence[str] | None) -> list[Knob]:
        """Return the knobs that are wanted, None for all that make sense.

        Raises:
            UnknownVariableError: for a control that does not exist.
            ValidationError: where elements of one name differ in it, so that they cannot act as one.
        """
        if controls is None:
            return [
                knob
                for name, family in self._families.items()
                for attribute in sorted(attributes(next(iter(family.values())))[1])
                for knob in [self._knob(f"{name}.{attribute}")]
                if knob is not None
            ]
        found = []
        for name in dict.fromkeys(controls):
            knob = self._knob(name)
            if knob is None:
                element, _, attribute = name.rpartition(".")
                values = ", ".join(f"{v:g}" for v in sorted(self._values(element, attribute)))
                raise ValidationError(
                    f"control {name!r}: elements called {element!r} have different values ({values}), so they cannot "
                    "act as one: give them names of their own"
                )
            found.append(knob)
        return found

    def _values(self, element: str, attribute: str) -> set[float]:
        return {attributes(e)[0][attribute].read(e) for e in self._families[element].values()}

    def _knob(self, name: str) -> Knob | None:
        """Return a knob; None where elements of one name differ.

        Raises:
            UnknownVariableError: if there is none of that name.
        """
        element, _, attribute = name.rpartition(".")
        if element not in self._families:
            known = self._families if element else (f"{n}.{a}" for n, f in self._families.items() for a in _names(f))
            raise UnknownVariableError(
                f"control {name!r}: there is no element {element or name!r} in the lattice"
                f"{nearest_names(element or name, known)}"
            )
        family = tuple(self._families[element].values())
        tables = [attributes(e)[0] for e in family]
        shared = set(tables[0]).intersection(*tables[1:])
        if attribute not in shared:
            raise UnknownVariableError(
                f"control {name!r}: {attribute!r} cannot be set on {element!r}{nearest_names(attribute, shared)}"
            )
        if len({table[attribute].read(e) for table, e in zip(tables, family, strict=True)}) > 1:
            return None
        return Knob(name, tables[0][attribute], family)


def _names(family: Mapping[int, Any]) -> set[str]:
    return set(attributes(next(iter(family.values())))[0])


@contextmanager
def at_values(knobs: Iterable[Knob], values: Mapping[str, float]) -> Iterator[None]:
    """Set knobs for the time of a block, and leave the elements as they were, whatever happens in it."""
    saved: dict[int, tuple[Any, Values]] = {}
    try:
        for knob in knobs:
            value = float(values[knob.name])
            if value == knob.value:
                continue
            for element in knob.elements:
                saved.setdefault(id(element), (element, dict(vars(element))))
                knob.attribute.write(element, value)
        yield
    finally:
        for element, state in saved.values():
            vars(element).clear()
            vars(element).update(state)
