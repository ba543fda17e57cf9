"""Units: what a unit string means, whether two of them fit, and the factor between them.

The units of an accelerator control room are parsed here without importing anything. What this
table does not know is asked of openPMD-beamphysics and then of pint; both take a good part of a
second to import, so they load only for such a unit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from lume_diff.errors import UnitError, nearest_names

Dimension = tuple[tuple[str, Fraction], ...]
"""Base symbols and their exponents, sorted; empty for a pure number."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Hold what a unit string means.

    Args:
        symbol: the string as it was given.
        si: the size of one such unit in base SI units, exact where the definition is.
        dimension: the base symbols with their exponents; ``()`` for a pure number or an angle.
    """

    symbol: str
    si: Fraction
    dimension: Dimension


def _dimension(**exponents: int) -> dict[str, Fraction]:
    return {base: Fraction(exponent) for base, exponent in exponents.items()}


_PREFIXES = {
    "": 0, "f": -15, "p": -12, "n": -9, "u": -6, "m": -3, "c": -2, "k": 3, "M": 6, "G": 9, "T": 12,
}  # fmt: skip

_Atom = tuple[Fraction, dict[str, Fraction]]

_PREFIXED: dict[str, _Atom] = {
    "m": (Fraction(1), _dimension(m=1)),
    "g": (Fraction(1, 1000), _dimension(kg=1)),
    "s": (Fraction(1), _dimension(s=1)),
    "A": (Fraction(1), _dimension(A=1)),
    "K": (Fraction(1), _dimension(K=1)),
    "rad": (Fraction(1), {}),
    "eV": (Fraction(1602176634, 10**28), _dimension(m=2, kg=1, s=-2)),
    "J": (Fraction(1), _dimension(m=2, kg=1, s=-2)),
    "W": (Fraction(1), _dimension(m=2, kg=1, s=-3)),
    "C": (Fraction(1), _dimension(A=1, s=1)),
    "V": (Fraction(1), _dimension(m=2, kg=1, s=-3, A=-1)),
    "Ohm": (Fraction(1), _dimension(m=2, kg=1, s=-3, A=-2)),
    "T": (Fraction(1), _dimension(kg=1, s=-2, A=-1)),
    "G": (Fraction(1, 10**4), _dimension(kg=1, s=-2, A=-1)),
    "Hz": (Fraction(1), _dimension(s=-1)),
    "N": (Fraction(1), _dimension(m=1, kg=1, s=-2)),
    "Pa": (Fraction(1), _dimension(m=-1, kg=1, s=-2)),
    "bar": (Fraction(10**5), _dimension(m=-1, kg=1, s=-2)),
}

_DEGREE = Fraction(math.pi / 180.0)

# px, counts, arb, dB and degC convert to nothing but themselves: the first three are no SI quantity,
# and the last two are not linear.
_PLAIN: dict[str, _Atom] = {
    "1": (Fraction(1), {}),
    "%": (Fraction(1, 100), {}),
    "ppm": (Fraction(1, 10**6), {}),
    "deg": (_DEGREE, {}),
    "degS": (_DEGREE, {}),
    "degL": (_DEGREE, {}),
    "degX": (_DEGREE, {}),
    "c": (Fraction(299792458), _dimension(m=1, s=-1)),
    "min": (Fraction(60), _dimension(s=1)),
    "hour": (Fraction(3600), _dimension(s=1)),
    "Torr": (Fraction(101325, 760), _dimension(m=-1, kg=1, s=-2)),
    "mTorr": (Fraction(101325, 760000), _dimension(m=-1, kg=1, s=-2)),
    "px": (Fraction(1), _dimension(px=1)),
    "counts": (Fraction(1), _dimension(counts=1)),
    "arb": (Fraction(1), _dimension(arb=1)),
    "dB": (Fraction(1), _dimension(dB=1)),
    "dBm": (Fraction(1), _dimension(dBm=1)),
    "degC": (Fraction(1), _dimension(degC=1)),
}

_ALIASES = {
    "degree": "deg", "degrees": "deg", "Deg": "deg", "°": "deg", "°C": "degC", "Ω": "Ohm", "ohm": "Ohm",
    "percent": "%", "pct": "%", "pixel": "px", "pixels": "px", "count": "counts", "cts": "counts",
    "a.u.": "arb", "arb.": "arb", "arb. units": "arb", "micron": "um", "microns": "um", "Volts": "V", "volts": "V",
    "Amps": "A", "amps": "A", "sec": "s", "radians": "rad", "radian": "rad", "Gauss": "G", "kGauss": "kG",
}  # fmt: skip


def _build_atoms() -> dict[str, _Atom]:
    atoms = {
        prefix + name: (Fraction(10) ** power * size, dimension)
        for name, (size, dimension) in _PREFIXED.items()
        for prefix, power in _PREFIXES.items()
    }
    atoms |= _PLAIN
    atoms |= {alias: atoms[name] for alias, name in _ALIASES.items()}
    return atoms


_ATOMS = _build_atoms()

COMMON_UNITS = (
    "m", "mm", "um", "cm", "rad", "mrad", "urad", "deg", "eV", "keV", "MeV", "GeV", "eV/c", "MeV/c", "GeV/c", "s", "ms",
    "us", "ns", "ps", "fs", "C", "nC", "pC", "T", "G", "kG", "kG*m", "T*m", "T/m", "kG/m", "T/m^2", "1/m", "1/m^2",
    "1/m^3", "m^-1", "m^-2", "m^-3", "m^2", "m*rad", "mm*mrad", "A", "mA", "kA", "V", "kV", "MV", "V/m", "MV/m", "Hz",
    "kHz", "MHz", "GHz", "W", "J", "mJ", "K", "degC", "%", "1", "px", "um/px", "counts", "arb",
)  # fmt: skip
"""What an error offers as the nearest known units."""

_FACTOR = re.compile(r"(?P<atom>[^\^*/()\s]+)(?:\^(?:\((?P<group>[+-]?\d+)\)|(?P<power>[+-]?\d+)))?")

_WORD = r"[^\W\d]\w*(?:\^[+-]?\d{1,2})?"
_WORDS = re.compile(rf"(?:1/)?{_WORD}(?:[*/]{_WORD})*")
_COMMON_FOLDED = {unit.casefold(): unit for unit in COMMON_UNITS}


def _canonical(text: str) -> str:
    """Spell one way what is written in several: micro signs, powers, products."""
    text = text.strip().replace("μ", "u").replace("µ", "u").replace("**", "^").replace("²", "^2").replace("³", "^3")
    if text in _ALIASES:
        return _ALIASES[text]
    text = text.replace("·", "*").replace("⋅", "*")
    text = re.sub(r"\s*([*/^])\s*", r"\1", text)
    return re.sub(r"(?<=[A-Za-z])[-.\s]+(?=[A-Za-z])", "*", text)


def _parse_static(text: str) -> tuple[Fraction, Dimension] | None:
    """Return size and dimension by the table here, or None where it does not know."""
    if text == "":
        return Fraction(1), ()
    size, exponents = Fraction(1), dict[str, Fraction]()
    sign = 1
    for part in re.split(r"([*/])", text):
        if part in ("*", "/"):
            sign = 1 if part == "*" else -1
            continue
        match = _FACTOR.fullmatch(part)
        atom = _ATOMS.get(match["atom"]) if match else None
        if match is None or atom is None:
            return None
        power = sign * int(match["group"] or match["power"] or 1)
        if abs(power) > 12:
            return None
        size *= atom[0] ** power
        for base, exponent in atom[1].items():
            exponents[base] = exponents.get(base, Fraction(0)) + power * exponent
    return size, _sorted(exponents)


def _sorted(exponents: dict[str, Fraction]) -> Dimension:
    return tuple(sorted((base, exponent) for base, exponent in exponents.items() if exponent))


def _parse_beamphysics(text: str) -> tuple[Fraction, Dimension] | None:
    from beamphysics.units import pmd_unit

    try:
        unit = pmd_unit(text)
    except (ValueError, TypeError, KeyError):
        return None
    bases = ("m", "kg", "s", "A", "K", "mol", "cd")
    exponents = {b: Fraction(e).limit_denominator(1000) for b, e in zip(bases, unit.unitDimension, strict=True)}
    return Fraction(unit.unitSI), _sorted(exponents)


@lru_cache(maxsize=1)
def _pint_registry() -> Any:
    import pint

    return pint.UnitRegistry()


_PINT_BASES = {
    "[length]": "m", "[mass]": "kg", "[time]": "s", "[current]": "A", "[temperature]": "K",
    "[substance]": "mol", "[luminosity]": "cd", "[printing_unit]": "px",
}  # fmt: skip


def _parse_pint(text: str) -> tuple[Fraction, Dimension] | None:
    if _WORDS.fullmatch(text) is None:  # pint evaluates expressions; a unit is names, products and whole powers
        return None
    registry = _pint_registry()
    try:
        unit = registry.parse_units(text)
        quantity = registry.Quantity(1.0, unit)
        if not quantity._is_multiplicative:
            return Fraction(1), ((str(unit), Fraction(1)),)
        size = Fraction(quantity.to_base_units().magnitude)
        exponents = {_PINT_BASES.get(b, b): Fraction(e).limit_denominator(1000) for b, e in unit.dimensionality.items()}
    except Exception:  # pint raises its own errors, tokenize's, AttributeError, ...: all mean "not a unit"
        return None
    return (size, _sorted(exponents)) if size > 0 else None


@lru_cache(maxsize=4096)
def parse_unit(text: str | None) -> Unit:
    """Return what a unit string means.

    Args:
        text: a unit such as ``"kG*m"``, ``"1/m^2"``, ``"mrad"``; ``""`` or None for a pure number.

    Returns:
        The :class:`Unit`.

    Raises:
        UnitError: the string is no unit; the message has the nearest known ones.

    Example:
        >>> float(parse_unit("kG*m").si)
        0.1
    """
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise UnitError(
            f"unit {text!r} is a {type(text).__name__}; give a string such as 'mm', or '' for a pure number"
        )
    canonical = _canonical(text)
    found = _parse_static(canonical)
    if found is None and canonical.casefold() not in _COMMON_FOLDED:  # "ma" is meant as mA, not as pint's milli-year
        found = _parse_beamphysics(canonical) or _parse_pint(canonical)
    if found is None:
        other_case = _COMMON_FOLDED.get(canonical.casefold())
        nearest = nearest_names(text, COMMON_UNITS) if other_case is None else f"; nearest: {other_case!r}"
        raise UnitError(f"unit {text!r} is not known{nearest}; use '' for a pure number")
    return Unit(text, *found)


def same_dimension(a: str | None, b: str | None) -> bool:
    """Return whether values in one unit can be expressed in the other.

    Args:
        a: a unit string.
        b: another.

    Returns:
        True where :func:`conversion_factor` exists. Angles and percentages count as pure numbers.

    Raises:
        UnitError: one of them is no unit.

    Example:
        >>> same_dimension("kG*m", "T*m"), same_dimension("m", "s")
        (True, False)
    """
    return parse_unit(a).dimension == parse_unit(b).dimension


@lru_cache(maxsize=4096)
def conversion_factor(from_unit: str | None, to_unit: str | None) -> float:
    """Return the number by which a value in ``from_unit`` is multiplied to be in ``to_unit``.

    Args:
        from_unit: the unit that a value has.
        to_unit: the unit that it shall have.

    Returns:
        The factor, rounded once.

    Raises:
        UnitError: a string is no unit, or the two have different dimensions.

    Example:
        >>> conversion_factor("MeV", "eV"), conversion_factor("kG", "T")
        (1000000.0, 0.1)
    """
    source, target = parse_unit(from_unit), parse_unit(to_unit)
    if source.dimension != target.dimension:
        raise UnitError(
            f"cannot convert from {from_unit!r} [{_words(source)}] to {to_unit!r} [{_words(target)}]: "
            "the dimensions differ; correct one of the two units"
        )
    return float(source.si / target.si)


def convert(value: Any, from_unit: str | None, to_unit: str | None) -> Any:
    """Return a value of ``from_unit`` expressed in ``to_unit``.

    Args:
        value: a number, array or tensor in ``from_unit``, any shape.
        from_unit: the unit that it has.
        to_unit: the unit that it shall have.

    Returns:
        ``value`` times :func:`conversion_factor`, same kind and shape.

    Raises:
        UnitError: a string is no unit, or the two have different dimensions.

    Gradient: exact.

    Example:
        >>> convert(2.5, "mrad", "rad")
        0.0025
    """
    return value * conversion_factor(from_unit, to_unit)


def _words(unit: Unit) -> str:
    return " ".join(base if e == 1 else f"{base}^{e}" for base, e in unit.dimension) or "pure number"
