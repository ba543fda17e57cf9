"""Parameters of one element of a PALS file: taken one by one, in Cheetah's units, with what is left over refused."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import nearest_names
from lume_diff.particles.constants import c_light, known_species


@dataclass(frozen=True)
class PalsReference:
    """What strengths and fields refer to.

    Attributes:
        energy: total reference energy of PALS [eV]; None where it is not known.
        beam_energy: that of the beam [eV], which cavities change.
        mass: rest energy of the particle [eV].
        charge: of the particle, in elementary charges.
        gains: how much both energies have changed so far [eV].
    """

    energy: float | None = None
    beam_energy: float | None = None
    mass: float | None = None
    charge: float | None = None
    gains: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of_beam(cls, beam: Any) -> PalsReference:
        """Return the reference of an incoming bunch or its moments, an unknown one without."""
        if beam is None:
            return cls()
        energy = float(beam.reference_energy.detach().flatten()[0])
        return cls(energy, energy, beam.mass, beam.charge_number)

    def started(self, parameters: Parameters) -> PalsReference:
        """Return the reference that the start of a line gives; what it leaves out stays."""
        if "ReferenceP" not in parameters.fields:
            return self
        group = parameters.group("ReferenceP")
        energy, momentum = (float(group.number(key)) or None for key in ("E_tot_ref", "pc_ref"))
        species = group.text("species_ref", "")
        group.take("time_ref", "location")
        mass, charge = self.mass, self.charge
        if species:
            if species not in known_species():
                group.wrong(f"species_ref is {species!r}{nearest_names(species, known_species())}")
                return self
            mass, charge = known_species()[species]
        if energy and momentum:
            group.wrong("has both E_tot_ref and pc_ref; give one")
        if momentum and mass:
            energy = math.hypot(momentum, mass)
        if energy and mass and energy <= mass:
            group.wrong(f"E_tot_ref is {energy:g} eV, which is not above the rest energy {mass:g} eV")
            energy = None
        energy = self.energy if energy is None else energy
        return PalsReference(energy, energy, mass, charge)

    def passed(self, reference_gain: float, beam_gain: float) -> PalsReference:
        """Return the reference behind an element that changes energies [eV]."""
        if not reference_gain and not beam_gain:
            return self
        energy = None if self.energy is None else self.energy + reference_gain
        beam = None if self.beam_energy is None else self.beam_energy + beam_gain
        return replace(
            self, energy=energy, beam_energy=beam, gains=(self.gains[0] + reference_gain, self.gains[1] + beam_gain)
        )

    def per_field(self) -> float | None:
        """Return q / P of the beam [1/(T m)]; None where it is not known."""
        if self.beam_energy is None or self.mass is None or self.charge is None:
            return None
        return self.charge * c_light / math.sqrt(self.beam_energy**2 - self.mass**2)

    def per_strength(self) -> float | None:
        """Return the momentum of PALS over that of the beam; None where it is not known."""
        if math.isclose(*self.gains, rel_tol=1e-12):
            return 1.0
        if self.energy is None or self.beam_energy is None or self.mass is None:
            return None
        return math.sqrt((self.energy**2 - self.mass**2) / (self.beam_energy**2 - self.mass**2))


class Parameters:
    """Parameters of an element, or of a group of its.

    Args:
        name: of the element.
        fields: what the file says.
        reference: at the element.
        mistakes: takes what is wrong.
        where: name of the group.
    """

    def __init__(
        self, name: str, fields: dict[str, Any], reference: PalsReference, mistakes: list[str], where: str = ""
    ) -> None:
        self.name, self.fields, self.reference = name, fields, reference
        self.reference_gain = self.beam_gain = 0.0
        self._mistakes, self._where = mistakes, where
        self._taken: set[str] = set()
        self._groups: dict[str, Parameters] = {}

    def wrong(self, problem: str) -> None:
        """Note a mistake."""
        self._mistakes.append(f"element {self.name!r}: {self._where}{' ' if self._where else ''}{problem}")

    def take(self, *keys: str) -> None:
        """Accept parameters that do not matter here."""
        self._taken.update(keys)

    def has(self, key: str) -> bool:
        """Tell whether a parameter is given."""
        return self.fields.get(key) is not None

    def number(self, *keys: str, required: bool = False) -> Tensor:
        """Return the number under one of several names, 0 where there is none."""
        given = [key for key in keys if self.has(key)]
        self.take(*keys)
        if len(given) > 1:
            self.wrong(f"has {' and '.join(given)}; give one")
        if not given:
            if required:
                self.wrong(f"has no {keys[0]}, which is required")
            return torch.tensor(0.0)
        value = self.fields[given[0]]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.wrong(f"{given[0]} is {value!r:.60}; expected a finite number (expressions are not evaluated)")
            return torch.tensor(0.0)
        return torch.tensor(float(value))

    def text(self, key: str, default: str | None = None) -> Any:
        """Return a word, as it is."""
        self.take(key)
        return self.fields.get(key, default)

    def flag(self, key: str, default: bool) -> bool:
        """Return a switch."""
        self.take(key)
        value = self.fields.get(key, default)
        if not isinstance(value, bool):
            self.wrong(f"{key} is {value!r:.60}; expected true or false")
        return value is True

    def expect(self, key: str, only: str) -> None:
        """Refuse another word than the one that Cheetah's elements mean."""
        if self.text(key, only) != only:
            self.wrong(f"{key} is {self.fields[key]!r:.60}; expected {only!r}, as Cheetah has it")

    def limits(self, key: str) -> tuple[float | None, float | None]:
        """Return two limits [m], None for an open one."""
        self.take(key)
        match self.fields.get(key, [None, None]):
            case [low, high] if all(end is None or type(end) in (int, float) for end in (low, high)):
                return None if low is None else float(low), None if high is None else float(high)
            case other:
                self.wrong(f"{key} is {other!r:.60}; expected two numbers")
                return None, None

    def group(self, key: str) -> Parameters:
        """Return a group of parameters, empty where it is not given."""
        if key not in self._groups:
            self.take(key)
            fields = self.fields.get(key) or {}
            if not isinstance(fields, dict):
                self.wrong(f"{key} is {fields!r:.60}; expected a mapping")
                fields = {}
            self._groups[key] = Parameters(self.name, fields, self.reference, self._mistakes, key)
        return self._groups[key]

    def named(self) -> dict[str, Any]:
        """Return what every element of Cheetah is given."""
        return {"name": self.name, "sanitize_name": False}

    def refuse_rest(self) -> None:
        """Note every parameter that nobody has taken and that is not empty."""
        left = [key for key, value in self.fields.items() if key not in self._taken and not _is_nothing(value)]
        if left:
            self.wrong(f"has {', '.join(map(str, left))}, which Cheetah has nothing for, or PALS does not know")
        for group in self._groups.values():
            group.refuse_rest()

    # -- fields and strengths ----------------------------------------------------------------------------------

    def strength(self, normalised: str, field: str) -> Tensor:
        """Return a strength that is given as such or as a field [T, ...], normalised to the beam's momentum."""
        if self.has(normalised) and self.has(field):
            self.wrong(f"has {normalised} and {field}; give one")
        is_field = self.has(field)
        value = self.number(field if is_field else normalised)
        self.take(normalised, field)
        if value == 0.0:
            return value
        factor = self.reference.per_field() if is_field else self.reference.per_strength()
        if factor is None:
            self.wrong(
                f"{field if is_field else normalised} needs the reference momentum and the charge here: give "
                "ReferenceP with E_tot_ref and species_ref to the BeginningEle"
            )
            return value
        return value * factor

    def curvature(self, length: Tensor) -> Tensor:
        """Return the curvature of a bend's reference [1/m], whichever way it is given."""
        ways = [("g_ref",), ("radius_ref",), ("angle_ref",), ("bend_field_ref", "Bn0_ref")]
        given = [way for way in ways if any(self.has(key) for key in way)]
        self.take(*(key for way in ways for key in way))
        if len(given) != 1:
            self.wrong(f"has {len(given)} of g_ref, radius_ref, angle_ref and bend_field_ref; give one")
            return torch.tensor(0.0)
        (way,) = given
        if way[0] == "bend_field_ref":
            return self.strength("g_ref", next(key for key in way if self.has(key)))
        value = self.number(*way)
        if way == ("angle_ref",):
            return value / length
        return 1.0 / value if way == ("radius_ref",) else value

    def multipole(self, order: int, length: Tensor, default: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the normalised strength of a magnetic multipole and its rotation [rad], skew parts included."""
        group = self.group("MagneticMultipoleP")
        normal, skew = (self._component(group, side, order, length) for side in "ns")
        if default is not None and normal == 0.0 and skew == 0.0:
            normal = default
        rotation = group.number(f"tilt{order}")
        if skew == 0.0:
            return normal, rotation
        whole = complex(float(normal), float(skew))
        return torch.tensor(abs(whole)), rotation - cmath.phase(whole) / (order + 1)

    def integrated_dipole(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """Return the angles by which a dipole field deflects [rad], of its normal and its skew part."""
        group = self.group("MagneticMultipoleP")
        tilt = group.number("tilt0")
        normal, skew = (self._component(group, side, 0, length, integrated=True) for side in "ns")
        return normal * tilt.cos() + skew * tilt.sin(), skew * tilt.cos() - normal * tilt.sin()

    def _component(self, group: Parameters, side: str, order: int, length: Tensor, integrated: bool = False) -> Tensor:
        names = [f"{letter}{side}{order}{end}" for letter in "KB" for end in ("", "L")]
        given = [name for name in names if group.has(name)]
        group.take(*names)
        if len(given) > 1:
            group.wrong(f"has {' and '.join(given)}; give one")
        if not given:
            return torch.tensor(0.0)
        is_field, is_integral = given[0].startswith("B"), given[0].endswith("L")
        pair = ("", given[0]) if is_field else (given[0], "")
        value = group.strength(*pair)
        if is_integral == integrated:
            return value
        if is_integral and length == 0.0:
            group.wrong(f"{given[0]} is an integral, but the element has no length")
            return value
        return value / length if is_integral else value * length

    def misalignment(self) -> Tensor:
        """Return how far the element is beside the beam axis [m], shape (2)."""
        group = self.group("BodyShiftP")
        return torch.stack([group.number("x_offset"), group.number("y_offset")])

    def roll(self) -> Tensor:
        """Return how far the element is turned about the beam axis [rad]."""
        return self.group("BodyShiftP").number("z_rot")


def _is_nothing(value: Any) -> bool:
    """Tell whether a parameter says nothing: it is empty, zero or none."""
    if isinstance(value, dict):
        return all(_is_nothing(entry) for entry in value.values())
    return value is None or value == 0 or value in ("", [])
