"""Bunches through a black box where particles are lost, at the limits of its numbers, and of several species."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from beamphysics import ParticleGroup

from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.errors import GradientError, PhysicsWarning
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable
from tests.unit.blackbox.bunches import P, incoming

D = torch.float64


class Line(Simulator):
    """A thin quadrupole of strength ``k`` that turns the other way for positrons, a drift of a metre, an aperture.

    Lost particles are left out of the bunch.
    """

    def __init__(self, aperture: float = np.inf) -> None:
        self.aperture = aperture
        self.strengths: list[float] = []

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        group, k = inputs["initial_particles"], inputs["k"]
        self.strengths.append(k)
        sign = 1.0 if group.species == "electron" else -1.0
        px = group.px + sign * k * P * group.x
        x = group.x + px / P
        kept = np.abs(x) < self.aperture
        data = {name: value[kept] for name, value in group.data.items() if isinstance(value, np.ndarray)}
        return {"final_particles": ParticleGroup(data={**data, "x": x[kept], "px": px[kept], "species": group.species})}


def model(line: Line, **options: Any) -> BlackBoxModel:
    variables = [
        ParticleGroupVariable(name="initial_particles"),
        TorchScalarVariable(name="k", default_value=0.1, value_range=(-0.1, 0.1)),
        ParticleGroupVariable(name="final_particles", read_only=True),
    ]
    return BlackBoxModel(lambda: line, variables, initial={"initial_particles": incoming()}, **options)


def t(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def edge(k: float) -> float:
    """Return an aperture that the outermost particle just passes."""
    group = incoming()
    return (group.x + group.px / P + k * group.x).abs().max().item() * (1.0 + 1e-6)


def test_a_bunch_of_which_nothing_comes_out_has_no_gradient_and_gives_no_reference() -> None:
    line = Line(aperture=1e-9)
    box, group = model(line, gradient="native"), incoming()
    group.x.requires_grad_()
    k = t(0.1).requires_grad_()
    out = box({"k": k, "initial_particles": group})["final_particles"]
    assert not out.alive.any()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        (out.x.sum() + out.px.sum()).backward()
    assert [w.category for w in seen] == [PhysicsWarning]
    assert "lost fraction 1" in str(seen[0].message)
    assert (k.grad, group.x.grad.abs().max()) == (0.0, 0.0)  # type: ignore[union-attr]
    assert not box.gradient_report().entries
    assert out.reference_energy == group.reference_energy
    line.aperture = np.inf
    again = box({"k": t(0.05)})["final_particles"]
    assert again.reference_energy.item() == pytest.approx(again.energy.mean().item(), rel=1e-12)


def test_a_particle_that_is_lost_at_a_shifted_point_has_no_derivatives() -> None:
    line = Line(aperture=edge(0.05))
    box, group = model(line, gradient=FiniteDifference(step=1e-2)), incoming()
    inner = (group.x + group.px / P).abs().argsort()[:-1]

    def x(k: torch.Tensor) -> torch.Tensor:
        return box({"k": k})["final_particles"].x

    first = torch.func.jacrev(x)(t(0.05))
    second = torch.func.jacrev(torch.func.jacrev(x))(t(0.05))
    assert (first == 0.0).sum() == 1
    torch.testing.assert_close(first[inner], group.x[inner], rtol=1e-9, atol=0.0)
    assert second.abs().max() < 1e-6  # of the lost one it would be some 1e4


@pytest.mark.parametrize("side", [-1.0, 1.0], ids=["lower", "upper"])
def test_a_whole_bunch_is_pushed_within_the_limits(side: float) -> None:
    line = Line()
    box, group = model(line, gradient=FiniteDifference(step=1e-2, particles="collective")), incoming()
    _, found = torch.func.jvp(lambda k: box({"k": k})["final_particles"].x, (t(0.1 * side),), (t(1.0),))
    torch.testing.assert_close(found, group.x, rtol=1e-9, atol=0.0)
    assert max(map(abs, line.strengths)) == pytest.approx(0.1)
    assert len(set(line.strengths)) == 3


def test_second_derivatives_at_a_limit_are_refused_and_stay_within_it_beside() -> None:
    line = Line()
    box = model(line, gradient=FiniteDifference(step=1e-2, check=False))

    def size(k: torch.Tensor) -> torch.Tensor:
        return 1e6 * box({"k": k})["final_particles"].x.square().sum()

    with pytest.raises(GradientError, match=r"no second derivative with respect to 'k' at 0\.1, which is at its limit"):
        torch.func.hessian(size)(t(0.1))
    expected = 2e6 * incoming().x.square().sum().item()
    assert torch.func.hessian(size)(t(0.095)).item() == pytest.approx(expected, rel=1e-5)
    assert max(line.strengths) <= 0.1 * (1.0 + 1e-15)


def test_another_species_is_another_bunch() -> None:
    box = model(Line())
    found = [
        box({"initial_particles": incoming(species=species)})["final_particles"].px - incoming().px
        for species in ("electron", "positron")
    ]
    torch.testing.assert_close(found[0], -found[1])
    assert box.runs == 2
