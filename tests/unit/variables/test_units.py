"""Units: meaning, factors, dimensions, and which packages are asked."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.errors import UnitError
from lume_diff.variables import conversion_factor, convert, parse_unit, same_dimension
from lume_diff.variables.units import COMMON_UNITS, _parse_beamphysics, _parse_static

C = 299792458.0
EV = 1.602176634e-19

FACTORS: list[tuple[str, str, float]] = [
    ("mm", "m", 1e-3), ("um", "mm", 1e-3), ("µm", "um", 1.0), ("μm", "m", 1e-6), ("micron", "um", 1.0),
    ("mrad", "rad", 1e-3), ("deg", "rad", math.pi / 180), ("degrees", "deg", 1.0), ("rad", "deg", 180 / math.pi),
    ("degS", "deg", 1.0), ("MeV", "eV", 1e6), ("GeV", "MeV", 1e3), ("eV", "J", EV), ("eV/c", "kg*m/s", EV / C),
    ("MeV/c", "eV/c", 1e6), ("ps", "s", 1e-12), ("fs", "ps", 1e-3), ("min", "s", 60.0), ("nC", "C", 1e-9),
    ("pC", "nC", 1e-3), ("kG", "T", 0.1), ("kG*m", "T*m", 0.1), ("kG-m", "kG*m", 1.0), ("kG m", "kG*m", 1.0),
    ("kG/m", "T/m", 0.1), ("G", "T", 1e-4), ("1/m^2", "m^-2", 1.0), ("1/m**2", "m^-2", 1.0), ("1/mm^2", "m^-2", 1e6),
    ("1/cm", "1/m", 100.0), ("m^-3", "1/m^3", 1.0), ("mm^2", "m^2", 1e-6), ("mm²", "mm^2", 1.0),
    ("mm*mrad", "m*rad", 1e-6), ("mm-mrad", "um*rad", 1.0), ("mm.mrad", "mm*mrad", 1.0), ("mm·mrad", "mm*mrad", 1.0),
    ("mA", "A", 1e-3), ("kA", "A", 1e3), ("MV", "V", 1e6), ("MV/m", "V/m", 1e6), ("MHz", "Hz", 1e6), ("1/s", "Hz", 1.0),
    ("%", "1", 1e-2), ("%", "", 1e-2), ("ppm", "%", 1e-4), ("um/px", "mm/px", 1e-3), ("counts/s", "counts*Hz", 1.0),
    ("V*A", "W", 1.0), ("C/s", "A", 1.0), ("J/C", "V", 1.0), ("V*s/m^2", "T", 1.0), ("c", "m/s", C),
    ("Torr", "Pa", 101325 / 760),
    (" mm ", "mm", 1.0), ("eV / c", "eV/c", 1.0), ("m ^ 2", "m^2", 1.0), ("m^(-2)", "m^-2", 1.0), ("Ω", "V/A", 1.0),
]  # fmt: skip


@pytest.mark.parametrize("a,b,factor", FACTORS)
def test_factors_are_right_to_the_last_bit_or_two(a: str, b: str, factor: float) -> None:
    assert same_dimension(a, b)
    assert conversion_factor(a, b) == pytest.approx(factor, rel=4e-16, abs=0)
    assert conversion_factor(b, a) == pytest.approx(1 / factor, rel=4e-16, abs=0)


@pytest.mark.parametrize("unit", COMMON_UNITS)
def test_a_unit_converts_to_itself_by_one(unit: str) -> None:
    assert conversion_factor(unit, unit) == 1.0


@pytest.mark.parametrize("unit", COMMON_UNITS)
def test_the_table_agrees_with_beamphysics(unit: str) -> None:
    theirs = _parse_beamphysics(unit)
    if theirs is None:
        assert unit.replace("k", "").startswith(("G", "u", "%", "px", "counts", "arb", "degC"))
        return
    ours = _parse_static(unit)
    assert ours is not None
    assert ours[1] == theirs[1]
    assert float(ours[0]) == pytest.approx(float(theirs[0]), rel=1e-15, abs=0)


@pytest.mark.parametrize(
    "unit,si,dimension",
    [
        ("sqrt(m)", 1.0, {"m": 0.5}), ("W/rad^2", 1.0, {"m": 2, "kg": 1, "s": -3}),
        ("V/(eV/c)", C / EV, {"m": 1, "s": -2, "A": -1}),
        ("mol", 1.0, {"mol": 1}), ("inch", 0.0254, {"m": 1}), ("mbar*l/s", 0.1, {"m": 2, "kg": 1, "s": -3}),
    ],
)  # fmt: skip
def test_other_units_are_asked_of_other_packages(unit: str, si: float, dimension: dict[str, float]) -> None:
    parsed = parse_unit(unit)
    assert float(parsed.si) == pytest.approx(si, rel=1e-12)
    assert {base: float(e) for base, e in parsed.dimension} == {
        base: pytest.approx(e) for base, e in dimension.items() if e
    }


@pytest.mark.parametrize(
    "a,b",
    [
        ("m", "s"), ("kG", "kG*m"), ("eV", "eV/c"), ("px", "m"), ("px", "1"), ("counts", ""), ("arb", "counts"),
        ("degC", "K"), ("degC", "degF"), ("dB", "1"), ("dBm", "W"), ("mrad", "mm"), ("T/m", "1/m^2"),
    ],
)  # fmt: skip
def test_incompatible_units_are_refused(a: str, b: str) -> None:
    assert not same_dimension(a, b)
    with pytest.raises(UnitError, match="cannot convert"):
        conversion_factor(a, b)


@pytest.mark.parametrize(
    "unit,nearest",
    [
        ("mradd", "'mrad'"), ("ma", "'mA'"), ("pc", "'pC'"), ("MM", "'mm'"), ("m;s", ""), ("a(b)", ""),
        ("Kg*m", "'kG*m'"), ("MEV", "'MeV'"), ("ev", "'eV'"), ("foo", ""), ("m*", "'m'"),
        ("/m", "'1/m'"), ("m**", ""), ("5*m", ""), ("*", ""), ("m^", "'m^2'"), ("m2", "'m^2'"), ("^2", ""),
        ("m+s", ""), ("1/0", ""), ("__import__('os')", ""), ("0", ""), ("2 mm", ""),
    ],
)  # fmt: skip
def test_a_wrong_unit_is_refused_with_the_nearest(unit: str, nearest: str) -> None:
    with pytest.raises(UnitError) as caught:
        parse_unit(unit)
    assert repr(unit) in str(caught.value)
    assert nearest in str(caught.value)


@pytest.mark.parametrize("unit", [3, b"m", ["m"]], ids=repr)
def test_a_unit_is_a_text(unit: Any) -> None:
    with pytest.raises((UnitError, TypeError)):
        parse_unit(unit)


def test_no_unit_is_a_pure_number() -> None:
    for unit in ("", None, "1", "  "):
        assert parse_unit(unit).dimension == ()
        assert conversion_factor(unit, "1") == 1.0


@pytest.mark.parametrize("value", [2.0, np.array([1.0, 2.0]), torch.tensor([1.0, 2.0], dtype=torch.float64)], ids=repr)
def test_values_of_any_kind_are_converted(value: Any) -> None:
    out = convert(value, "kG*m", "T*m")
    assert type(out) is type(value)
    assert np.allclose(out, 0.1 * np.asarray(value), rtol=1e-15)


def test_conversion_keeps_the_gradient() -> None:
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    convert(x, "mm", "m").backward()
    assert x.grad == 1e-3


def test_common_units_import_nothing() -> None:
    code = f"""
import sys
from lume_diff.variables import TorchScalarVariable
for unit in {(*COMMON_UNITS, "degrees", "kG-m", "mm-mrad", "", None)!r}:
    TorchScalarVariable(name="a", unit=unit)
print(sorted({{"beamphysics", "pint", "scipy", "cheetah", "matplotlib", "h5py"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"
