"""Bunches that a simulator makes from numbers: their weights move too, and particles may be lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from beamphysics import ParticleGroup

from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable

D = torch.float64
WIDTHS = np.linspace(-1e-3, 1.1e-3, 20)


class Gun(Simulator):
    """Make particles of a width and a charge, and leave out those that hit an aperture, the others in another order."""

    def __init__(self, aperture: float = np.inf) -> None:
        self.aperture = aperture

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        x = inputs["width"] * WIDTHS
        kept = np.flatnonzero(np.abs(x) < self.aperture)
        kept = kept if inputs["width"] < 2.0 else kept[::-1]
        zero = np.zeros(len(kept))
        data = {"x": x[kept], "px": zero, "y": zero, "py": zero, "z": zero, "pz": zero + 1e8, "t": zero}
        data |= {"weight": inputs["charge"] * (1.0 + kept) / 210.0, "status": zero + 1, "id": 100 + kept}
        return {"final_particles": ParticleGroup(data={**data, "species": "electron"})}


def model(aperture: float = np.inf, step: Any = "auto") -> BlackBoxModel:
    variables = [
        TorchScalarVariable(name="width", default_value=1.0),
        TorchScalarVariable(name="charge", default_value=1e-12, scale=1e-13),
        ParticleGroupVariable(name="final_particles", read_only=True),
        TorchScalarVariable(name="final.charge", read_only=True),
    ]
    derived = {"final.charge": ("final_particles", "charge")}
    return BlackBoxModel(lambda: Gun(aperture), variables, FiniteDifference(step=step), derived=derived)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=D)


def test_the_charge_of_a_bunch_follows_what_makes_it() -> None:
    charge, box = t(1e-12).requires_grad_(), model()
    found = box({"charge": charge})
    assert found["final.charge"].item() == pytest.approx(1e-12, rel=1e-12)
    assert torch.autograd.grad(found["final.charge"], charge)[0].item() == pytest.approx(1.0, rel=1e-9)
    share = torch.func.jacrev(lambda q: box({"charge": q})["final_particles"].weight)(t(1e-12))
    np.testing.assert_allclose(share, np.arange(1, 21) / 210.0, rtol=1e-9)


@pytest.mark.parametrize("step", ["auto", 1e-3])
def test_a_particle_at_the_edge_has_no_derivative_and_the_others_theirs(step: Any) -> None:
    box = model(aperture=WIDTHS.max() * (1.0 + 1e-6), step=step)
    slope = torch.func.jacrev(lambda width: box({"width": width})["final_particles"].x)(t(1.0))
    np.testing.assert_allclose(slope, [*WIDTHS[:-1], 0.0], rtol=1e-8)


def test_a_batch_of_bunches_has_all_particles_of_any() -> None:
    box = model(aperture=1.05e-3)
    width = t(1.0, 2.5, 0.9).requires_grad_()
    group = box({"width": width})["final_particles"]
    assert group.x.shape == (3, 20)
    assert group.alive.sum(-1).tolist() == [19.0, 7.0, 20.0]
    living = group.alive.bool()
    expected = width.detach()[:, None] * torch.from_numpy(WIDTHS)
    ids = group.id - 100
    torch.testing.assert_close(group.x[living], expected[:, ids][living])
    torch.testing.assert_close(group.weight[living], (1e-12 * (1.0 + ids) / 210.0).to(D).expand(3, 20)[living])
    group.x[1].sum().backward()
    assert width.grad is not None
    assert width.grad[1].item() == pytest.approx(WIDTHS[ids.numpy()][living[1].numpy()].sum(), rel=1e-8)
    alone = box({"width": t(2.5)})["final_particles"]
    assert alone.x.shape == (7,)
