"""The gradient through all stages against finite differences of the whole chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lume_diff.demo.line import IMAGE, SCREEN, image_at, loss_on_image, pixel_size, stage_of
from lume_diff.models import StagedModel

_PARTICLES = f"{SCREEN}.particles"
_FIRST_MOVE = 1e-5  # of a pixel: what a step may move a particle, before it is shrunk
_TRIES = 6


@dataclass(frozen=True)
class KnobCheck:
    """Two ways to one derivative.

    Attributes:
        knob, stage: which quadrupole, and where.
        setting: where [1/m^2].
        backward: derivative of the loss by backpropagation [m^2].
        difference: the same by a central difference [m^2].
        step: of that difference [1/m^2].
    """

    knob: str
    stage: str
    setting: float
    backward: float
    difference: float
    step: float

    @property
    def relative(self) -> float:
        """By how much they differ, relative to the larger one."""
        size = max(abs(self.backward), abs(self.difference))
        return abs(self.backward - self.difference) / size if size else 0.0


@dataclass(frozen=True)
class GradientCheck:
    """All derivatives of the loss on the screen image.

    Attributes:
        loss: its value.
        knobs: one entry a quadrupole.
        runs_backward: runs of stages that backpropagation took.
        runs_difference: runs of stages that the differences took, their steps included.
    """

    loss: float
    knobs: tuple[KnobCheck, ...]
    runs_backward: int
    runs_difference: int

    @property
    def worst(self) -> float:
        """The largest relative difference."""
        return max(knob.relative for knob in self.knobs)


def check_gradient(
    line: StagedModel,
    settings: Mapping[str, float],
    target: float,
    progress: Callable[[str], None] = lambda knob: None,
) -> GradientCheck:
    """Differentiate a loss on the screen image by every quadrupole, by backpropagation and by differences.

    Args:
        line: the chain.
        settings: of the quadrupoles [1/m^2].
        target: rms radius of the round beam that the loss compares with [m].
        progress: is called with the name of each knob that is done.

    Returns:
        Both derivatives of each, and what they cost.
    """
    line.set(settings)
    runs = line.runs
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in settings.items()}
    loss = loss_on_image(line, image_at(line, leaves), target)
    loss.backward()
    runs_backward, runs = line.runs - runs, line.runs
    found = []
    for name, leaf in leaves.items():
        difference, step = _central_difference(line, settings, name, target)
        backward = 0.0 if leaf.grad is None else float(leaf.grad)
        found.append(KnobCheck(name, stage_of(line, name), settings[name], backward, difference, step))
        progress(name)
    return GradientCheck(float(loss.detach()), tuple(found), runs_backward, line.runs - runs)


@torch.no_grad()
def _central_difference(
    line: StagedModel, settings: Mapping[str, float], name: str, target: float
) -> tuple[float, float]:
    """Return a central difference of the loss, and its step.

    An image by cloud-in-cell has a kink wherever a particle passes the centre line of a pixel: the step is so small
    that no particle does, and as large as that allows.
    """
    pitch = torch.stack(pixel_size(line))

    def column_and_row(value: float) -> tuple[float, Tensor]:
        found = line({**settings, name: value}, outputs=[IMAGE, _PARTICLES])
        bunch = found[_PARTICLES]
        return float(loss_on_image(line, found[IMAGE], target)), torch.stack((bunch.x, bunch.y), -1) / pitch

    here, probe = settings[name], 1e-4
    moved = column_and_row(here + probe)[1] - column_and_row(here)[1]
    step = _FIRST_MOVE * probe / float(moved.abs().max())
    for _ in range(_TRIES):
        up, down = here + step, here - step
        (high, at_high), (low, at_low) = column_and_row(up), column_and_row(down)
        if bool((at_high.add(0.5).floor() == at_low.add(0.5).floor()).all()):
            break
        step *= 0.3
    return (high - low) / (up - down), 0.5 * (up - down)
