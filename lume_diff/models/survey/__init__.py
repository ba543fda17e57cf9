"""Surveys: what a model tells of its line, for whoever draws it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any
from weakref import WeakKeyDictionary

from lume_diff.models.base import LUMEModel
from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.models.facility import FacilityModel
from lume_diff.models.stage_state import settled
from lume_diff.models.staged_model import StagedModel
from lume_diff.models.survey.base import BOX, QUANTITIES, BeamAlong, BeamStop, LineElement, Survey
from lume_diff.models.survey.chain import ChainSurvey
from lume_diff.models.survey.cheetah import STRENGTH, CheetahSurvey
from lume_diff.models.survey.facility import facility_survey

__all__ = [
    "BOX",
    "QUANTITIES",
    "STRENGTH",
    "BeamAlong",
    "BeamStop",
    "LineElement",
    "Survey",
    "survey_at",
    "survey_of",
]


def survey_of(model: LUMEModel, at: Mapping[str, Any] | None = None) -> Survey | None:
    """Return what a model tells of its line, None for a model that has none, such as a network.

    Nothing is written to the model. Stages of a chain are in a row, one without elements is a box; a facility shows the
    names of its devices and its own knobs.

    Args:
        model: any model.
        at: values of inputs that are not to be those of the set-points.

    Raises:
        LumeDiffError: for input that does not fit, and where a stage fails on the way.

    Gradient:
        None: a survey is numbers to look at.

    Example:
        >>> import cheetah, torch
        >>> from lume_diff.models import CheetahModel
        >>> q1 = cheetah.Quadrupole(torch.tensor(0.2), torch.tensor(4.0), name="Q1")
        >>> line = cheetah.Segment([q1, cheetah.Drift(torch.tensor(1.0), name="D1")], name="line1")
        >>> beam = cheetah.ParticleBeam.from_parameters(num_particles=100, energy=torch.tensor(1e8))
        >>> survey = survey_of(CheetahModel(line, beam))
        >>> [(element.name, element.strength) for element in survey.elements]
        [('Q1', 4.0), ('D1', None)]
        >>> along = survey.along(["sigma_x"])
        >>> along.units["sigma_x"], bool(along.values["sigma_x"][-1] > 0.0)
        ('m', True)
    """
    inputs = model._merged(model._checked_inputs({} if at is None else at))
    inputs = _SEEN[model] = settled(inputs, _SEEN.get(model, {}))
    return survey_at(model, inputs)


#: The inputs of each model's last survey: an equal value stays the same object, so that what depends on it is kept.
_SEEN: WeakKeyDictionary[LUMEModel, dict[str, Any]] = WeakKeyDictionary()


@singledispatch
def survey_at(model: LUMEModel, inputs: Mapping[str, Any]) -> Survey | None:
    """Return what a model of one class tells; a class of yours is added by ``survey_at.register``.

    Args:
        model: the model.
        inputs: all of its inputs, checked.
    """
    return None


@survey_at.register
def _(model: CheetahModel, inputs: Mapping[str, Any]) -> Survey | None:
    return CheetahSurvey(model, inputs)


@survey_at.register
def _(model: StagedModel, inputs: Mapping[str, Any]) -> Survey | None:
    found = ChainSurvey(model, inputs, survey_at)
    return found if found.has_elements else None


@survey_at.register
def _(model: FacilityModel, inputs: Mapping[str, Any]) -> Survey | None:
    return facility_survey(model, inputs, survey_at)
