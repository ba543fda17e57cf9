"""VOCS and evaluator of a model, and Xopt's generators with its mean."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("xopt")

from xopt import Xopt
from xopt.errors import XoptError
from xopt.generators import get_generator
from xopt.numerical_optimizer import LBFGSOptimizer
from xopt.vocs import VOCS

from lume_diff.blackbox import BlackBoxModel
from lume_diff.calibration import (
    ModelMean,
    ParallelLBFGSOptimizer,
    PriorMeanModelConstructor,
    vocs_from_model,
    xopt_evaluator,
)
from lume_diff.calibration.prior_mean.storing import loaded_module
from lume_diff.calibration.prior_mean.vocs import units_of
from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.models import TorchModel
from lume_diff.variables import TorchScalarVariable as Scalar

NAMES = ["Q2.k1", "Q10.k1", "B.k1"]
SIZE = {"log_size": ("size", torch.log10)}


def test_variables_and_ranges_come_from_the_model(model: TorchModel) -> None:
    vocs = vocs_from_model(model, NAMES, {"size": "MINIMIZE"}, constraints={"profile_sum": ["LESS_THAN", 1.0]},
                           outputs={"profile_sum": ("profile", lambda profile: profile.sum(-1))})  # fmt: skip
    assert {name: variable.domain for name, variable in vocs.variables.items()} == {
        "Q2.k1": [-4.0, 4.0],
        "Q10.k1": [0.0, 10.0],
        "B.k1": [-1.0, 3.0],
    }
    assert units_of(vocs) == {**dict.fromkeys(NAMES, "1/m^2"), "size": "m"}
    assert vocs.constraints["profile_sum"].value == 1.0


def test_ranges_can_be_narrowed(model: TorchModel) -> None:
    vocs = vocs_from_model(model, {"Q2.k1": (-1.0, 1.0), "B.k1": None}, {"size": "MINIMIZE"})
    assert [vocs.variables[name].domain for name in ("Q2.k1", "B.k1")] == [[-1.0, 1.0], [-1.0, 3.0]]


def test_all_mistakes_in_a_vocs_are_told(model: TorchModel) -> None:
    with pytest.raises(ValidationError) as caught:
        vocs_from_model(model, {"Q2.k1": (-5.0, 1.0)}, {"emittance": "MINIMIZE"}, outputs={"other": "size"})
    text = str(caught.value)
    for part in ("range of 'Q2.k1' is (-5.0, 1.0)", "'emittance' is not an output", "outputs has 'other'"):
        assert part in text


def test_an_input_without_a_range_needs_one() -> None:
    model = TorchModel(torch.nn.Softplus(), [Scalar(name="a", default_value=0.0)], [Scalar(name="y")])
    with pytest.raises(ValidationError, match=r"'a' has no value_range: give its range, inputs=\{'a': \(low, high\)"):
        vocs_from_model(model, ["a"], {"y": "MINIMIZE"})
    knob = Scalar(name="a", default_value=0.0, value_range=(0.0, math.inf))
    half = TorchModel(torch.nn.Softplus(), [knob], [Scalar(name="y")])
    with pytest.raises(
        ValidationError, match=r"'a' has the value_range \(0\.0, inf\), which has no end: give its range"
    ):
        vocs_from_model(half, ["a"], {"y": "MINIMIZE"})
    with pytest.raises(ValidationError, match=r"range of 'a' is \(0\.0, inf\); expected a finite, increasing one"):
        vocs_from_model(half, {"a": (0.0, math.inf)}, {"y": "MINIMIZE"})


def test_the_evaluator_computes_a_batch_at_once(model: TorchModel) -> None:
    import pandas as pd

    vocs = vocs_from_model(model, NAMES, {"log_size": "MINIMIZE"}, observables=["size"], outputs=SIZE)
    runs = model.runs
    found = xopt_evaluator(model, vocs).evaluate_data(
        pd.DataFrame({"Q2.k1": [1.0, 0.0], "Q10.k1": [6.0, 6.0], "B.k1": [0.5, 0.5]})
    )
    assert model.runs == runs + 1
    np.testing.assert_allclose(found["log_size"], np.log10(found["size"]))
    assert found["size"][0] == pytest.approx(1e-4)


def test_a_plain_vocs_needs_to_be_told_how(model: TorchModel) -> None:
    vocs = VOCS(variables={"Q2.k1": [0.0, 1.0]}, objectives={"log_size": "MINIMIZE"})
    with pytest.raises(ValidationError, match=r"'log_size' of the VOCS.*say how it is computed in outputs"):
        xopt_evaluator(model, vocs)
    assert "log_size" in xopt_evaluator(model, vocs, outputs=SIZE).evaluate({"Q2.k1": 0.5})


def test_a_vocs_with_other_variables_is_refused(model: TorchModel) -> None:
    vocs = VOCS(variables={"Q3.k1": [0.0, 1.0]}, objectives={"size": "MINIMIZE"})
    with pytest.raises(UnknownVariableError, match=r"'Q3\.k1' is not an input"):
        xopt_evaluator(model, vocs)


def test_readbacks_are_used_and_recorded(model: TorchModel) -> None:
    vocs = vocs_from_model(model, ["Q2.k1"], {"size": "MINIMIZE"})

    def readback(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.round(value) for name, value in settings.items()}

    found = xopt_evaluator(model, vocs, readback=readback).evaluate({"Q2.k1": 0.8})
    exact = xopt_evaluator(model, vocs).evaluate({"Q2.k1": 1.0})
    assert float(found["Q2.k1_RBV"]) == 1.0
    assert float(found["size"]) == float(exact["size"])


def test_a_black_box_gets_a_batch_for_its_workers() -> None:
    import pandas as pd

    model = BlackBoxModel.from_function(
        lambda a: {"y": a**2}, [Scalar(name="a", default_value=1.0, value_range=(-2.0, 2.0))], [Scalar(name="y")]
    )
    vocs = vocs_from_model(model, ["a"], {"y": "MINIMIZE"})
    found = xopt_evaluator(model, vocs).evaluate_data(pd.DataFrame({"a": [1.0, -2.0]}))
    assert list(found["y"]) == [1.0, 4.0]


def _noted_square(a: float) -> dict[str, float]:
    import os
    import time

    time.sleep(0.4)  # so that no worker is done before the other has begun
    with open(os.environ["LUME_DIFF_TEST_NOTES"], "a") as notes:
        notes.write(f"{os.getpid()}\n")
    return {"y": a**2}


@pytest.mark.slow
@pytest.mark.system
def test_a_batch_of_a_step_runs_on_the_models_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points a step, in two processes, at the readbacks; and the same again from Xopt's file."""
    import os

    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "processes.txt"
    monkeypatch.setenv("LUME_DIFF_TEST_NOTES", str(notes))
    inputs = [Scalar(name="a", default_value=1.0, value_range=(-2.0, 2.0))]

    def readback(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value + 0.125 for name, value in settings.items()}

    with BlackBoxModel.from_function(_noted_square, inputs, [Scalar(name="y")], gradient=None, workers=2) as model:
        vocs = vocs_from_model(model, {"a": (-1.5, 1.5)}, {"y": "MINIMIZE"})
        optimizer = LBFGSOptimizer(n_restarts=2, max_iter=5)
        generator = get_generator("upper_confidence_bound")(
            vocs=vocs, numerical_optimizer=optimizer, n_monte_carlo_samples=8
        )
        evaluator = xopt_evaluator(model, vocs, readback=readback, batch=2)
        X = Xopt(evaluator=evaluator, generator=generator, serialize_torch=True)
        X.random_evaluate(6, seed=0)
        X.step()
        assert len(X.data) == model.runs == 8
        np.testing.assert_allclose(X.data["a_RBV"], X.data["a"] + 0.125)
        np.testing.assert_allclose(X.data["y"], X.data["a_RBV"] ** 2)
        processes = set(map(int, notes.read_text().split()))
        assert len(processes) == 2
        assert os.getpid() not in processes
        X.dump("run.yml")
    again = Xopt.from_file("run.yml")
    assert float(again.evaluator.evaluate({"a": 0.5})["y"]) == 0.625**2
    loaded_module("function_kwargs_evaluation.pt").model.close()


def test_an_evaluator_that_lost_its_model_says_so(model: TorchModel) -> None:
    vocs = vocs_from_model(model, ["Q2.k1"], {"size": "MINIMIZE"})
    X = Xopt(evaluator=xopt_evaluator(model, vocs), generator=get_generator("random")(vocs=vocs))
    again = Xopt.from_yaml(X.yaml())
    with pytest.raises(XoptError, match=r"not in the file that Xopt loaded.*serialize_torch=True"):
        again.random_evaluate(1)


def test_a_file_that_was_written_anew_is_read_anew(
    model: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Xopt gives all evaluators one file name."""
    monkeypatch.chdir(tmp_path)
    found = []
    for output in ("size", "profile_sum"):
        outputs = {"profile_sum": ("profile", _total)} if output == "profile_sum" else None
        vocs = vocs_from_model(model, ["Q2.k1"], {output: "MINIMIZE"}, outputs=outputs)
        generator = get_generator("random")(vocs=vocs)
        Xopt(evaluator=xopt_evaluator(model, vocs), generator=generator, serialize_torch=True).dump("run.yml")
        found.append(Xopt.from_file("run.yml").evaluator.evaluate({"Q2.k1": 0.5}))
    assert "size" in found[0]
    assert "profile_sum" in found[1]


def optimised(model: TorchModel, vocs: VOCS, name: str, **options: Any) -> Xopt:
    generator_class = get_generator(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using upper confidence bound with constraints")
        generator = generator_class(vocs=vocs, **options)
    X = Xopt(evaluator=xopt_evaluator(model, vocs), generator=generator)
    X.random_evaluate(4)
    for _ in range(2):
        X.step()
    return X


CONSTRAINED = {"constraints": {"total": ["LESS_THAN", 0.05]}}


@pytest.mark.parametrize(
    "name, extra, more",
    [
        ("upper_confidence_bound", {}, {}),
        ("expected_improvement", {}, {}),
        pytest.param("expected_improvement", CONSTRAINED, {}, marks=pytest.mark.slow),
        pytest.param("mobo", {}, {"reference_point": {"log_size": -2.0, "total": 0.1}}, marks=pytest.mark.slow),
    ],
    ids=["ucb", "ei", "constrained ei", "mobo"],
)
def test_generators_take_the_mean(
    model: TorchModel, name: str, extra: dict[str, Any], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # BoTorch compiles a faster form of mobo's acquisition function, in half a minute; its own one in Python does here.
    monkeypatch.setattr("botorch.acquisition.multi_objective.logei._load_attempted", True, raising=False)
    total = ("profile", _total)
    objectives = {"log_size": "MINIMIZE"} | ({"total": "MINIMIZE"} if name == "mobo" else {})
    outputs = {**SIZE, **({"total": total} if name == "mobo" or extra else {})}
    vocs = vocs_from_model(model, NAMES, objectives, outputs=outputs, **extra)
    means = {"log_size": ModelMean(model, NAMES, "size", torch.log10)}
    if "total" in outputs:
        means["total"] = ModelMean(model, NAMES, *total)
    gp = PriorMeanModelConstructor(mean_modules=means)
    optimizer = ParallelLBFGSOptimizer(n_restarts=2, max_iter=10, max_time=60.0)
    X = optimised(model, vocs, name, gp_constructor=gp, numerical_optimizer=optimizer, n_monte_carlo_samples=16, **more)
    assert len(X.data) == 6
    assert {decision.objective for decision in gp.decisions} == set(means)
    assert all(decision.trusted for decision in gp.decisions)


def _total(profile: torch.Tensor) -> torch.Tensor:
    return profile.sum(-1)


@pytest.mark.parametrize("name", ["random", "neldermead"])
def test_other_generators_take_the_evaluator(model: TorchModel, name: str) -> None:
    X = optimised(model, vocs_from_model(model, NAMES, {"log_size": "MINIMIZE"}, outputs=SIZE), name)
    assert len(X.data) == 6
    assert X.data["log_size"].notna().all()
