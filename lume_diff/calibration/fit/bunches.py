"""Bunches: a model with other particles, by which a fit sees what it owes to where its own happen to be."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import ParticleGroupVariable

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel


def effective_particles(model: LUMEModel) -> float | None:
    """Return how many macroparticles of equal weight say as much as those that a model tracks; None if it has none."""
    for name in _bunches(model, [*model.input_names, *model.output_names]):
        bunch = model.get(name)
        if bunch is not None:
            weight = (bunch.weight * bunch.alive).detach()
            return float((weight.sum(-1).square() / weight.square().sum(-1)).min())
    return None


def is_drawn(model: LUMEModel) -> bool:
    """Tell whether a model draws its particles itself, so that others of the same moments can take their place."""
    return any(isinstance(part, BunchFromMoments) for part in model.modules())


def other_bunches(model: LUMEModel, count: int) -> Iterator[tuple[LUMEModel, dict[str, Any]]]:
    """Yield a model with other particles, and inputs that it needs for that, again and again.

    A bunch that is drawn from moments is drawn with another seed. One that was given is resampled: each particle counts
    as often as it is drawn, with replacement.

    Args:
        model: stays as it is; what is yielded is one copy of it, good until the next one.
        count: how often.

    Source:
        B. Efron, Ann. Statist. 7, 1 (1979), doi:10.1214/aos/1176344552.
    """
    other = copy.deepcopy(model)
    drawn = [part for part in other.modules() if isinstance(part, BunchFromMoments)]
    seeds = [part.seed for part in drawn]
    given = {name: model.get(name) for name in _bunches(model, model.input_names)}
    for index in range(1, count + 1):
        # Not the next numbers, which somebody may have taken for the bunch that made the data.
        for part, seed in zip(drawn, seeds, strict=True):
            part.seed = int(np.random.SeedSequence((seed, index)).generate_state(1)[0])
        other.refresh()
        yield other, {name: _resampled(bunch, index) for name, bunch in given.items() if bunch is not None}


def _bunches(model: LUMEModel, names: Any) -> list[str]:
    return [name for name in names if isinstance(model.supported_variables[name], ParticleGroupVariable)]


def _resampled(bunch: TorchParticleGroup, seed: int) -> TorchParticleGroup:
    number = bunch.weight.shape[-1]
    times = np.random.default_rng(seed).multinomial(number, np.full(number, 1.0 / number))
    return bunch._with(weight=bunch.weight.detach() * torch.as_tensor(times, device=bunch.weight.device))
