"""Conversions between magnetic fields and normalised strengths, by the rigidity at the energy of the moment.

A positive setpoint is a positive strength in the model for the beam's own particles, whatever their charge: a positive
integrated gradient focuses electrons horizontally, as LCLS counts BCTRL. ``sign=-1`` turns that round, for fields that
are counted by their poles in a machine of the other charge.

The strengths are in the unit that the model has for them, such as mrad for an angle; the formulas give them in SI.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from lume_diff.errors import UnitError, ValidationError
from lume_diff.models.facility.conversions.base import Conversion, Numbers, Place
from lume_diff.particles.constants import c_light
from lume_diff.variables.units import conversion_factor, same_dimension


def rigidity(energy: Tensor, mass: Tensor, charge: Tensor) -> Tensor:
    """Return B rho [T m] of particles.

    Args:
        energy: total energy [eV], any shape.
        mass: rest energy [eV].
        charge: in elementary charges; the sign does not matter.

    Gradient:
        Exact.

    Source:
        B rho = p / |q|.

    Example:
        >>> one = torch.tensor(1.0, dtype=torch.float64)
        >>> round(float(rigidity(1e9 * one, 510998.95 * one, one)), 4)
        3.3356
    """
    return torch.sqrt((energy - mass) * (energy + mass)) / (c_light * charge.abs())


class _OverRigidity(Conversion):
    """Share what all fields have in common: ``native = factor * setpoint / B rho``; not for use outside this file."""

    needs_energy: ClassVar[bool] = True

    #: Units of the setpoint: one with the length in it, one without; None where there is no such form.
    integrated: ClassVar[str | None]
    local: ClassVar[str | None]

    #: Unit of the strength that ``share`` is for; a model that has another one gets its multiple.
    strength: ClassVar[str]

    #: Whether the length matters for an integrated field (True), for a local one (False), or never (None).
    length_matters: ClassVar[bool | None]

    #: ``strength`` times T m per SI unit of the setpoint, for an element of 1 m.
    share: ClassVar[float] = 1.0

    sign: Literal[1, -1] = 1
    unit: str | None = None

    def numbers(self, place: Place) -> dict[str, Any]:
        """Return the factor over the rigidity, and the particle."""
        unit = self.unit if self.unit is not None else place.unit
        forms = [form for form in (self.integrated, self.local) if form is not None]
        fitting = [form for form in forms if unit and same_dimension(unit, form)]
        if not fitting:
            raise UnitError(
                f"conversion {self.kind!r} takes a field in {' or '.join(map(repr, forms))}, or a multiple such as kG "
                f"for T, got unit {unit!r}: correct the unit of the variable, or give unit in the conversion"
            )
        form = fitting[0]
        is_integrated = form == self.integrated
        needs_length = self.length_matters is is_integrated
        if place.length is None and needs_length:
            raise ValidationError(
                f"conversion {self.kind!r} of a setpoint in {unit!r} needs the length of the element: give length [m], "
                "or expose '<element>.length' in the model"
            )
        share = self.share
        if place.length and needs_length:
            share = share / place.length if is_integrated else share * place.length
        if place.native_unit:
            share = share * conversion_factor(self.strength, place.native_unit)
        return {
            "factor": self.sign * conversion_factor(unit, form) * share,
            "mass": place.mass,
            "charge": place.charge,
        }

    def to_native(self, setpoint: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return the normalised strength."""
        return setpoint * (numbers["factor"] / self._rigidity(numbers, energy))

    def to_setpoint(self, native: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return the field."""
        return native * (self._rigidity(numbers, energy) / numbers["factor"])

    def _rigidity(self, numbers: Numbers, energy: Tensor | None) -> Tensor:
        return rigidity(self.known(energy), numbers["mass"], numbers["charge"])


@final
class QuadrupoleField(_OverRigidity):
    """``k1 = G L / (L B rho)`` [1/m^2] from the integrated gradient [T, kG] or the gradient [T/m, kG/m].

    Args:
        sign: 1 where a positive setpoint focuses the beam horizontally, -1 where it defocuses.
        unit: of the setpoint; None for the variable's.

    Gradient:
        Exact, to the setpoint and the energy.
    """

    kind: Literal["quadrupole_field"] = "quadrupole_field"
    strength: ClassVar[str] = "1/m^2"
    integrated: ClassVar[str | None] = "T"
    local: ClassVar[str | None] = "T/m"
    length_matters: ClassVar[bool | None] = True


@final
class SextupoleField(_OverRigidity):
    """``k2 = S L / (L B rho)`` [1/m^3] from the integrated second derivative [T/m] or the derivative [T/m^2].

    Args:
        sign: 1 where a positive setpoint is a positive k2 for the beam, else -1.
        unit: of the setpoint; None for the variable's.

    Gradient:
        Exact, to the setpoint and the energy.
    """

    kind: Literal["sextupole_field"] = "sextupole_field"
    strength: ClassVar[str] = "1/m^3"
    integrated: ClassVar[str | None] = "T/m"
    local: ClassVar[str | None] = "T/m^2"
    length_matters: ClassVar[bool | None] = True


@final
class SolenoidField(_OverRigidity):
    """``k = B / (2 B rho)`` [1/m] from the field [T] or the integrated field [T*m, kG*m].

    Args:
        sign: 1 where a positive setpoint is a positive k for the beam, else -1.
        unit: of the setpoint; None for the variable's.

    Gradient:
        Exact, to the setpoint and the energy.
    """

    kind: Literal["solenoid_field"] = "solenoid_field"
    strength: ClassVar[str] = "1/m"
    integrated: ClassVar[str | None] = "T*m"
    local: ClassVar[str | None] = "T"
    length_matters: ClassVar[bool | None] = True
    share: ClassVar[float] = 0.5


@final
class CorrectorField(_OverRigidity):
    """``angle = B L / (B rho)`` [rad] from the integrated field [T*m, kG*m].

    Args:
        sign: 1 where a positive setpoint is a positive kick of the beam, else -1.
        unit: of the setpoint; None for the variable's.

    Gradient:
        Exact, to the setpoint and the energy.
    """

    kind: Literal["corrector_field"] = "corrector_field"
    strength: ClassVar[str] = "rad"
    integrated: ClassVar[str | None] = "T*m"
    local: ClassVar[str | None] = None
    length_matters: ClassVar[bool | None] = None


@final
class BendField(_OverRigidity):
    """``angle = B L / (B rho)`` [rad] from the field [T, kG] or the integrated field [T*m, kG*m].

    Args:
        sign: 1 where a positive setpoint is a positive angle of the beam, else -1.
        unit: of the setpoint; None for the variable's.

    Gradient:
        Exact, to the setpoint and the energy.
    """

    kind: Literal["bend_field"] = "bend_field"
    strength: ClassVar[str] = "rad"
    integrated: ClassVar[str | None] = "T*m"
    local: ClassVar[str | None] = "T"
    length_matters: ClassVar[bool | None] = False
