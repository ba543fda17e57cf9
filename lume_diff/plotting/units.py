"""Numbers with the prefixes that a logbook uses: 210 µm rather than 2.1e-4 m."""

from __future__ import annotations

import math

_PREFIXES = {-15: "f", -12: "p", -9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T"}
_TAKES_PREFIX = ("m", "s", "eV", "eV/c", "V", "C", "rad", "A", "T", "Hz", "J", "W")
_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def prefixed(size: float, unit: str) -> tuple[float, str]:
    """Return the factor and the unit that make a size readable.

    Args:
        size: the largest value that will be shown [unit].
        unit: such as ``"m"``; compound units such as ``"1/m^2"`` take no prefix.

    Returns:
        Factor f and unit u, such that size [unit] is f x size [u].

    Example:
        >>> prefixed(2.1e-4, "m")
        (1000000.0, 'µm')
    """
    size = abs(size)
    if unit not in _TAKES_PREFIX or size == 0.0 or not math.isfinite(size):
        return 1.0, unit
    # A power of ten whose logarithm is a little too small is still one.
    exponent = 3 * math.floor((math.log10(size) + 1e-9) / 3)
    exponent = min(max(exponent, -15), 0 if unit == "m" else 12)
    return 10.0**-exponent, _PREFIXES[exponent] + unit


def quantity(value: float, unit: str, digits: int = 4) -> str:
    """Return a value with its unit, such as ``"76 MV"``.

    Args:
        value: in ``unit``.
        unit: ``""`` and ``"1"`` are pure numbers.
        digits: significant ones.

    Example:
        >>> quantity(76e6, "V"), quantity(-1.5, "1/m^2")
        ('76 MV', '-1.5 1/m^2')
    """
    rounded = float(f"{value:.{digits}g}")  # 999.96 V are 1 kV to four digits, not 1000 V
    factor, shown = prefixed(rounded, unit)
    return f"{value * factor:.{digits}g} {'' if shown == '1' else shown}".rstrip()


def pretty_unit(unit: str) -> str:
    """Return a unit for an axis, with raised exponents.

    Example:
        >>> pretty_unit("1/m^2")
        '1/m²'
    """
    head, *powers = unit.split("^")
    for power in powers:
        digits = len(power) - len(power.lstrip("-0123456789"))
        head += power[:digits].translate(_SUPERSCRIPTS) + power[digits:]
    return head


def per(output_unit: str, input_unit: str) -> str:
    """Return the unit of a derivative.

    Example:
        >>> per("m", "1/m^2"), per("m", "V")
        ('m/(1/m^2)', 'm/V')
    """
    below = input_unit or "1"
    return f"{output_unit or '1'}/{below if below.isalnum() else f'({below})'}"
