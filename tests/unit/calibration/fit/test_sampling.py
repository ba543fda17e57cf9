"""Samples of a posterior that is a normal distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import Calibration, CalibrationResult, Dataset, Normal, Scale

pytest.importorskip("pyro")


@pytest.fixture
def result() -> CalibrationResult:
    scalar = ld.TorchScalarVariable
    model = ld.TorchModel(
        torch.nn.Linear(1, 1), [scalar(name="a", default_value=1.0)], [scalar(name="y", read_only=True)]
    )
    settings = np.array([1.0, 2.0])
    measured = model({"a": torch.tensor(settings)})["y"].detach().numpy()
    data = Dataset({"a": settings}, {"y": measured}, sigma={"y": 0.1})
    return Calibration(model, data, [Scale("a", Normal(1.1, 0.2))]).run(progress=False)


def test_samples_have_mean_and_spread_of_the_posterior(result: CalibrationResult) -> None:
    drawn = result.sample(400, warmup=100, seed=1)
    assert drawn.shape == (400, 1)
    value, error = result["scale of a"]
    assert float(drawn.mean()) == pytest.approx(value, abs=0.3 * error)
    assert float(drawn.std()) == pytest.approx(error, rel=0.2)


def test_seed_repeats_the_samples_and_leaves_other_draws_alone(result: CalibrationResult) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, again = (result.sample(5, warmup=5, seed=2) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # noqa: NPY002
