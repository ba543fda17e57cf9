"""PriorMeanModelConstructor: trust, its numbers, what is learned, and Xopt's files."""

from __future__ import annotations

import logging
import math
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("xopt")

from xopt import Xopt
from xopt.generators.bayesian import UpperConfidenceBoundGenerator
from xopt.generators.bayesian.models.standard import StandardModelConstructor
from xopt.numerical_optimizer import LBFGSOptimizer

from lume_diff.calibration import (
    ModelMean,
    Normal,
    PriorMeanModelConstructor,
    Scale,
    vocs_from_model,
    xopt_evaluator,
)
from lume_diff.calibration.prior_mean.gp_mean import PhysicalMean
from lume_diff.calibration.prior_mean.trust import log_density
from lume_diff.errors import ValidationError
from lume_diff.models import TorchModel
from lume_diff.variables import TorchScalarVariable

NAMES = ["Q2.k1", "Q10.k1", "B.k1"]
LIMITS = {"Q2.k1": [-4.0, 4.0], "Q10.k1": [0.0, 10.0], "B.k1": [-1.0, 3.0]}
D = torch.float64
Builder = Callable[..., Any]


def machine(model: TorchModel, scale: float = 1.0, sign: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    def respond(x: torch.Tensor) -> torch.Tensor:
        x = x * torch.tensor([scale, 1.0, 1.0], dtype=D)
        return sign * model({name: x[..., i] for i, name in enumerate(NAMES)}, ["size"])["size"].log10()

    return respond


@pytest.fixture
def wide() -> TorchModel:
    """The model without limits, for machines that are stronger than it."""
    knobs = [TorchScalarVariable(name=name, default_value=1.0) for name in NAMES]

    def size(x: torch.Tensor) -> torch.Tensor:
        a, b, c = x.unbind(-1)
        value = 1.0 + (a - 1.0).square() + 0.2 * (b - 6.0).square() + 0.5 * (c - a / 2.0).square()
        return 1e-4 * value.unsqueeze(-1)

    return TorchModel(size, knobs, [TorchScalarVariable(name="size")])


@pytest.fixture
def build(wide: TorchModel, table: Callable[..., Any]) -> Builder:
    def built(n: int, sign: float = 1.0, scale: float = 1.0, **options: Any) -> tuple[Any, PriorMeanModelConstructor]:
        trainable = [Scale("Q2.k1", Normal(1.0, 0.3))]
        mean = ModelMean(wide, NAMES, "size", torch.log10, trainable)
        constructor = PriorMeanModelConstructor(mean_modules={"log_size": mean}, **options)
        data = table(n, machine(wide, scale, sign))
        return constructor.build_model(NAMES, ["log_size"], data, LIMITS).models[0], constructor

    return built


def test_a_model_that_agrees_is_the_mean(build: Builder) -> None:
    gp, constructor = build(8)
    assert isinstance(gp.mean_module, PhysicalMean)
    (decision,) = constructor.decisions
    assert decision.trusted
    assert decision.advantage > 3.0
    assert decision.correlation > 0.99


def test_a_model_that_misleads_gives_way_to_a_constant(build: Builder, caplog: pytest.LogCaptureFixture) -> None:
    np.random.seed(1)  # noqa: NPY002 - a few points can be such that the wrong sign is hard to tell
    with caplog.at_level(logging.WARNING):
        gp, constructor = build(8, sign=-1.0)
    assert not isinstance(gp.mean_module, PhysicalMean)
    assert not constructor.decisions[0].trusted
    assert "log_size: a constant at 8 points" in caplog.text
    assert "a constant" in constructor.report()


def test_what_takes_over_is_xopts_own_process(build: Builder, wide: TorchModel, table: Any, seed: int) -> None:
    np.random.seed(seed)  # noqa: NPY002 - the same data for both
    gp, _ = build(8, sign=-1.0, demand=1e6)  # never trusted, whatever the data
    np.random.seed(seed)  # noqa: NPY002
    own = (
        StandardModelConstructor()
        .build_model(NAMES, ["log_size"], table(8, machine(wide, sign=-1.0)), LIMITS)
        .models[0]
    )
    x = torch.tensor([[0.1, 3.0, 1.0]], dtype=D)
    torch.testing.assert_close(gp.posterior(x).mean, own.posterior(x).mean, rtol=1e-5, atol=1e-7)


def test_two_points_are_too_few_to_judge(build: Builder) -> None:
    _, constructor = build(2, sign=-1.0)
    assert constructor.decisions[0].trusted


def test_trust_can_be_turned_off(build: Builder) -> None:
    gp, constructor = build(8, sign=-1.0, trust=False)
    assert isinstance(gp.mean_module, PhysicalMean)
    assert constructor.decisions[0].reason == "not judged"


def test_a_scale_is_learned_and_read_back(build: Builder) -> None:
    _, constructor = build(10, scale=1.3, trainable_mean_keys=["log_size"])
    (learned,) = constructor.decisions[0].learned
    assert learned.value == pytest.approx(1.3, abs=0.03)
    assert "scale of Q2.k1: 1.3, expected 1" in constructor.report()


def test_a_mean_that_is_not_listed_stays(build: Builder) -> None:
    gp, _ = build(6, scale=1.3, trust=False)
    assert not gp.mean_module.model.calibration.coordinates.any()


def test_leave_one_out_is_that_of_leaving_out() -> None:
    """The closed form against conditioning a normal distribution on all other points."""
    n = 6
    root = torch.randn(n, n, dtype=D)
    covariance, residual = root @ root.T + 0.1 * torch.eye(n, dtype=D), torch.randn(n, dtype=D)
    z, spreads = [], []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        weights = torch.linalg.solve(covariance[others][:, others], covariance[others, i])
        variance = covariance[i, i] - weights @ covariance[others, i]
        z.append((residual[i] - weights @ residual[others]) / variance.sqrt())
        spreads.append(variance.sqrt())
    factor = torch.stack(z).square().mean().sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = sum(float(normal.log_prob(a / factor) - (s * factor).log()) for a, s in zip(z, spreads, strict=True))
    assert log_density(residual, covariance) == pytest.approx(expected, rel=1e-9)


def test_means_of_unknown_outputs_are_refused(wide: TorchModel, table: Any) -> None:
    constructor = PriorMeanModelConstructor(mean_modules={"size": ModelMean(wide, NAMES, "size")})
    with pytest.raises(
        ValidationError, match=r"mean_modules has 'size'; expected an output of the VOCS: \['log_size'\]"
    ):
        constructor.build_model(NAMES, ["log_size"], table(4, machine(wide)), LIMITS)


def test_noise_given_with_the_data_is_used(wide: TorchModel, table: Any) -> None:
    constructor = PriorMeanModelConstructor(mean_modules={"log_size": ModelMean(wide, NAMES, "size", torch.log10)})
    data = table(6, machine(wide))
    data["log_size_var"] = 1e-4
    with pytest.warns(UserWarning, match="Heteroskedastic"):
        constructor.build_model(NAMES, ["log_size"], data, LIMITS)
    assert math.isfinite(constructor.decisions[0].advantage)


def softplus_xopt(**options: Any) -> Xopt:
    model = TorchModel(
        torch.nn.Softplus(), [TorchScalarVariable(name="a", default_value=0.0)], [TorchScalarVariable(name="y")]
    )
    transform = ("y", lambda y: y.log10())
    vocs = vocs_from_model(model, {"a": (-2.0, 2.0)}, {"log_y": "MINIMIZE"}, outputs={"log_y": transform})
    constructor = PriorMeanModelConstructor(mean_modules={"log_y": ModelMean(model, ["a"], *transform)})
    generator = UpperConfidenceBoundGenerator(
        vocs=vocs, gp_constructor=constructor, numerical_optimizer=LBFGSOptimizer(n_restarts=2, max_iter=5)
    )
    X = Xopt(evaluator=xopt_evaluator(model, vocs), generator=generator, **options)
    X.random_evaluate(3)
    return X


def test_xopts_files_keep_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a transform that is a lambda."""
    monkeypatch.chdir(tmp_path)  # Xopt writes modules into the current directory
    X = softplus_xopt(serialize_torch=True)
    X.step()
    constructor = X.generator.gp_constructor
    X.dump("run.yml")
    again = Xopt.from_file("run.yml")
    kept = again.generator.gp_constructor
    assert isinstance(kept, PriorMeanModelConstructor)
    assert kept.report() == constructor.report()
    again.step()
    assert len(again.data) == 5
    assert len(kept.decisions) == len(constructor.decisions) + 1


@pytest.mark.parametrize("options", [{}, {"serialize_torch": True, "serialize_inline": True}], ids=["plain", "inline"])
def test_a_file_that_lost_the_mean_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    X = softplus_xopt(**options)
    assert "prior_mean" in str(X)  # for people, without a warning
    with pytest.warns(UserWarning, match=r"not in this file.*serialize_torch=True"):
        X.dump(str(tmp_path / "run.yml"))
    with pytest.raises(ValueError, match=r"not in this file.*serialize_torch=True"):
        Xopt.from_file(str(tmp_path / "run.yml"))


def test_what_cannot_be_kept_is_told_with_the_fix(wide: TorchModel) -> None:
    lock = threading.Lock()
    mean = ModelMean(wide, NAMES, "size", lambda size: size.log10() if lock else size)
    with pytest.raises(ValidationError, match=r"a ModelMean cannot be written to a file.*without open files, locks"):
        pickle.dumps(mean)
