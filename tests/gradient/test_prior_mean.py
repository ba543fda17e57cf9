"""Gradients of Xopt's acquisition functions through a model as the mean, against differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

pytest.importorskip("xopt")

import pandas as pd
from xopt.generators.bayesian import ExpectedImprovementGenerator, UpperConfidenceBoundGenerator

from lume_diff.blackbox import BlackBoxModel
from lume_diff.calibration import ModelMean, PriorMeanModelConstructor, vocs_from_model
from lume_diff.models import CheetahModel, LUMEModel, StagedModel
from lume_diff.variables import TorchScalarVariable

pytestmark = [pytest.mark.gradient, pytest.mark.usefixtures("double_by_default")]

D = torch.float64


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def part(name: str, beam: Any = None) -> CheetahModel:
    if beam is None:
        sizes = {f"sigma_{key}": number(1e-4) for key in ("x", "px", "y", "py", "tau")}
        beam = cheetah.ParticleBeam.from_parameters(
            num_particles=200, sigma_p=number(1e-3), energy=number(1e8), total_charge=number(1e-10), dtype=D, **sizes
        )
    magnet = cheetah.Quadrupole(number(0.1), number(1.0), name=name, dtype=D)
    line = cheetah.Segment([magnet, cheetah.Drift(number(0.7), name=f"D{name}", dtype=D)], name=f"line{name}")
    return CheetahModel(line, beam, controls=[f"{name}.k1"], outputs=["final.sigma_x", "final_particles"])


def by_cheetah() -> tuple[LUMEModel, Sequence[str], str]:
    return part("Q1"), ["Q1.k1"], "final.sigma_x"


def staged() -> tuple[LUMEModel, Sequence[str], str]:
    at = pytest.importorskip("at")
    from lume_diff.blackbox.at.model import ATModel

    ring = at.Lattice([at.Quadrupole("Q2", 0.2, 1.0), at.Drift("D2", 0.5)], energy=1e8)
    first = part("Q1")
    middle = ATModel(ring, controls=["Q2.k1"], outputs=["Q2.beta_x"], beam=first.get("final_particles"))
    last = part("Q3", middle.get("final_particles"))
    return StagedModel({"first": first, "middle": middle, "last": last}), ["Q1.k1", "Q2.k1", "Q3.k1"], "final.sigma_x"


def black_box() -> tuple[LUMEModel, Sequence[str], str]:
    inputs = [TorchScalarVariable(name=name, default_value=0.5, value_range=(-5.0, 5.0)) for name in "ab"]
    model = BlackBoxModel.from_function(
        lambda a, b: {"size": 1e-3 * (1.0 + (a - 1.0) ** 2 + 0.3 * np.sin(b) * a)},
        inputs=inputs,
        outputs=[TorchScalarVariable(name="size")],
    )
    return model, ["a", "b"], "size"


MODELS = {"cheetah": by_cheetah, "staged mixed": staged, "black box": black_box}


@pytest.mark.parametrize("generator_class", [UpperConfidenceBoundGenerator, ExpectedImprovementGenerator])
@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_acquisition_gradients_are_those_of_differences(
    build: Callable[[], tuple[LUMEModel, Sequence[str], str]], generator_class: Any
) -> None:
    torch.manual_seed(0)
    model, names, output = build()
    vocs = vocs_from_model(
        model, dict.fromkeys(names, (-3.0, 3.0)), {"log": "MINIMIZE"}, outputs={"log": (output, torch.log10)}
    )
    mean = ModelMean(model, names, output, torch.log10)
    gp = PriorMeanModelConstructor(mean_modules={"log": mean}, train_model=False, trust=False)
    x = np.random.default_rng(1).uniform(-3.0, 3.0, (5, len(names)))
    with torch.no_grad():
        y = mean(torch.as_tensor(x)).numpy() + 0.2 * np.cos(x.sum(-1))
    data = pd.DataFrame(x, columns=list(names)).assign(log=y)
    generator = generator_class(vocs=vocs, gp_constructor=gp)
    generator.add_data(data)
    acquisition = generator.get_acquisition(generator.train_model())
    candidates = torch.linspace(-1.7, 1.9, 2 * len(names), dtype=D).reshape(2, 1, -1).requires_grad_()
    value = acquisition(candidates)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), candidates)
    step = 1e-3
    for i in range(len(names)):
        move = torch.zeros(len(names), dtype=D)
        move[i] = step
        with torch.no_grad():
            slope = (acquisition(candidates + move) - acquisition(candidates - move)) / (2.0 * step)
        torch.testing.assert_close(gradient[:, 0, i], slope, rtol=1e-4, atol=1e-6)
    assert gradient.abs().max() > 1e-3
