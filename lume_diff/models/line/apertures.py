"""Apertures: hard ones, which cut as Cheetah does, and soft ones, whose losses have a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lume_diff.models.guards import concrete, refuse_gradient, warn_of_gradient
from lume_diff.models.line.elements import Element

if TYPE_CHECKING:
    from lume_diff.models.line.bunch import TrackedBunch
    from lume_diff.models.line.tracking import LineRun
    from lume_diff.particles import TorchParticleGroup

_NOTE = "particles are lost"


@dataclass(frozen=True)
class Losses:
    """How apertures act.

    Attributes:
        mode: ``"hard"`` cuts, and a gradient of what depends on the cut warns; ``"soft"`` lets the survival
            probability fall smoothly over ``width``.
        width: of the soft edge, as a share of the aperture's half size.
    """

    mode: str = "hard"
    width: float = 0.02


@dataclass(frozen=True)
class Cut:
    """Where a hard edge has cut a bunch.

    Attributes:
        where: in words, with the lost fraction.
        decided_by: the coordinates that decided which particles are lost.
        sizes: of the aperture.
    """

    where: str
    decided_by: tuple[Tensor, ...] = ()
    sizes: tuple[Tensor, ...] = ()

    @property
    def note(self) -> str:
        """What is noted on a bunch that leaves the line."""
        return f"{_NOTE} {self.where}"

    @classmethod
    def noted(cls, group: TorchParticleGroup) -> tuple[Cut, ...]:
        """Return the cuts that are noted on a bunch from another line."""
        words = [note.removeprefix(_NOTE).strip() for note in group.notes if note.startswith(_NOTE)]
        return tuple(cls(where, (group.x, group.y)) for where in words)

    def warned(self, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return values of what is left; their gradient warns, and one to the aperture's size raises.

        Of a noted cut nothing has to be said: the bunch that carries the note warns by itself.
        """
        if not self.sizes:
            return values
        warning = (
            f"{_NOTE} {self.where}: the gradient of what is left leaves out the particles that cross its edge; build "
            "the model with losses='soft' for one that does not"
        )
        zero = refuse_gradient(self.sizes, self._refusal)
        return tuple(value + zero for value in warn_of_gradient(values, warning))

    def refused(self, value: Tensor) -> Tensor:
        """Return a value that depends on how many are left; its gradient raises."""
        return value + refuse_gradient((*self.decided_by, *self.sizes), self._refusal)

    @property
    def _refusal(self) -> str:
        return (
            f"{_NOTE} {self.where}: what is left of the charge, and all that depends on the size of the aperture, has "
            "no gradient, because only the particles at the edge decide; build the model with losses='soft'"
        )


def _edges(run: LineRun, index: int, bunch: TrackedBunch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return bunch.x, bunch.y, run.number(index, "x_max"), run.number(index, "y_max")


def _passed(element: Element, x: Tensor, y: Tensor, x_max: Tensor, y_max: Tensor) -> Tensor:
    """Return whether each particle passes a hard aperture, as Cheetah decides it."""
    x_max, y_max = x_max.unsqueeze(-1), y_max.unsqueeze(-1)
    if element.option("shape") == "elliptical":
        return x.square() / x_max.square() + y.square() / y_max.square() <= 1.0
    return (x.abs() < x_max) & (y.abs() < y_max)


def hard_aperture(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Cut the bunch as Cheetah does; autograd leaves out how the cut moves through the bunch, and says so."""
    element, reference = run.line.elements[index], run.reference(index + 1)
    x, y, x_max, y_max = _edges(run, index, bunch)
    passed = _passed(element, x, y, x_max, y_max)
    here = bunch.weight * bunch.alive
    alive = bunch.alive * passed
    fraction = _lost_fraction(here, passed)
    if not fraction > 0.0:
        return bunch.passed(reference, alive=alive)
    cut = Cut(f"at aperture {element.name!r} (lost fraction {fraction:.3g})", (x, y), (x_max, y_max))
    return bunch.passed(reference, alive=alive, cuts=(*bunch.cuts, cut))


def _lost_fraction(here: Tensor, passed: Tensor) -> float:
    """Return the largest lost fraction of a batch as a number; it decides about messages, not about values."""
    here = here.detach()
    total = here.sum(-1)
    lost = torch.where(passed, 0.0, here).sum(-1) / torch.where(total > 0.0, total, 1.0)
    return float(concrete(lost).max())


def soft_aperture(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Let the survival probability fall over a share of the half size, one half at the edge."""
    element, width = run.line.elements[index], run.losses.width
    x, y, x_max, y_max = _edges(run, index, bunch)
    if element.option("shape") == "elliptical":
        square = (x / x_max.unsqueeze(-1)).square() + (y / y_max.unsqueeze(-1)).square()
        alive = torch.sigmoid((1.0 - square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()) / width)
    else:
        alive = _soft_slit(x, x_max.unsqueeze(-1), width) * _soft_slit(y, y_max.unsqueeze(-1), width)
    passed = _passed(element, x, y, x_max, y_max)
    sharp = (bunch.alive if bunch.sharp is None else bunch.sharp).detach() * passed
    return bunch.passed(run.reference(index + 1), alive=bunch.alive * alive, sharp=sharp)


def _soft_slit(position: Tensor, half: Tensor, width: float) -> Tensor:
    """Return the survival probability between two edges; a negative half size lets nothing pass, as the hard one."""
    is_open = torch.isinf(half)
    half = torch.where(is_open, 1.0, half)
    edge = width * half.abs()
    passed = torch.sigmoid((half - position) / edge) * torch.sigmoid((half + position) / edge)
    return torch.where(is_open, 1.0, passed)
