"""ImpactXSimulator: a lattice and what is read from it, run by the one ImpactX of the process."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lume_diff.blackbox.codes.optics_names import MATRIX
from lume_diff.blackbox.codes.plain_bunches import INCOMING
from lume_diff.blackbox.codes.simulator import CodeSimulator
from lume_diff.blackbox.impactx.bunch import Incoming
from lume_diff.blackbox.impactx.engine import Engine, Reference, Snapshot
from lume_diff.blackbox.impactx.knobs import Knob, Knobs
from lume_diff.blackbox.impactx.lattice import (
    ACCELERATING,
    checked_elements,
    element_data,
    element_from_data,
    impactx,
    name_of,
)
from lume_diff.errors import LatticeError, ValidationError

Array = np.ndarray


@dataclass(frozen=True)
class Recipe:
    """What a simulator is made of; it can be pickled.

    Attributes:
        lattice: elements as data, or the function that makes them.
        controls: names of the numbers that are set.
        bunches: bunch output -> place, counted in elements before it.
        places: other output -> (place, quantity).
        settings: attributes of ``impactx.ImpactX``.
        reference_energy: total, at the start, unless an input says otherwise [eV].
    """

    lattice: Sequence[Mapping[str, Any]] | Callable[[], Sequence[Any]]
    controls: Sequence[str] = ()
    bunches: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference_energy: float = 0.0

    def make(self) -> Any:
        """Return a new lattice, as ImpactX's list of elements."""
        if callable(self.lattice):
            elements = checked_elements(self.lattice())
        else:
            elements = [element_from_data(data) for data in self.lattice]
        return impactx().elements.KnownElementsList(elements)


class Factory:
    """Make simulators that share one lattice, so that what was changed on it outlives a failed run.

    Args:
        recipe: of all of them.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._lattice: Any = None
        self._edits = 0

    def __call__(self) -> ImpactXSimulator:
        if self._lattice is None:
            self._lattice = self._recipe.make()
            self._edits = self._lattice.generation
        return ImpactXSimulator(self._recipe, self._lattice, self._edits)

    def __getstate__(self) -> dict[str, Any]:
        recipe = self._recipe
        if self._lattice is not None and not callable(recipe.lattice):
            recipe = replace(recipe, lattice=[element_data(element) for element in self._lattice])
        return {"_recipe": recipe, "_lattice": None, "_edits": 0}


class ImpactXSimulator(CodeSimulator):
    """Track bunches through a lattice with the one ImpactX of the process.

    Args:
        recipe: lattice, controls and outputs.
        lattice: made of the recipe; None for a new one.
        edits: how many elements had been put in or taken out when it was made.
    """

    def __init__(self, recipe: Recipe, lattice: Any = None, edits: int | None = None) -> None:
        impactx()
        self._recipe = recipe
        self._lattice = recipe.make() if lattice is None else lattice
        self._edits = self._lattice.generation if edits is None else edits
        knobs = Knobs(self.data()).choose(recipe.controls)
        # Lengths are set first: a bending angle is kept as a radius, which goes with the length.
        lengths_first = sorted(knobs, key=lambda knob: knob.attributes[0].name not in ("length", "ds"))
        self._knobs: dict[str, Knob] = {knob.name: knob for knob in lengths_first}

    # -- the native object -----------------------------------------------------------------------------------

    @property
    def native(self) -> Any:
        """The lattice, an ``impactx.elements.KnownElementsList``, at the baseline."""
        return self._lattice

    def data(self) -> list[dict[str, Any]]:
        """Return the lattice as data."""
        return [element_data(element) for element in self._lattice]

    @property
    def baseline(self) -> dict[str, float]:
        """The controls as they stand on the lattice now."""
        self._check_edits()
        return {name: self._value(knob) for name, knob in self._knobs.items()}

    def _value(self, knob: Knob) -> float:
        return knob.attributes[0].read(element_data(self._lattice[knob.positions[0]]))

    def _check_edits(self) -> None:
        if self._lattice.generation != self._edits:
            raise LatticeError("elements were put into the lattice or taken out of it: build a new model")

    @property
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""
        return tuple(self._first_places())

    def _first_places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for place, element in enumerate(self._lattice):
            name = name_of(element)
            if name is not None:
                found.setdefault(name, place)
        return found

    @property
    def accelerated(self) -> tuple[str, ...]:
        """Names of the elements behind the first one that changes the reference energy."""
        places = [place for place, element in enumerate(self._lattice) if type(element).__name__ in ACCELERATING]
        return tuple(name for name, place in self._first_places().items() if places and place > places[0])

    def energies(self, inputs: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
        """Return the reference energy [eV] at the entrance of elements."""
        elements, places = self._set(inputs), self._first_places()
        reference = Incoming(inputs[INCOMING], inputs["reference_energy"], inputs["reference_time"]).reference
        with Engine.at_work({**self._recipe.settings, "space_charge": "off"}) as engine:
            return {name: engine.energy_behind(elements[: places[name]], reference) for name in names}

    @property
    def reference_energy(self) -> float:
        """Total energy of the reference particle at the start [eV]."""
        return self._recipe.reference_energy

    # -- runs ------------------------------------------------------------------------------------------------

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Track the incoming bunch.

        Raises:
            ValidationError: for numbers that are not finite, and for a bunch that cannot start.
            LatticeError: for a lattice with other elements than at the start.
        """
        for name, value in inputs.items():
            if isinstance(value, (float, np.floating)) and not np.isfinite(value):
                raise ValidationError(f"{name!r} is {value!r}: ImpactX would answer with plausible numbers")
        elements = self._set(inputs)
        incoming = Incoming(inputs[INCOMING], inputs["reference_energy"], inputs["reference_time"])
        bunches = {name: self._recipe.bunches[name] for name in outputs if name in self._recipe.bunches}
        places = {name: self._recipe.places[name] for name in outputs if name in self._recipe.places}
        looks = {*bunches.values(), *(place for place, quantity in places.values() if quantity != MATRIX)}
        seen: dict[int, Snapshot] = {}
        if looks:
            with Engine.at_work(self._recipe.settings) as engine:
                seen = engine.track(
                    elements, incoming.reference, incoming.rows, incoming.weight, sorted(looks | {len(elements)})
                )
        found: dict[str, Any] = {name: incoming.behind(seen[place]) for name, place in bunches.items()}
        for name, (place, quantity) in places.items():
            if quantity == MATRIX:
                found[name] = self._matrix(elements[:place], incoming.reference)
            else:
                found[name] = seen[place].s if quantity == "s" else incoming.reference.mass * seen[place].gamma
        return found

    def _set(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Return the elements with the controls at their values; those on the lattice stay as they are."""
        self._check_edits()
        elements = list(self._lattice)
        changed: dict[int, dict[str, Any]] = {}
        for name, knob in self._knobs.items():
            for position, attribute in zip(knob.positions, knob.attributes, strict=True):
                data = changed.get(position) or element_data(elements[position])
                if attribute.read(data) != float(inputs[name]):
                    changed[position] = {**data, **attribute.write(data, float(inputs[name]))}
        for position, data in changed.items():
            elements[position] = element_from_data(data)
        # Monitors write files; here they only mark a place.
        marker = impactx().elements.Marker
        return [marker(e.name) if type(e).__name__ == "BeamMonitor" else e for e in elements]

    @staticmethod
    def _matrix(elements: Sequence[Any], reference: Reference) -> Array:
        if not elements:
            return np.eye(6)
        return np.array(impactx().elements.KnownElementsList(elements).transfer_map(reference.particle()).to_numpy())

    def close(self) -> None:
        """Finalise ImpactX; another model of this process starts it again when it runs."""
        Engine.stop()

    def identity(self) -> str:
        """Return ImpactX's version and a hash of lattice, settings and outputs."""
        recipe = self._recipe
        parts: list[Any] = [self.data(), sorted(recipe.settings.items()), recipe.bunches, recipe.places]
        if callable(recipe.lattice):
            parts.append(_source(recipe.lattice))
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        return f"ImpactX {impactx().__version__}:{digest}"


def _source(function: Callable[..., Any]) -> str:
    """Return the text of a function, which may make elements that act through Python functions."""
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return getattr(function, "__qualname__", type(function).__qualname__)
