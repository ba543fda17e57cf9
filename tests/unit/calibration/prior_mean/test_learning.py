"""What a mean learns from the data: scales, from many starts, under the covariance of its Gaussian process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

pytest.importorskip("xopt")

from botorch.models import SingleTaskGP

from lume_diff.calibration import ModelMean, Normal, OutputOffset, PriorMeanModelConstructor, Scale
from lume_diff.calibration.prior_mean.calibrated import MeanParameters
from lume_diff.calibration.prior_mean.gp import ModelGP
from lume_diff.models import CheetahModel

D = torch.float64
NAMES = [f"Q{i}.k1" for i in range(1, 5)]
LIMITS = {name: [-8.0, 8.0] for name in NAMES}


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def size(sigma_x: torch.Tensor, sigma_y: torch.Tensor) -> torch.Tensor:
    return torch.log10(sigma_x.square() + sigma_y.square())


@pytest.fixture(scope="module")
def line() -> CheetahModel:
    """Four quadrupoles that a beam of moments passes."""
    elements: list[cheetah.Element] = []
    for name in NAMES:
        elements.append(cheetah.Quadrupole(number(0.1), number(0.0), name=name.partition(".")[0], dtype=D))
        elements.append(cheetah.Drift(number(0.6), name=f"D{len(elements)}", dtype=D))
    twiss = {"beta_x": 8.0, "alpha_x": 1.0, "emittance_x": 4e-8, "beta_y": 3.0, "alpha_y": -1.0, "emittance_y": 1e-8}
    beam = cheetah.ParameterBeam.from_twiss(**{k: number(v) for k, v in twiss.items()}, energy=number(1e8), dtype=D)
    return CheetahModel(cheetah.Segment(elements), beam, controls=NAMES, outputs=["final.sigma_x", "final.sigma_y"])


@pytest.fixture
def build(line: CheetahModel) -> Callable[..., tuple[Any, PriorMeanModelConstructor]]:
    """Return a GP and its constructor from ``n`` random points of a machine with other scales and an offset."""
    import pandas as pd

    def made(n: int, scale: torch.Tensor, offset: float = 0.0, **options: Any) -> tuple[Any, PriorMeanModelConstructor]:
        trainable = [*(Scale(name, Normal(1.0, 0.3)) for name in NAMES), OutputOffset(Normal(0.0, 0.3))]
        mean = ModelMean(line, NAMES, ["final.sigma_x", "final.sigma_y"], size, trainable)
        constructor = PriorMeanModelConstructor(mean_modules={"f": mean}, **options)
        x = np.random.default_rng(0).uniform(-8.0, 8.0, (n, len(NAMES)))
        with torch.no_grad():
            y = mean(torch.as_tensor(x) * scale) + offset
        data = pd.DataFrame(x, columns=NAMES).assign(f=y.numpy())
        return constructor.build_model(NAMES, ["f"], data, LIMITS).models[0], constructor

    return made


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["one way", "the other"])
def test_scales_and_an_offset_are_found_at_ten_points(build: Callable[..., Any], sign: float) -> None:
    scale = 1.0 + sign * torch.tensor([0.4, -0.35, 0.3, -0.45], dtype=D)
    _, constructor = build(10, scale, 0.2, trainable_mean_keys=["f"])
    (decision,) = constructor.decisions
    found = torch.tensor([learned.value for learned in decision.learned], dtype=D)
    torch.testing.assert_close(found, torch.cat((scale, number(0.2)[None])), rtol=0.0, atol=0.02)
    assert decision.trusted


def test_a_mean_without_noise_in_the_data_predicts_what_it_has_not_seen(
    build: Callable[..., Any], line: CheetahModel
) -> None:
    scale = torch.tensor([1.3, 0.8, 1.2, 0.9], dtype=D)
    gp, _ = build(10, scale, trainable_mean_keys=["f"])
    x = torch.tensor([[3.0, -4.0, 2.0, 1.0], [-5.0, 6.0, -3.0, 0.5]], dtype=D)
    with torch.no_grad():
        expected = size(*line.tensor_function(NAMES, ["final.sigma_x", "final.sigma_y"])(x * scale).unbind(-1))
        torch.testing.assert_close(gp.posterior(x).mean[:, 0], expected, rtol=0.0, atol=0.05)


def test_parameters_follow_the_precision_that_they_are_brought_to() -> None:
    parameters = MeanParameters([Scale("a", Normal(1.0, 0.2))]).requires_grad_(False)
    parameters.coordinates.fill_(0.1)
    for dtype in (torch.float32, D):
        ((_, value),) = parameters.to(dtype).pairs(parameters.coordinates)
        assert value.dtype is dtype


def test_a_copy_of_a_mean_answers_with_parameters_of_its_own() -> None:
    first = MeanParameters([Scale("a", Normal(1.0, 0.2))]).requires_grad_(False)
    first.coordinates.fill_(1.0)
    assert float(first.pairs(first.coordinates)[0][1]) == pytest.approx(1.2)
    for copy in (deepcopy(first), pickle.loads(pickle.dumps(first))):
        copy.coordinates.fill_(-1.0)
        assert float(copy.pairs(copy.coordinates)[0][1]) == pytest.approx(0.8)


def test_the_process_is_botorchs(build: Callable[..., Any]) -> None:
    """Asking the mean at new points only changes no number and no gradient."""
    gp, _ = build(6, torch.tensor([1.2, 0.9, 1.1, 0.8], dtype=D), trust=False)
    assert isinstance(gp, ModelGP)
    found = []
    for kind in (ModelGP, SingleTaskGP):
        gp.__class__ = kind
        x = torch.linspace(-7.0, 6.0, 24, dtype=D).reshape(2, 3, 4).requires_grad_()
        posterior = gp.posterior(x)
        total = posterior.mean.sum() + posterior.mvn.covariance_matrix.sum()
        found.append((posterior.mean, posterior.mvn.covariance_matrix, torch.autograd.grad(total, x)[0]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
