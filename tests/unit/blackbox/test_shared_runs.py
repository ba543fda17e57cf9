"""Bunches at several places and numbers come out of the same runs, so their gradients share runs where they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable
from tests.unit.blackbox.bunches import P, incoming

D = torch.float64


class Line(Simulator):
    """A drift, a thin quadrupole of strength ``k`` and its trace; the bunch is seen on both sides of it."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        before = inputs["initial_particles"].copy()
        before.x = before.x + 2.0 * before.px / P
        after = before.copy()
        after.px = after.px - inputs["k"] * P * after.x
        return {"Q.particles": before, "final_particles": after, "trace": 2.0 - 2.0 * inputs["k"] + inputs["k"] ** 3}


def model(outputs: Sequence[str], gradient: FiniteDifference) -> BlackBoxModel:
    everything = {
        "Q.particles": ParticleGroupVariable(name="Q.particles", read_only=True),
        "final_particles": ParticleGroupVariable(name="final_particles", read_only=True),
        "trace": TorchScalarVariable(name="trace", read_only=True),
    }
    inputs = [
        TorchScalarVariable(name="k", default_value=0.5, scale=0.1),
        ParticleGroupVariable(name="initial_particles"),
    ]
    variables = [*inputs, *(everything[name] for name in outputs)]
    return BlackBoxModel(Line, variables, gradient, initial={"initial_particles": incoming()})


def differentiate(box: BlackBoxModel, stretch: float) -> tuple[torch.Tensor, int]:
    """Return the derivative of all outputs together with respect to ``k``, and the runs it took."""
    group, before = incoming(), box.runs
    px, k = (stretch * group.px).requires_grad_(), torch.tensor(0.5, dtype=D, requires_grad=True)
    found = box({"initial_particles": group._with(px=px), "k": k})
    value = found["trace"] if "trace" in found else torch.zeros((), dtype=D)
    for name in ("Q.particles", "final_particles"):
        if name in found:
            value = value + 1e-6 * found[name].px.square().sum()
    value.backward()
    assert k.grad is not None
    return k.grad, box.runs - before


def truth(outputs: Sequence[str], stretch: float) -> float:
    group = incoming()
    px = stretch * group.px
    x = group.x + 2.0 * px / P
    bunch = (-2e-6 * P * x * (px - 0.5 * P * x)).sum().item()
    return (-2.0 + 3 * 0.25 if "trace" in outputs else 0.0) + (bunch if "final_particles" in outputs else 0.0)


@pytest.mark.parametrize(
    "outputs",
    [
        pytest.param(["final_particles"], id="one-bunch"),
        pytest.param(["Q.particles", "final_particles"], id="two-bunches"),
        pytest.param(["Q.particles", "final_particles", "trace"], id="two-bunches-and-a-number"),
    ],
)
def test_given_steps_are_the_same_for_all_so_all_runs_are_shared(outputs: Sequence[str]) -> None:
    box = model(outputs, FiniteDifference(step=1e-3, check=False))
    for stretch in (1.0, 1.1):
        slope, runs = differentiate(box, stretch)
        # With a number there is one more: whether it depends on the bunch is found out by moving that, once.
        assert runs == 1 + 12 + 2 + ("trace" in outputs and stretch == 1.0)
        assert slope.item() == pytest.approx(truth(outputs, stretch), rel=1e-6)


def test_bunches_share_noise_curvature_and_steps() -> None:
    one, two = (model(names, FiniteDifference()) for names in (["final_particles"], ["Q.particles", "final_particles"]))
    for stretch in (1.0, 1.1):
        assert differentiate(two, stretch)[1] == differentiate(one, stretch)[1]


def test_numbers_and_bunches_share_what_they_can_of_the_measurement() -> None:
    bunch, both = (
        model(names, FiniteDifference(check=False)) for names in (["final_particles"], ["final_particles", "trace"])
    )
    slope, runs = differentiate(both, 1.0)
    assert slope.item() == pytest.approx(truth(["final_particles", "trace"], 1.0), rel=1e-8)
    alone = differentiate(bunch, 1.0)[1]
    assert runs <= alone + 1 + 8 + 2  # of 12 runs that measure, 8 are the same
    assert differentiate(both, 1.1)[1] <= differentiate(bunch, 1.1)[1] + 2
    assert "noise and curvature of 1 input took" in str(both.gradient_report())
