"""The numbers on an ImpactX lattice that can be set, under the field's names."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lume_diff.blackbox.impactx.lattice import PROGRAMMABLE, ElementData
from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names

if TYPE_CHECKING:
    from lume_diff.variables import Variable


@dataclass(frozen=True)
class Attribute:
    """A number on an element.

    Attributes:
        name: the field's name, or ImpactX's.
        unit: of its value.
        read: takes it from the element's data.
        write: returns what changes in the data.
        scale: typical change, None for the variable's own rule.
        low: least value allowed.
    """

    name: str
    unit: str
    read: Callable[[ElementData], float]
    write: Callable[[ElementData, float], ElementData]
    scale: float | None = None
    low: float | None = None


def _number(name: str, native: str, unit: str, factor: float = 1.0, scale: float | None = None) -> Attribute:
    return Attribute(
        name, unit, lambda data: factor * float(data[native]), lambda data, value: {native: value / factor}, scale
    )


def _entry(name: str, native: str, index: int) -> Attribute:
    def write(data: ElementData, value: float) -> ElementData:
        other = "k_skew" if native == "k_normal" else "k_normal"  # the constructor wants both, of one length
        return {native: [*data[native][:index], value, *data[native][index + 1 :]], other: data[other]}

    return Attribute(name, f"1/m^{index + 1}", lambda data: float(data[native][index]), write)


_DEGREE = math.pi / 180.0
_LENGTH = Attribute("length", "m", lambda d: float(d["ds"]), lambda d, value: {"ds": value}, low=1e-9)
_PLACEMENT = (
    _number("misalignment_x", "dx", "m", scale=1e-4),
    _number("misalignment_y", "dy", "m", scale=1e-4),
    _number("tilt", "rotation", "rad", _DEGREE, scale=1e-3),
)
#: Strengths by class: the field's name, ImpactX's name, unit, and what ImpactX's number is multiplied by.
_STRENGTHS: dict[str, tuple[tuple[str, str, str, float], ...]] = {
    "Quad": (("k1", "k", "1/m^2", 1.0),),
    "CFbend": (("k1", "k", "1/m^2", 1.0), ("rc", "rc", "m", 1.0)),
    "ConstF": tuple((k, k, "1/m", 1.0) for k in ("kx", "ky", "kt")),
    "Sol": (("ks", "ks", "1/m", 1.0),),
    "Sbend": (("rc", "rc", "m", 1.0),),
    "ExactSbend": (("angle", "phi", "rad", _DEGREE), ("B", "B", "T", 1.0)),
    "ThinDipole": (("angle", "theta", "rad", _DEGREE), ("rc", "rc", "m", 1.0)),
    "DipEdge": (("psi", "psi", "rad", 1.0), ("rc", "rc", "m", 1.0), ("g", "g", "m", 1.0)),
    "PlaneXYRot": (("angle", "angle", "rad", _DEGREE),),
    "PRot": tuple((name, name, "rad", _DEGREE) for name in ("phi_in", "phi_out")),
    "ShortRF": (("V", "V", "1", 1.0), ("frequency", "freq", "Hz", 1.0), ("phase", "phase", "deg", 1.0)),
    "RFCavity": (("escale", "escale", "1/m", 1.0), ("frequency", "freq", "Hz", 1.0), ("phase", "phase", "deg", 1.0)),
    "Buncher": (("V", "V", "1", 1.0), ("k", "k", "1/m", 1.0)),
    "ChrAcc": (("ez", "ez", "1/m", 1.0), ("bz", "bz", "1/m", 1.0)),
    "SoftQuadrupole": (("gscale", "gscale", "1/m^2", 1.0),),
    "NonlinearLens": (("knll", "knll", "m", 1.0), ("cnll", "cnll", "m", 1.0)),
}
#: The same for classes whose number is normalised to the rigidity or not: (name, unit) of either.
_BY_UNIT: dict[str, tuple[str, tuple[str, str], tuple[str, str]]] = {
    **dict.fromkeys(("ChrQuad", "ExactQuad", "QuadEdge", "ChrPlasmaLens"), ("k", ("k1", "1/m^2"), ("gradient", "T/m"))),
    "TaperedPL": ("k", ("k1l", "1/m"), ("integrated_gradient", "T")),
    "SoftSolenoid": ("bscale", ("ks", "1/m"), ("field", "T")),
}
_SCALES = {"rad": 1e-3, "deg": 1.0}


def attributes(data: ElementData) -> tuple[dict[str, Attribute], list[str]]:
    """Return everything that can be set on an element, and the names worth setting without being asked for.

    ImpactX's own names are there too, in ImpactX's units.
    """
    kind = data["type"]
    main: list[Attribute] = [_LENGTH] if data.get("ds", 0.0) > 0.0 else []
    natives: dict[str, str] = {"dx": "m", "dy": "m", "ds": "m", "rotation": "deg", "aperture_x": "m", "aperture_y": "m"}
    for name, native, unit, factor in _STRENGTHS.get(kind, ()):
        main.append(_number(name, native, unit, factor, _SCALES.get(unit)))
        natives[native] = unit if factor == 1.0 else "deg"
    if kind in _BY_UNIT:
        native, *choices = _BY_UNIT[kind]
        name, unit = choices[int(data.get("unit", 0))]
        main.append(_number(name, native, unit))
        natives[native] = unit
    if kind == "Kicker":
        unit = "rad" if data["unit"] == "dimensionless" else "T*m"
        main += [_number(f"{plane}kick", f"{axis}kick", unit, scale=1e-4) for plane, axis in (("h", "x"), ("v", "y"))]
        natives |= {"xkick": unit, "ykick": unit}
    if kind == "Multipole":
        order = int(data["multipole"]) - 1
        unit = f"1/m^{order}" if order else ""
        main += [_number(f"k{order}l", "K_normal", unit), _number(f"k{order}sl", "K_skew", unit)]
    if kind in ("ExactMultipole", "ExactCFbend") and not data.get("unit", 0):
        count = len(data["k_normal"])
        main += [_entry(f"k{order}", "k_normal", order) for order in range(count)]
        main += [_entry(f"k{order}s", "k_skew", order) for order in range(count)]
    if kind == "Sbend":
        angle = Attribute("angle", "rad", lambda d: d["ds"] / d["rc"], lambda d, v: {"rc": d["ds"] / v}, 1e-3)
        main.append(angle)
    found = {name: _number(name, name, natives.get(name, "")) for name, value in data.items() if type(value) is float}
    found |= {attribute.name: attribute for attribute in main}
    found |= {a.name: a for a in _PLACEMENT if "dx" in data}
    if "ds" not in data or data["ds"] == 0.0:
        found.pop("ds", None)
    return found, [a.name for a in main if not (kind == "Sbend" and a.name == "rc")]


@dataclass(frozen=True)
class Knob:
    """A number on all elements of one name.

    Attributes:
        name: ``"<element>.<attribute>"``.
        positions: of the elements in the lattice.
        attributes: the number on each of them.
    """

    name: str
    positions: tuple[int, ...]
    attributes: tuple[Attribute, ...]

    def variable(self, data: Sequence[ElementData]) -> Variable:
        """Return its description."""
        from lume_diff.variables import TorchScalarVariable  # brings torch, which workers do without

        first, attribute = data[self.positions[0]], self.attributes[0]
        value = attribute.read(first)
        low = attribute.low
        return TorchScalarVariable(
            name=self.name,
            unit=attribute.unit,
            default_value=value,
            value_range=None if low is None or value < low else (low, None),
            scale=attribute.scale,
            description=f"{attribute.name} of {first['type']} {self.name.rpartition('.')[0]}",
        )


class Knobs:
    """Find what can be set on a lattice.

    Args:
        data: the lattice's elements.
    """

    def __init__(self, data: Sequence[ElementData]) -> None:
        self._data = data
        self._families: dict[str, list[int]] = {}
        for position, element in enumerate(data):
            if element.get("name") and element["type"] != PROGRAMMABLE:
                self._families.setdefault(element["name"], []).append(position)

    def choose(self, controls: Sequence[str] | None) -> list[Knob]:
        """Return the knobs that are wanted, None for all that make sense.

        Raises:
            UnknownVariableError: for a control that does not exist.
            ValidationError: where elements of one name differ in it, so that they cannot act as one, and for two
                names of one number.
        """
        if controls is not None:
            knobs = [self._knob(name) for name in dict.fromkeys(controls)]
            for one, other in itertools.combinations(knobs, 2):
                if self._moves(one, other) and self._moves(other, one):
                    raise ValidationError(
                        f"controls {one.name!r} and {other.name!r} set the same number: choose one of them"
                    )
            return knobs
        found = []
        for element, family in self._families.items():
            for attribute in attributes(self._data[family[0]])[1]:
                with contextlib.suppress(ValidationError):
                    found.append(self._knob(f"{element}.{attribute}"))
        return found

    def _moves(self, knob: Knob, other: Knob) -> bool:
        """Tell whether the second of two knobs has another value when the first is set."""
        if knob.positions != other.positions:
            return False
        data, attribute, seen = self._data[knob.positions[0]], knob.attributes[0], other.attributes[0]
        moved = {**data, **attribute.write(data, 1.5 * attribute.read(data) + 1e-3)}
        return seen.read(moved) != seen.read(data)

    def _knob(self, name: str) -> Knob:
        element, _, attribute = name.rpartition(".")
        if element not in self._families:
            known: Iterable[str] = self._families if element else (f"{n}.length" for n in self._families)
            raise UnknownVariableError(
                f"control {name!r}: there is no element {element or name!r} in the lattice"
                f"{nearest_names(element or name, known)}"
            )
        positions = tuple(self._families[element])
        tables = [attributes(self._data[position])[0] for position in positions]
        shared = set(tables[0]).intersection(*tables[1:])
        if attribute not in shared:
            raise UnknownVariableError(
                f"control {name!r}: {attribute!r} cannot be set on {element!r}"
                f"{nearest_names(attribute, sorted(shared))}"
            )
        own = tuple(table[attribute] for table in tables)
        values = {a.read(self._data[position]) for a, position in zip(own, positions, strict=True)}
        if len(values) > 1:
            raise ValidationError(
                f"control {name!r}: elements called {element!r} have different values "
                f"({', '.join(f'{value:g}' for value in sorted(values))}), so they cannot act as one: give them names "
                "of their own"
            )
        return Knob(name, positions, own)
