"""What a mapping means for one model: which names there are on both sides, and where energies and lengths come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import LumeDiffError, UnknownVariableError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.models.facility.conversions import Conversion, Linear, Place
from lume_diff.models.facility.entries import Energy, Fixed, Free, Setpoint
from lume_diff.models.facility.groups import Link
from lume_diff.models.facility.mapping import FacilityMapping
from lume_diff.models.facility.mistakes import Mistakes
from lume_diff.models.facility.sources import Source, source_of
from lume_diff.models.facility.templates import Expansion, Placed
from lume_diff.particles.constants import SpeciesConstants, species_constants
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable, conversion_factor

#: Fields of an entry that its variable has too.
_COMMON = ("precision", "value_range", "warning_range", "alarm_range", "scale")


@dataclass
class Binding:
    """A mapping, the model that it is for, and everything that is wrong with their match.

    Attributes:
        model: the model inside.
        mapping: the mapping.
        entries: by control-system name.
        mistakes: what is wrong.
        variables: of the facility, by name.
        sources: of energy that conversions use.
        named: variables that hold an energy, with True where it is a native one.
        factors: of these, to eV.
    """

    model: LUMEModel
    mapping: FacilityMapping
    expansion: Expansion
    mistakes: Mistakes
    variables: dict[str, Variable] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    named: dict[str, bool] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries = self.expansion.entries
        self.natives = self.model.supported_variables
        self.native_inputs = frozenset(self.model.input_names)
        constants = SpeciesConstants(1.0, 1.0)  # For a species that is not known: the rest is still looked at.
        with self.mistakes.noted(("species",)):
            constants = species_constants(self.mapping.species)
        self.mass, self.charge = constants.mass, constants.charge
        self._known: dict[str, Tensor] = {}

    def of_kind(self, *kinds: type) -> Iterator[tuple[str, Any, Placed]]:
        """Yield name, entry and place of all entries of some kinds."""
        for name, placed in self.entries.items():
            if isinstance(placed.entry, kinds):
                yield name, placed.entry, placed

    def add(self, placed: Placed, name: str, make: Any, **fields: Any) -> None:
        """Make the variable of an entry, or note why there is none."""
        with self.mistakes.noted(placed.where, name):
            self.variables[name] = make(name=name, **fields)

    def kept(self) -> list[str]:
        """Return the native names that are shown as they are; a pattern that fits none is a mistake."""
        found: dict[str, None] = {}
        for index, pattern in enumerate(self.mapping.keep):
            fitting = [name for name in self.natives if fnmatchcase(name, pattern)]
            if not fitting:
                near = nearest_names(pattern, self.natives)
                self.mistakes.add(("keep", index), f"the model has no variable {pattern!r}{near}")
            found |= dict.fromkeys(fitting)
        return list(found)

    def native(self, name: str, placed: Placed, of: str, among: Iterable[str], what: str) -> Variable | None:
        """Return a variable of the model, or note that it has none of that name."""
        if name in among:
            return self.natives[name]
        near = nearest_names(name, among)
        self.mistakes.add(placed.where, f"the model has no {what} {name!r}{near}", of)
        return None

    # -- conversions ---------------------------------------------------------------------------------------------------

    def link(self, name: str, placed: Placed, action: Any, native: Variable, unit: str | None) -> Link | None:
        """Return the conversion between a variable of the facility and a native one, or note why there is none.

        Args:
            name: of the variable of the facility.
            placed: its entry.
            action: what says native, conversion, length, energy and element.
            native: the variable of the model.
            unit: of the facility's number; None for the native one.
        """
        element = action.element or native.name.rpartition(".")[0]
        conversion: Conversion = action.conversion or Linear()
        place = Place(
            unit=native.unit if unit is None else unit,
            native_unit=native.unit,
            length=self._length(action.length, element),
            mass=self.mass,
            charge=self.charge,
            value_range=getattr(placed.entry, "value_range", None),
        )
        with self.mistakes.noted(placed.where, name):
            numbers = conversion.numbers(place)
            source = self._source(action.energy or self.mapping.energy, element) if conversion.is_live else None
            return Link(name, native.name, conversion, numbers, source, len(getattr(native, "shape", ())))
        return None

    def _length(self, given: float | None, element: str) -> float | None:
        name = f"{element}.length"
        if given is not None or name not in self.native_inputs:
            return given
        value = self.model._setpoints[name]
        return None if value is None or value.numel() != 1 or float(value) <= 0.0 else float(value.detach())

    def _source(self, energy: Energy, element: str) -> Source:
        """Return where an energy comes from.

        Raises:
            LumeDiffError: if there is none.
        """
        kind, what = source = source_of(energy, element)
        if source in self.sources:
            return source
        if kind == "model":
            try:
                self._energy_at(what)
            except LumeDiffError as error:
                raise UnknownVariableError(
                    f"the conversion needs the energy at {what!r}, which the model does not give ({error}): name an "
                    "energy variable or a constant"
                ) from None
        elif kind == "variable":
            source = self._named_source(what)
        if source not in self.sources:
            self.sources.append(source)
        return source

    def _energy_at(self, element: str) -> Tensor:
        """Return the reference energy [eV] at an element, of all elements with one question where that works."""
        if not self._known:
            elements = list(dict.fromkeys(n.rpartition(".")[0] for n in self.model.input_names if "." in n))
            with suppress(LumeDiffError):  # Where not all of them have one, each is asked for by itself.
                self._known = self.model.reference_energy(None, elements)
        if element not in self._known:
            self._known = {**self._known, **self.model.reference_energy(None, [element])}
        return self._known[element]

    def energy_of(self, source: Source) -> Tensor | None:
        """Return one energy [eV] where the model stands, None where only a variable of the facility tells."""
        kind, what = source
        if kind == "constant":
            return torch.tensor(what, dtype=torch.float64)
        if kind == "variable":
            value = self.model._setpoints[what] if self.named[what] else None
            return None if value is None else value.detach().reshape(-1)[0].double() * self.factors[what]
        return self._energy_at(what).detach().reshape(-1)[0].double()

    def _named_source(self, name: str) -> Source:
        entry: Any = self.entries[name].entry if name in self.entries else None
        if isinstance(entry, Fixed) and isinstance(entry.value, int | float) and not isinstance(entry.value, bool):
            return "constant", entry.value * conversion_factor(entry.unit, "eV")
        is_native = entry is None and name in self.native_inputs
        variable = self.natives[name] if is_native else None
        if not is_native and not isinstance(entry, Setpoint | Free):
            known = [n for n, p in self.entries.items() if isinstance(p.entry, Setpoint | Free | Fixed)]
            raise UnknownVariableError(
                f"the energy is to be that of {name!r}, which is no input and no constant of the facility"
                f"{nearest_names(name, known)}"
            )
        if variable is not None:
            unit = variable.unit
        elif entry.unit is None and isinstance(entry, Setpoint) and entry.actions()[0].native in self.natives:
            unit = self.natives[entry.actions()[0].native].unit
        else:
            unit = entry.unit or ""
        self.factors[name] = conversion_factor(unit, "eV")
        self.named[name] = is_native
        return "variable", name


def is_number(variable: Variable | None) -> bool:
    """Tell whether a variable's values are numbers that can be converted."""
    return isinstance(variable, TorchScalarVariable | TorchNDVariable)


def is_the_same(link: Link) -> bool:
    """Tell whether a conversion changes nothing."""
    return isinstance(link.conversion, Linear) and link.numbers == {"scale": 1.0, "offset": 0.0}


def fields_of(entry: Any, unit: str) -> dict[str, Any]:
    """Return the fields that the variable of an entry has from it."""
    found = {key: getattr(entry, key) for key in _COMMON if getattr(entry, key, None) is not None}
    return {"unit": unit, "description": entry.description, **found}
