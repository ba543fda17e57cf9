"""Gradients through a facility's units: a screen's image by a setpoint in kG."""

from __future__ import annotations

import pytest
import torch

from tests.unit.models.facility.machines import facility, t

pytestmark = pytest.mark.gradient


@pytest.mark.parametrize("name, step", [("Q0:BCTRL", 1e-5), ("Q1:BCTRL", 1e-5), ("C0:BCTRL", 3e-9), ("CAV:ADES", 1e-3)])
def test_loss_of_an_image(name: str, step: float) -> None:
    """Cloud-in-cell images are piecewise linear, so the step must be far below a pixel."""
    model = facility()
    rows, columns = torch.arange(30.0, dtype=torch.float64), torch.arange(40.0, dtype=torch.float64)
    weight = (rows.unsqueeze(-1) - 9.0) ** 2 / 10.0 + (columns - 12.0) ** 2 / 10.0

    def loss(value: torch.Tensor) -> torch.Tensor:
        return (weight * model({name: value}, outputs=["S1:IMAGE"])["S1:IMAGE"]).sum() * 1e10

    at = model.get(name).clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(at), at)
    with torch.no_grad():
        wide, narrow = ((loss(at + h) - loss(at - h)) / (2 * h) for h in (step, step / 2))
    best = (4 * narrow - wide) / 3
    assert abs(float(found - best)) <= 1e-8 * abs(float(best))


def test_every_mode_agrees() -> None:
    model = facility()
    names = ["CAV:ADES", "Q0:BCTRL", "Q0:TRIM", "Q1:BCTRL", "C0:BCTRL"]
    outputs = ["S1:XRMS", "B1:X", "S1:AREA", "Q0:BACT"]
    function = model.tensor_function(names, outputs)
    at = torch.stack([model.get(name) for name in names]) + 0.01 * torch.rand(5, dtype=torch.float64)
    reverse, forward = torch.func.jacrev(function)(at), torch.func.jacfwd(function)(at)
    assert torch.allclose(reverse, forward, rtol=1e-9, atol=1e-12 * float(reverse.abs().max()))
    assert torch.autograd.gradcheck(lambda x: function(x)[:3], (at.requires_grad_(),), rtol=1e-4, atol=1e-3)
    mapped = torch.func.vmap(function)(torch.stack([at.detach(), at.detach() * 1.01]))
    assert torch.allclose(mapped[0], function(at).detach(), rtol=1e-12)


def test_two_setpoints_two_backwards() -> None:
    model = facility()
    leaf = t(0.3).requires_grad_()
    optimiser = torch.optim.SGD([leaf], lr=1e-3)
    model.set({"Q1:BCTRL": leaf})
    values = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = model.get("S1:XRMS") / 100.0
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert values[0] > values[1] > values[2]
