"""The survey of a FacilityModel: the line inside, under the control system's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lume_diff.models.base import LUMEModel
from lume_diff.models.evaluation import ModuleMarks
from lume_diff.models.facility import FacilityModel
from lume_diff.models.facility.inputs import Natives
from lume_diff.models.survey.base import QUANTITIES, BeamAlong, BeamStop, LineElement, Survey
from lume_diff.particles import TorchMoments, TorchParticleGroup

#: Tells of the model inside at all of its inputs.
Ask = Callable[[LUMEModel, Mapping[str, Any]], Survey | None]


class FacilitySurvey(Survey):
    """Show the line of the model inside with the names of devices and the facility's own knobs.

    Args:
        facility: the facility.
        inputs: all of its inputs, checked.
        inside: the survey of the model inside.
    """

    def __init__(self, facility: FacilityModel, inputs: Mapping[str, Any], inside: Survey) -> None:
        self._inside = inside
        devices = _devices(facility)
        self._names: dict[str, str] = {}
        found = []
        for element in inside.elements:
            name = devices.get(element.native, element.name)
            self._names[element.name] = name
            acting = [shown for knob in element.knobs for shown in facility._inputs.names_of(knob)]
            knobs = tuple(dict.fromkeys(acting))
            found.append(replace(element, name=name, native=element.name, knobs=knobs))
        self.elements = tuple(found)
        self.stop = _stop(facility, inputs, self.elements) or inside.stop

    def along(self, quantities: Sequence[str] = QUANTITIES) -> BeamAlong | None:
        """Return statistics along the line inside; behind an inserted screen those of the beam that would be there."""
        found = self._inside.along(quantities)
        return None if found is None else found.renamed(self._names)

    def beam(self, element: str) -> TorchParticleGroup | TorchMoments | None:
        """Return the beam behind an element, by the name of its device or by its own."""
        own = next((native for native, name in self._names.items() if element in (native, name)), None)
        return None if own is None else self._inside.beam(own)


def facility_survey(facility: FacilityModel, inputs: Mapping[str, Any], ask: Ask) -> FacilitySurvey | None:
    """Return the survey of a facility, None where the model inside has no line."""
    now = ModuleMarks(facility)
    known, natives = _LAST.get(facility, (None, None))
    rest = facility._resting()
    with torch.no_grad():
        natives = facility._inputs.compute(facility.model, inputs, natives if known == now else rest, rest)
        _LAST[facility] = now, natives
        inside = ask(facility.model, facility.model._merged(natives.values))
    return None if inside is None else FacilitySurvey(facility, inputs, inside)


#: The native inputs of facilities that are looked at, and the state of the model that they go with.
_LAST: WeakKeyDictionary[FacilityModel, tuple[ModuleMarks, Natives]] = WeakKeyDictionary()


def _devices(facility: FacilityModel) -> dict[str, str]:
    """Return the device that each element is in the control system: what the names of its variables begin with."""
    names: dict[str, list[str]] = {}
    plan = facility._inputs
    for native in plan.natives:
        for name in plan.names_of(native):
            names.setdefault(native.rpartition(".")[0], []).append(name)
    for name, shown in facility._outputs.shown.items():
        if name in facility.supported_variables and name != shown.native:
            names.setdefault(shown.native.rpartition(".")[0], []).append(name)
    separator = facility.mapping.separator
    return {element: device for element, some in names.items() if element and (device := _common(some, separator))}


def _common(names: Iterable[str], separator: str) -> str:
    """Return what names have in common up to a separator; without their last part where that is all of one."""
    parts = [name.split(separator)[:-1] for name in names]
    shared = []
    for same in zip(*parts, strict=False):
        if len(set(same)) > 1:
            break
        shared.append(same[0])
    return separator.join(shared)


def _stop(facility: FacilityModel, inputs: Mapping[str, Any], elements: Sequence[LineElement]) -> BeamStop | None:
    """Return the first inserted thing that ends the beam."""
    variable = facility._outputs.stops.stopping(inputs)
    if variable is None:
        return None
    device = variable.rpartition(facility.mapping.separator)[0]
    places = [e.end for e in elements if variable in e.knobs or e.name == device]
    return BeamStop(variable, places[0]) if places else None
