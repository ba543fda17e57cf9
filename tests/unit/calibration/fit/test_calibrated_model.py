"""CalibratedModel: a model with the machine's errors inside is still that model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cheetah
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import BeamMomentum, CalibratedModel, Normal, Scale

D = torch.float64


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


class Counting(ld.LUMEModel):
    """A model that counts how often its simulator was started anew."""

    def __init__(self) -> None:
        scalar = ld.TorchScalarVariable
        super().__init__([scalar(name="a", default_value=1.0), scalar(name="y", read_only=True)])
        self.starts = 0

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {"y": 2.0 * inputs["a"]}

    def _reset_simulator(self) -> None:
        self.starts += 1


def test_reset_starts_the_simulator_inside_anew() -> None:
    model = Counting()
    twin = CalibratedModel(model, [Scale("a", Normal(1.0, 0.1))], torch.tensor([1.5], dtype=D))
    twin.set({"a": 4.0})
    assert float(twin.get("y")) == 12.0
    twin.reset()
    assert model.starts == 1
    assert float(twin.get("y")) == 3.0


def test_reference_energy_is_that_of_the_true_machine() -> None:
    beam = cheetah.ParticleBeam.from_parameters(num_particles=10, energy=number(1e8), dtype=D)
    line = cheetah.Segment([cheetah.Quadrupole(number(0.1), number(1.0), name="Q1", dtype=D)])
    model = ld.CheetahModel(line, beam)
    momentum = BeamMomentum("Q1.k1", Normal(1.0, 0.02), energy="reference_energy")
    twin = CalibratedModel(model, [momentum], torch.tensor([1.02], dtype=D))
    found = float(twin.reference_energy(None, ["Q1"])["Q1"])
    # 2 % more momentum at the reference
    assert (found**2 - momentum.rest_energy**2) / (1e16 - momentum.rest_energy**2) == pytest.approx(1.02**2, rel=1e-9)
    assert float(twin.get("Q1.k1")) == 1.0
