"""The survey of a CheetahModel: its elements, and the beam along them by maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.models.line.elements import Element
from lume_diff.models.line.knobs import GROUP, REFERENCES
from lume_diff.models.line.maps import LineMaps
from lume_diff.models.line.outputs import STATISTICS, OutputTable
from lume_diff.models.line.readings import along, read
from lume_diff.models.line.tracking import LineRun, Upstream
from lume_diff.models.survey.base import QUANTITIES, BeamAlong, LineElement, Survey
from lume_diff.models.survey.slices import sliced
from lume_diff.particles import TorchMoments, TorchParticleGroup, statistic_unit

#: The number that says how strong an element of a class is, and whether it points up or down.
STRENGTH = {
    "Quadrupole": "k1",
    "Dipole": "angle",
    "RBend": "angle",
    "Sextupole": "k2",
    "Solenoid": "k",
    "HorizontalCorrector": "angle",
    "VerticalCorrector": "angle",
    "CombinedCorrector": "horizontal_angle",
    "Cavity": "voltage",
    "TransverseDeflectingCavity": "voltage",
    "Undulator": "kx",
}


class CheetahSurvey(Survey):
    """Show the line of a CheetahModel.

    Args:
        model: the model.
        inputs: all of its inputs, checked.
    """

    def __init__(self, model: CheetahModel, inputs: Mapping[str, Any]) -> None:
        self._model, self._inputs = model, inputs
        self._line = model._line
        self._changed, self._active = model._changes(inputs)
        self._last = {element.name: place for place, element in enumerate(self._line.elements)}
        self.elements = self._placed()
        self._run: LineRun | None = None

    def _placed(self) -> tuple[LineElement, ...]:
        knobs: dict[str, list[str]] = {}
        for name in self._model.input_names:
            knobs.setdefault(name.rpartition(".")[0], []).append(name)
        found, s = [], 0.0
        for element in self._line.elements:
            length = self._number(element, "length")
            attribute = STRENGTH.get(element.kind, "")
            unit = next((a.unit for a in element.attributes if a.name == attribute), "")
            strength = self._number(element, attribute) if attribute else None
            acting = tuple(knobs.get(element.name, ()))
            found.append(
                LineElement(element.name, element.kind, s, length, strength, "", attribute, unit, element.name, acting)
            )
            s += length
        return tuple(found)

    def _number(self, element: Element, attribute: str) -> float:
        value = self._changed.get(f"{element.name}.{attribute}")
        return _one(element.number(attribute) if value is None else value)

    def along(self, quantities: Sequence[str] = QUANTITIES) -> BeamAlong | None:
        """Return statistics behind every element and, where maps allow, inside of them."""
        with torch.no_grad():
            run, last = self._fine_run()
            run.look_once()
            keys = {_KEYS.get(name, name): name for name in quantities}
            s = run.line.positions_along(self._changed)
            values = {name: along(run, key) for key, name in keys.items() if key in STATISTICS}
        if s.dim() > 1 or any(value.dim() > 1 for value in values.values()):
            return None  # a batch of settings is no one line
        behind = {name: last[place] + 1 for name, place in self._last.items()}
        units = {name: statistic_unit(STATISTICS[key]) for key, name in keys.items() if key in STATISTICS}
        return BeamAlong(_plain(s), {name: _plain(value) for name, value in values.items()}, units, behind)

    def beam(self, element: str) -> TorchParticleGroup | TorchMoments | None:
        """Return the beam behind an element."""
        if element not in self._last:
            return None
        model = self._model
        has_particles = model._beam_name == GROUP
        name = f"{element}.particles"
        with torch.no_grad():
            if self._run is None:
                self._run = model._run(self._inputs, ())
            if has_particles:
                found = read(self._run, OutputTable(self._line.elements, True).named(name), model.input_names)
            else:
                found = self._run.after(self._last[element]).moments
        return found if not found.batch_shape else None

    def _fine_run(self) -> tuple[LineRun, list[int]]:
        """Return the passage of the beam along the sliced line, and the last slice of every element."""
        model = self._model
        line, last, upstream = _fine_line(model)
        lengths_change = any(name.endswith(".length") for name in self._changed)
        if lengths_change or model.engine == "cheetah":  # a slice has no length of its own to be set
            line, last, upstream = self._line, list(range(self._line.count)), Upstream()
        beam = model._incoming.tracked([self._inputs[name] for name in (model._beam_name, *REFERENCES)])
        batch = tuple(beam.batch_shape)
        run = LineRun(
            line, beam, self._changed, self._active, model._losses, batch, upstream, model.engine == "cheetah"
        )
        return run, last


#: Sliced lines of the models that are looked at, made anew when a model has read its segment again.
_FINE: WeakKeyDictionary[CheetahModel, tuple[LineMaps, tuple[LineMaps, list[int], Upstream]]] = WeakKeyDictionary()
#: Names that outputs of a line have, by openPMD's.
_KEYS = {key: name for name, key in STATISTICS.items()}


def _fine_line(model: CheetahModel) -> tuple[LineMaps, list[int], Upstream]:
    line = model._line
    known = _FINE.get(model)
    if known is None or known[0] is not line:
        elements, last = sliced(line.elements)
        known = line, (LineMaps(elements, model.dtype, model.device), last, Upstream())
        _FINE[model] = known
    return known[1]


def _one(value: Tensor) -> float:
    """Return a number, NaN for a batch of several."""
    return float(value.detach().reshape(())) if value.numel() == 1 else math.nan


def _plain(value: Tensor) -> np.ndarray:
    return value.detach().cpu().double().numpy()
