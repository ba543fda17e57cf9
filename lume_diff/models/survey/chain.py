"""The survey of a StagedModel: the lines of its stages in a row, a stage without elements as one box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch

from lume_diff.models.base import LUMEModel
from lume_diff.models.evaluation import Evaluation
from lume_diff.models.staged_model import StagedModel
from lume_diff.models.survey.base import BOX, QUANTITIES, BeamAlong, BeamStop, LineElement, Survey, joined
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import TorchScalarVariable

#: Tells of one stage at all of its inputs.
Ask = Callable[[LUMEModel, Mapping[str, Any]], Survey | None]


class ChainSurvey(Survey):
    """Show the stages of a chain as one line.

    Args:
        chain: the chain.
        inputs: all of its inputs, checked.
        ask: surveys a stage.
    """

    def __init__(self, chain: StagedModel, inputs: Mapping[str, Any], ask: Ask) -> None:
        self._given = inputs_by_stage(chain, inputs)
        self._stages = chain.stages
        self._surveys = {name: ask(stage, self._given[name]) for name, stage in self._stages.items()}
        shown = {(owner.stage, owner.name): name for name, owner in chain._owners.items()}
        counts = Counter(e.name for survey in self._surveys.values() if survey is not None for e in survey.elements)
        self._starts: dict[str, float] = {}
        self._places: dict[str, tuple[str, str]] = {}  # name in the chain -> stage, name there
        self._names: dict[str, dict[str, str]] = {}
        found: list[LineElement] = []
        for stage, survey in self._surveys.items():
            start = self._starts[stage] = found[-1].end if found else 0.0
            own = (_box(stage, self._stages[stage]),) if survey is None else survey.elements
            names = self._names[stage] = {}
            for element in own:
                name = element.name if counts[element.name] < 2 else f"{stage}/{element.name}"
                names[element.name] = name
                self._places[name] = stage, element.name
                knobs = tuple(shown[stage, knob] for knob in element.knobs if (stage, knob) in shown)
                found.append(replace(element, name=name, s=element.s + start, stage=stage, native=name, knobs=knobs))
            if survey is not None and survey.stop is not None and self.stop is None:
                variable = shown.get((stage, survey.stop.variable), survey.stop.variable)
                self.stop = BeamStop(variable, survey.stop.s + start)
        self.elements = tuple(found)

    @property
    def has_elements(self) -> bool:
        """Whether any stage has elements to show."""
        return any(survey is not None for survey in self._surveys.values())

    def along(self, quantities: Sequence[str] = QUANTITIES) -> BeamAlong | None:
        """Return statistics along the stages that know them."""
        parts = []
        for stage, survey in self._surveys.items():
            found = None if survey is None else survey.along(quantities)
            if found is not None:
                parts.append((self._starts[stage], found.renamed(self._names[stage])))
        return joined(parts, quantities)

    def beam(self, element: str) -> TorchParticleGroup | TorchMoments | None:
        """Return the beam behind an element, behind a box what the stage hands over."""
        if element not in self._places:
            return None
        stage, name = self._places[element]
        survey = self._surveys[stage]
        return survey.beam(name) if survey is not None else _handed_over(self._stages[stage], self._given[stage])


def _box(stage: str, model: LUMEModel) -> LineElement:
    knobs = (n for n in model.input_names if isinstance(model.supported_variables[n], TorchScalarVariable))
    return LineElement(stage, BOX, 0.0, 0.0, stage=stage, native=stage, knobs=tuple(knobs))


def _handed_over(model: LUMEModel, inputs: Mapping[str, Any]) -> TorchParticleGroup | TorchMoments | None:
    name = next((name for name in ("final_particles", "final_moments") if name in model.output_names), None)
    if name is None:
        return None
    with torch.no_grad():
        found: TorchParticleGroup | TorchMoments = model._compute(dict(inputs), [name])[name]
    return found if not found.batch_shape else None


#: The last evaluation of each surveyed chain: stages whose inputs have not changed since are not run again.
_LAST: WeakKeyDictionary[StagedModel, Evaluation] = WeakKeyDictionary()


def inputs_by_stage(chain: StagedModel, inputs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what every stage of a chain runs with, what earlier stages hand over included.

    Args:
        chain: the chain.
        inputs: all of its inputs, checked.
    """
    givers = set(chain._joined.values())
    wanted = [name for name, owner in chain._owners.items() if owner in givers]
    previous = _LAST.get(chain) or chain._evaluation
    with torch.no_grad():
        evaluation = chain._evaluate(dict(inputs), wanted, previous)
        _LAST[chain] = evaluation
        return {name: chain._stage_inputs(evaluation.state, name) for name in chain.stages}
