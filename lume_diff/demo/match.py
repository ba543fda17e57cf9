"""Quadrupole settings for a round beam, by gradient descent through the chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lume_diff.demo.line import image_at, sizes_on_image
from lume_diff.models import StagedModel

TOLERANCE = 1e-3  # of the requested size
_CLOSE = 1e-5
_LEAST_CHARGE = 0.99
_ITERATIONS = 60


@dataclass(frozen=True)
class Iteration:
    """What the screen shows after one iteration.

    Attributes:
        loss: sum of the squared logarithms of size over target.
        sigma_x, sigma_y: on the image [m].
        charge: share of the bunch that the screen shows.
    """

    loss: float
    sigma_x: float
    sigma_y: float
    charge: float

    def error(self, target: float) -> float:
        """How far the worse plane is from the requested size, relative."""
        return max(abs(self.sigma_x / target - 1.0), abs(self.sigma_y / target - 1.0))


@dataclass(frozen=True)
class Matching:
    """The outcome.

    Attributes:
        target: requested rms radius [m].
        before, after: quadrupole settings [1/m^2].
        history: start and every iteration.
        runs: of stages.
    """

    target: float
    before: dict[str, float]
    after: dict[str, float]
    history: tuple[Iteration, ...]
    runs: int

    @property
    def is_round(self) -> bool:
        """Whether both sizes are what was asked for, with the whole beam on the screen."""
        last = self.history[-1]
        return last.error(self.target) < TOLERANCE and last.charge > _LEAST_CHARGE


def match_round(
    line: StagedModel,
    settings: Mapping[str, float],
    target: float,
    progress: Callable[[int, Iteration], None] = lambda number, iteration: None,
) -> Matching:
    """Find quadrupole settings that give a round beam on the screen.

    L-BFGS on the squared logarithms of both sizes over the target, with the gradient of the image through all stages.

    Args:
        line: the chain.
        settings: to start from [1/m^2].
        target: rms size in x and y [m].
        progress: is called with the number of each iteration and what the screen shows.

    Returns:
        The settings and how they were reached; the line is left at them.

    Source:
        J. Nocedal and S. J. Wright, Numerical Optimization, 2nd ed., algorithms 7.5 and 3.5,
        doi:10.1007/978-0-387-40065-5.
    """
    runs = line.runs
    names = list(settings)
    knobs = torch.tensor(list(settings.values()), dtype=torch.float64, requires_grad=True)
    # One iteration a step, so that each is seen; the line search still gets its evaluations.
    optimizer = torch.optim.LBFGS(
        [knobs], max_iter=1, max_eval=25, tolerance_grad=0.0, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def measure() -> tuple[Tensor, Iteration]:
        image = image_at(line, dict(zip(names, knobs.unbind(), strict=True)))
        sigma_x, sigma_y, charge = sizes_on_image(line, image)
        loss = (sigma_x / target).log().square() + (sigma_y / target).log().square()
        return loss, Iteration(*(float(v.detach()) for v in (loss, sigma_x, sigma_y, charge)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss, _ = measure()
        loss.backward()
        return loss

    with torch.no_grad():
        history = [measure()[1]]
    for number in range(1, _ITERATIONS + 1):
        optimizer.step(closure)
        with torch.no_grad():
            history.append(measure()[1])
        progress(number, history[-1])
        if history[-1].error(target) < _CLOSE:
            break
    after = dict(zip(names, knobs.detach().tolist(), strict=True))
    line.set(after)
    return Matching(target, dict(settings), after, tuple(history), line.runs - runs)
