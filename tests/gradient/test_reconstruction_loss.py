"""The loss of a reconstruction: its derivatives agree with differences, and stay finite where the beam is lost."""

from __future__ import annotations

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import BeamReconstruction, Blur, LogNormal, Normal, Scale, ScreenDataset
from lume_diff.calibration.reconstruction.generators import Network
from lume_diff.calibration.reconstruction.losses import distances, target_of

pytestmark = pytest.mark.gradient

D = torch.float64
PIXEL = 3e-4
K1 = np.array([-5.0, 0.0, 5.0])


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


@pytest.fixture(scope="module")
def task() -> BeamReconstruction:
    """A reconstruction of three images, with a blur and a quadrupole scale, in double precision throughout."""
    torch.manual_seed(1)
    sizes = {"sigma_x": 6e-4, "sigma_px": 2e-4, "sigma_y": 4e-4, "sigma_py": 3e-4, "sigma_tau": 1e-6, "sigma_p": 1e-4}
    beam = cheetah.ParticleBeam.from_parameters(
        num_particles=2000,
        energy=number(5e7),
        total_charge=number(1e-10),
        dtype=D,
        **{name: number(value) for name, value in sizes.items()},
    )
    size = torch.tensor([PIXEL, PIXEL], dtype=D)
    segment = cheetah.Segment(
        [
            cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D),
            cheetah.Drift(number(1.5), name="D1", dtype=D),
            cheetah.Screen((24, 20), size, is_active=True, name="SCR1", dtype=D),
        ],
        name="line",
    )
    model = ld.CheetahModel(segment, beam, controls=["Q1.k1"], outputs=["SCR1.image"], dtype=D)
    images = model({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"]
    data = ScreenDataset({"Q1.k1": K1}, 1e15 * images.detach().numpy(), "SCR1.image", PIXEL)
    parameters = [Blur(LogNormal(PIXEL, 2.0)), Scale("Q1.k1", Normal(1.0, 0.1))]
    generator = lambda seed: Network(4, width=8, seed=seed, dtype=D)  # noqa: E731
    return BeamReconstruction(model, data, 300, parameters=parameters, generator=generator)


@pytest.mark.parametrize("entropy_weight", [0.0, 0.5], ids=["images", "images and entropy"])
@pytest.mark.parametrize(
    "name", ["generator.linear.weight", "generator.bend.0.weight", "generator.bend.4.bias", "offset", "coordinates"]
)
def test_derivatives_of_the_loss(task: BeamReconstruction, name: str, entropy_weight: float) -> None:
    member = task.new_member(0)
    with torch.no_grad():
        member.offset += 0.07
        member.coordinates += 0.1
    leaf = dict(member.named_parameters())[name]
    exact = torch.autograd.grad(task.loss(member, entropy_weight=entropy_weight)[0], leaf)[0]
    assert bool(torch.isfinite(exact).all())
    direction = torch.randn_like(leaf)
    # Screens are linear between pixels: steps are small, so that few particles cross from one to the next.
    step = 1e-8
    found = []
    with torch.no_grad():
        start = leaf.clone()
        for sign in (1.0, -1.0):
            leaf.copy_(start + sign * step * direction)
            found.append(task.loss(member, entropy_weight=entropy_weight)[0])
        leaf.copy_(start)
    difference = float(found[0] - found[1]) / (2.0 * step)
    assert float((exact * direction).sum()) == pytest.approx(difference, rel=2e-4, abs=2e-6)


def test_distances_pass_gradcheck() -> None:
    measured = torch.rand(2, 5, 6, dtype=D) + 0.1
    target = target_of(measured, torch.ones_like(measured), (1e-3, 2e-3))
    predicted = (torch.rand(2, 5, 6, dtype=D) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda image: distances(image, target), (predicted,))


def test_bunch_that_is_lost_has_finite_derivatives() -> None:
    measured = torch.rand(2, 5, 6, dtype=D)
    target = target_of(measured, torch.ones_like(measured), (1e-3, 2e-3))
    predicted = torch.zeros(2, 5, 6, dtype=D, requires_grad=True)
    sum(part.sum() for part in distances(predicted, target)).backward()
    assert predicted.grad is not None
    assert bool(torch.isfinite(predicted.grad).all())
