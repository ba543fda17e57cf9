"""What chains around a black box share: how they are built, their gradients, and differences over the whole of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import cheetah
import pytest
import torch
from torch import Tensor

from lume_diff.models import CheetahModel, LUMEModel, StagedModel

DTYPE = torch.float64
Loss = Callable[[Tensor], Tensor]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=DTYPE)


def quadrupole(name: str, k1: float) -> cheetah.Quadrupole:
    return cheetah.Quadrupole(number(0.1), number(k1), name=name, dtype=DTYPE)


def drift(name: str, length: float) -> cheetah.Drift:
    return cheetah.Drift(number(length), name=name, dtype=DTYPE)


class ScreenChain:
    """Two differentiable lines around a black box, with quadrupoles in all three and a smooth screen at the end.

    Args:
        middle: makes the black box, whose quadrupoles are Q5 and Q6, for the bunch that reaches it.
    """

    particles = 10_000
    knobs: ClassVar = {"Q1.k1": 2.0, "Q2.k1": -3.0, "Q5.k1": 3.0, "Q6.k1": -3.0, "Q9.k1": -1.0}
    middle_knobs = ("Q5.k1", "Q6.k1")

    def __init__(self, middle: Callable[[Any], LUMEModel]) -> None:
        torch.manual_seed(0)
        sizes = {f"sigma_{name}": number(1e-4) for name in ("x", "px", "y", "py", "tau")}
        beam = cheetah.ParticleBeam.from_parameters(
            num_particles=self.particles,
            sigma_p=number(1e-3),
            energy=number(1e8),
            total_charge=number(1e-10),
            dtype=DTYPE,
            **sizes,
        )
        screen = cheetah.Screen(
            resolution=(50, 40),
            pixel_size=torch.tensor([8e-5, 8e-5], dtype=DTYPE),
            method="kde",  # smooth, so that a difference over the whole chain is worth comparing with
            kde_bandwidth=number(8e-5),
            is_active=True,
            name="SCR1",
            dtype=DTYPE,
        )
        first = [quadrupole("Q1", 2.0), drift("D1", 0.3), quadrupole("Q2", -3.0), drift("D2", 0.3)]
        last = [quadrupole("Q9", -1.0), drift("D9", 1.0), screen]
        injector = CheetahModel(cheetah.Segment(first, name="first"), beam)
        self.linac = middle(injector.get("final_particles"))
        diagnostics = CheetahModel(cheetah.Segment(last, name="last"), self.linac.get("final_particles"))
        self.model = StagedModel({"injector": injector, "linac": self.linac, "diagnostics": diagnostics})
        # Measures noise and curvature of the middle stage, once.
        self.loss({name: number(value).requires_grad_() for name, value in self.knobs.items()}).backward()

    def loss(self, knobs: dict[str, Any]) -> Tensor:
        """Return a number of the screen's image without any symmetry."""
        image = self.model(knobs, outputs=["SCR1.image"])["SCR1.image"]
        place = torch.linspace(-1, 1, 40, dtype=DTYPE), torch.linspace(-1, 1, 50, dtype=DTYPE)
        y, x = torch.meshgrid(*place, indexing="ij")
        weight = x**2 + 0.7 * y**2 + 0.3 * x * y + 0.2 * x
        return (image * weight).sum()

    def check_gradient(self) -> None:
        """Assert that the gradient is that of differences over the whole chain, in 13 runs and 2 a knob."""
        point = {name: value + 0.01 for name, value in self.knobs.items()}
        knobs = {name: number(value).requires_grad_() for name, value in point.items()}
        before = self.linac.runs
        self.loss(knobs).backward()
        assert self.linac.runs - before == 13 + 2 * len(self.middle_knobs)
        with torch.no_grad():
            size = self.loss(point)

            def slope(name: str, step: float) -> float:
                up, down = (self.loss({**point, name: point[name] + h}) * 1.0 for h in (step, -step))
                return ((up - down) / (2.0 * step)).item()

            for name, knob in knobs.items():
                assert knob.grad is not None
                wide, narrow = slope(name, 2e-3), slope(name, 1e-3)
                expected = (4.0 * narrow - wide) / 3.0
                assert abs(expected) > 1e-6 * size.item(), name
                assert knob.grad.item() == pytest.approx(expected, rel=1e-6), name

    def check_particles(self) -> None:
        """Assert that every particle comes out, with its number."""
        given = self.model.stages["injector"].get("final_particles")
        found = self.model.get("final_particles")
        assert len(found) == self.particles
        assert found.alive.sum().item() == self.particles
        assert torch.equal(found.id, given.id)
        assert torch.equal(self.model.get("linac/final_particles").id, given.id)


@pytest.fixture(scope="session")
def screen_chain() -> type[ScreenChain]:
    """Return what builds a chain around a black box."""
    return ScreenChain


class Compared:
    """Gradients of a function of a tensor of knobs, and the differences to hold them against."""

    @staticmethod
    def whole_chain(loss: Loss, at: Tensor, step: float, levels: int = 3) -> Tensor:
        """Return central differences over the whole chain, extrapolated to a step of zero."""

        def difference(h: float) -> Tensor:
            moves = h * at.abs().diag()
            with torch.no_grad():
                values = torch.stack([loss(at + move) - loss(at - move) for move in moves])
            return values / (2 * moves.diagonal())

        table = [difference(step / 2**level) for level in range(levels)]
        for order in range(1, levels):
            table = [(4**order * b - a) / (4**order - 1) for a, b in itertools.pairwise(table)]
        return table[0]

    @staticmethod
    def gradient(loss: Loss, at: Tensor) -> Tensor:
        """Return the gradient in reverse mode."""
        leaf = at.clone().requires_grad_()
        (found,) = torch.autograd.grad(loss(leaf), leaf)
        return found

    @staticmethod
    def pushed(loss: Loss, at: Tensor) -> Tensor:
        """Return the gradient in forward mode."""
        directions = torch.eye(len(at), dtype=at.dtype)
        return torch.stack([torch.func.jvp(loss, (at,), (direction,))[1].detach() for direction in directions])

    @staticmethod
    def off(found: Tensor, expected: Tensor) -> Tensor:
        """Return relative differences."""
        return ((found - expected) / expected).abs()


@pytest.fixture(scope="session")
def compared() -> type[Compared]:
    """Return gradients and differences."""
    return Compared
