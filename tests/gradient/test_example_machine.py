"""The image of the example machine's screen, differentiated by what operators set."""

from __future__ import annotations

import pytest
import torch

import lume_diff as ld

pytestmark = pytest.mark.gradient

IMAGE = "OTRS:DIAG0:420:IMAGE"
PARTICLES = "OTRDG02.particles"


@pytest.fixture(scope="module")
def machine() -> ld.LUMEModel:
    return ld.load_model(ld.example_machine(), changes={"mapping.keep": [PARTICLES]})


@pytest.mark.parametrize(
    "name, value, step",
    [
        ("QUAD:IN20:121:BCTRL", 2.73, 2e-6),
        ("QUAD:DIAG0:190:BCTRL", 1.22, 4e-6),
        ("QUAD:DIAG0:260:BCTRL", 3.5, 8e-6),
        ("XCOR:DIAG0:215:BCTRL", 1e-4, 2e-9),
        ("ACCL:IN20:400:L0B_ADES", 69.0, 2e-4),
    ],
)
def test_loss_of_the_image(machine: ld.LUMEModel, name: str, value: float, step: float) -> None:
    """An image has kinks where particles pass the middle of a pixel: the step is halved until none of them does."""
    rows, columns = torch.arange(360.0, dtype=torch.float64), torch.arange(480.0, dtype=torch.float64)
    weight = (rows.unsqueeze(-1) - 170.0) ** 2 + (columns - 250.0) ** 2

    def loss(at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = machine({name: at}, outputs=[IMAGE, PARTICLES])
        bunch = found[PARTICLES]
        return (weight * found[IMAGE]).sum() / 250e-12, (torch.stack((bunch.x, bunch.y)) / 10e-6 + 0.5).floor()

    at = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(at)[0], at)
    with torch.no_grad():
        for _ in range(8):
            (up, pixels_up), (down, pixels_down) = loss(at + step), loss(at - step)
            if torch.equal(pixels_up, pixels_down):
                break
            step *= 0.5
    difference = (up - down) / ((at + step) - (at - step)).detach()
    assert abs(float(found - difference)) <= 1e-8 * abs(float(difference))


def test_sizes_by_the_injector(machine: ld.LUMEModel) -> None:
    """Sizes are smooth, so that the step can be large, through the network and all stages."""
    names = ["SOLN:IN20:121:BCTRL", "ACCL:IN20:300:L0A_PDES", "CAMR:IN20:186:R_DIST", "ACCL:IN20:400:L0B_ADES"]
    steps = torch.tensor([2e-5, 2e-2, 3e-2, 2e-2], dtype=torch.float64)
    function = machine.tensor_function(names, ["OTRS:DIAG0:420:XRMS", "OTRS:DIAG0:420:YRMS"])
    at = torch.tensor([0.221, 3.0, 310.0, 70.0], dtype=torch.float64)
    found = torch.func.jacrev(function)(at)
    torch.testing.assert_close(torch.func.jacfwd(function)(at), found, rtol=1e-9, atol=0.0)
    with torch.no_grad():
        for column, step in enumerate(torch.diag(steps)):
            wide, narrow = ((function(at + h) - function(at - h)) / (2.0 * h.sum()) for h in (step, 0.5 * step))
            torch.testing.assert_close(found[:, column], (4.0 * narrow - wide) / 3.0, rtol=1e-8, atol=0.0)
