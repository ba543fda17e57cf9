"""Conversions: there and back to the last digits, with every derivative, and none that is not monotone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import PchipInterpolator

from lume_diff.errors import UnitError, ValidationError
from lume_diff.models.facility import (
    BendField,
    Chain,
    Conversion,
    CorrectorField,
    Linear,
    Place,
    Polynomial,
    QuadrupoleField,
    SextupoleField,
    SolenoidField,
    Table,
    rigidity,
)
from lume_diff.registry import every_plugin

F64 = torch.float64
KG = Place("kG", "1/m^2", 0.1)
CURRENT = Table(setpoints=(-10.0, -4.0, 0.0, 3.0, 10.0), natives=(-9.0, -4.2, 0.1, 3.0, 8.0))
CASES: dict[str, tuple[Conversion, Place, tuple[float, float]]] = {
    "linear": (Linear(scale=-3.0, offset=2.0), Place(), (-5.0, 5.0)),
    "units": (Linear(), Place("mm", "m"), (-5.0, 5.0)),
    "polynomial": (Polynomial(coefficients=(0.3, 2.0, -0.1, 0.02), range=(-6.0, 6.0)), Place(), (-6.0, 6.0)),
    "falling-polynomial": (Polynomial(coefficients=(0.3, -2.0, 0.05), range=(-6.0, 6.0)), Place(), (-6.0, 6.0)),
    "table": (CURRENT, Place(), (-10.0, 10.0)),
    "falling-table": (Table(setpoints=(0.0, 1.0, 3.0), natives=(5.0, 4.9, -7.0)), Place(), (0.0, 3.0)),
    "two-points": (Table(setpoints=(0.0, 2.0), natives=(1.0, 4.0)), Place(), (0.0, 2.0)),
    "quadrupole_field": (QuadrupoleField(), KG, (-5.0, 5.0)),
    "quadrupole-gradient": (QuadrupoleField(sign=-1), Place("T/m", "1/m^2"), (-5.0, 5.0)),
    "sextupole_field": (SextupoleField(), Place("kG/m", "1/m^3", 0.1), (-5.0, 5.0)),
    "solenoid_field": (SolenoidField(), Place("T", "1/m"), (0.0, 2.0)),
    "corrector_field": (CorrectorField(), Place("kG*m", "rad"), (-0.05, 0.05)),
    "bend_field": (BendField(), Place("T", "rad", 0.5), (0.0, 1.0)),
    "chain": (Chain(steps=(CURRENT, QuadrupoleField(unit="kG"))), Place("A", "1/m^2", 0.1), (-10.0, 10.0)),
}
ALL = pytest.mark.parametrize("conversion, place, limits", CASES.values(), ids=CASES)


def test_every_installed_kind_has_a_case() -> None:
    assert set(every_plugin("conversions")) <= {type(conversion) for conversion, _, _ in CASES.values()}


def energy_of(conversion: Conversion, value: float = 1.35e8) -> torch.Tensor | None:
    return torch.tensor(value, dtype=F64) if conversion.is_live else None


@ALL
def test_there_and_back(conversion: Conversion, place: Place, limits: tuple[float, float]) -> None:
    for energy in (energy_of(conversion), energy_of(conversion, 4e9)):
        x = torch.linspace(*limits, 501, dtype=F64)
        native = conversion.forward(x, energy, place)
        back = conversion.inverse(native, energy, place)
        assert float((back - x).abs().max()) <= 1e-12 * (limits[1] - limits[0])
        assert len({float(step) for step in native.diff().sign()}) == 1


@ALL
def test_derivatives(conversion: Conversion, place: Place, limits: tuple[float, float]) -> None:
    x = (limits[0] + (limits[1] - limits[0]) * torch.tensor([0.11, 0.43, 0.87], dtype=F64)).requires_grad_()
    native = conversion.forward(x, energy_of(conversion), place).detach().requires_grad_()
    for function, at in ((conversion.forward, x), (conversion.inverse, native)):

        def of(value: torch.Tensor, energy: Any = None, function: Any = function) -> torch.Tensor:
            return function(value, energy_of(conversion) if energy is None else energy * 1e8, place)

        assert torch.autograd.gradcheck(of, (at,), check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(of, (at,), atol=1e-4)
        mapped = torch.func.vmap(torch.func.grad(of))(at.detach())
        assert torch.allclose(mapped, torch.autograd.grad(of(at).sum(), at)[0], rtol=1e-9)
        if conversion.is_live:
            energy = torch.tensor(1.35, dtype=F64, requires_grad=True)
            assert torch.autograd.gradcheck(of, (at, energy), check_forward_ad=True)


def test_table_is_scipys_spline() -> None:
    x = np.linspace(-10.0, 10.0, 301)
    spline = PchipInterpolator(CURRENT.setpoints, CURRENT.natives)
    assert np.allclose(CURRENT.forward(torch.tensor(x)).numpy(), spline(x), rtol=0, atol=1e-12)


def test_outside_of_the_range_the_tangent_goes_on() -> None:
    for conversion in (CURRENT, CASES["polynomial"][0]):
        x = torch.tensor([-15.0, -12.0, 12.0, 15.0], dtype=F64)
        assert torch.allclose(conversion.inverse(conversion.forward(x)), x, rtol=1e-12)
        y = conversion.forward(torch.tensor([20.0, 21.0, 22.0], dtype=F64))
        assert torch.allclose(y[2] - y[1], y[1] - y[0])


def test_lcls_quadrupole() -> None:
    """1 kG at 135 MeV over 0.108 m, worked out by hand: B rho = 0.33356 * sqrt(E^2 - m^2) [GeV] * 10 kG m."""
    p = np.sqrt(0.135**2 - 0.00051099895**2)
    expected = 1.0 / 0.108 / (33.35640951981521 * p)
    found = QuadrupoleField().forward(1.0, 1.35e8, Place("kG", "1/m^2", 0.108))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    one = torch.tensor(1.0, dtype=F64)
    assert float(rigidity(1e9 * one, 0.0 * one, -2.0 * one)) == pytest.approx(3.3356409519815204 / 2, rel=1e-14)


@pytest.mark.parametrize(
    "conversion, place, words",
    [
        (Linear(scale=0.0), Place(), "not strictly monotone"),
        (Polynomial(coefficients=(0.0, 1.0, -0.2), range=(0.0, 5.0)), Place(), "not strictly monotone"),
        (Polynomial(coefficients=(0.0, 0.0, 0.0, 1.0), range=(-1.0, 1.0)), Place(), "slope vanishes"),
        (Polynomial(coefficients=(0.0, 1.0)), Place(), "finite range"),
        (Table(setpoints=(0.0, 1.0, 2.0), natives=(0.0, 2.0, 1.0)), Place(), "not strictly monotone"),
        (Table(setpoints=(0.0, 1.0, 1.0), natives=(0.0, 2.0, 3.0)), Place(), "not strictly monotone"),
        (Table(setpoints=(0.0, 1.0), natives=(0.0, 2.0, 3.0)), Place(), "give as many"),
        (QuadrupoleField(), Place("kG", "1/m^2"), "needs the length"),
        (BendField(), Place("T", "rad"), "needs the length"),
    ],
    ids=lambda value: value.kind if isinstance(value, Conversion) else None,
)
def test_refused(conversion: Conversion, place: Place, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        conversion.numbers(place)


def test_wrong_units_are_refused() -> None:
    with pytest.raises(UnitError, match=r"'corrector_field' takes a field in 'T\*m'"):
        CorrectorField().numbers(Place("T", "rad"))
    with pytest.raises(UnitError, match="dimensions differ"):
        Linear().numbers(Place("T", "m"))


def test_whole_numbers_are_taken_as_numbers() -> None:
    for three in (3, torch.tensor(3), np.int64(3)):
        assert float(Linear(scale=0.5, offset=0.25).forward(three)) == 1.75
        assert float(Linear(scale=0.5, offset=0.25).inverse(three)) == 5.5


@pytest.mark.parametrize(
    "conversion, place, other, factor",
    [
        (QuadrupoleField(), KG, "1/cm^2", 1e-4),
        (SextupoleField(), Place("kG/m", "1/m^3", 0.1), "1/cm^3", 1e-6),
        (SolenoidField(), Place("T", "1/m"), "1/cm", 1e-2),
        (CorrectorField(), Place("kG*m", "rad"), "mrad", 1e3),
        (BendField(), Place("T", "rad", 0.5), "deg", 180.0 / np.pi),
        (Chain(steps=(CURRENT, CorrectorField(unit="T*m"))), Place("A", "rad"), "mrad", 1e3),
    ],
    ids=lambda value: value.kind if isinstance(value, Conversion) else None,
)
def test_a_strength_is_in_the_models_unit(conversion: Conversion, place: Place, other: str, factor: float) -> None:
    there = replace(place, native_unit=other)
    expected = factor * conversion.forward(1.5, 1.35e8, place)
    assert torch.allclose(conversion.forward(1.5, 1.35e8, there), expected, rtol=1e-14)
    assert float(conversion.inverse(expected, 1.35e8, there)) == pytest.approx(1.5, rel=1e-14)
    with pytest.raises(UnitError, match="dimensions differ"):
        conversion.numbers(replace(place, native_unit="s"))


def test_a_strength_in_the_middle_of_a_chain_is_not_the_models_number() -> None:
    chain = Chain(steps=(QuadrupoleField(), Linear(scale=0.1)))  # k1 times a length
    place = Place("kG", "1/m", 0.1)
    assert torch.allclose(
        chain.forward(1.5, 1.35e8, place), 0.1 * QuadrupoleField().forward(1.5, 1.35e8, KG), rtol=1e-14
    )


def test_an_energy_must_be_given() -> None:
    with pytest.raises(ValidationError, match="needs the energy"):
        QuadrupoleField().forward(1.0, place=KG)
