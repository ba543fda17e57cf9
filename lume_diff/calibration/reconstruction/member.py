"""Member: one bunch of an ensemble, with everything about it that is fitted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lume_diff.calibration.reconstruction.bunches import Entrance
from lume_diff.calibration.reconstruction.generators import normal_points
from lume_diff.calibration.reconstruction.resolution import Aim
from lume_diff.particles import TorchParticleGroup


class Member(nn.Module):
    """A generator, where its bunch points, and the machine's parameters beside it.

    Args:
        generator: maps normal points ``(n, d)`` to coordinates of order one.
        parameters: how many of the machine.
        even: points in the unit cube that the bunch is made of, ``(n, d + 2)``; the last two are for what a transverse
            bunch does not have.
        settings: which settings it is fitted to, as many as there are, with repetitions.
        aim: what the blur of the screen should be, if anything.

    Attributes:
        offset: that is added to the transverse coordinates of order one, ``(4,)``.
        coordinates: of the machine's parameters, in standard deviations of their priors.
        shares: that the settings have in the loss, ``(settings,)``, 1 in all.
    """

    def __init__(
        self, generator: nn.Module, parameters: int, even: Tensor, settings: Tensor, aim: Aim | None = None
    ) -> None:
        super().__init__()
        self.generator = generator
        self.offset = nn.Parameter(torch.zeros(4, dtype=torch.float64))
        self.coordinates = nn.Parameter(torch.zeros(parameters, dtype=torch.float64))
        self.even: Tensor
        self.shares: Tensor
        self.register_buffer("even", even, persistent=False)
        shares = settings.bincount(minlength=len(settings)).double() / len(settings)
        self.register_buffer("shares", shares, persistent=False)
        self.aim = aim

    def other_points(self, seed: int) -> Tensor:
        """Return points as even as those of this member, but elsewhere, ``(n, d + 2)``."""
        random = torch.Generator().manual_seed(seed)
        shift = torch.rand(self.even.shape[-1], dtype=torch.float64, generator=random)
        return normal_points(self.even, shift.to(self.even.dtype))

    def bunch(self, entrance: Entrance, points: Tensor | None = None) -> TorchParticleGroup:
        """Return the bunch of the fit, or one of other points ``(n, d + 2)``.

        Gradient:
            Exact, to everything that is fitted.
        """
        return entrance.bunch(*self._placed(points, torch.float64))

    def at_entrance(
        self, entrance: Entrance, points: Tensor | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return the same bunch in Cheetah's coordinates, ``(n, 6)``."""
        return entrance.coordinates(*self._placed(points, dtype))

    def _placed(self, points: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        chosen = (normal_points(self.even) if points is None else points).to(dtype)
        made = self.generator(chosen[:, :-2])
        offset = nn.functional.pad(self.offset, (0, made.shape[-1] - 4)).to(dtype)
        return made + offset, chosen[:, -2:]
