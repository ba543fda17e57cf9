"""What a Jacobian through a black box of numbers costs is foretold, in every mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from lume_diff.blackbox import BlackBoxModel, FiniteDifference
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import GradientError
from lume_diff.models import LUMEModel
from lume_diff.variables import TorchNDVariable, TorchScalarVariable
from tests.gradient.jacobian_costs import MODES, fresh, runs_of, spend, t

pytestmark = pytest.mark.gradient


def numbers(count: int, **options: Any) -> BlackBoxModel:
    def function(**inputs: Any) -> dict[str, Any]:
        total = sum(i * float(np.sum(np.sin(value))) for i, value in enumerate(inputs.values(), 1))
        return {"y": total, "w": np.array([total**2, np.cos(total), total])}

    names = [f"a{i}" for i in range(count)]
    return BlackBoxModel.from_function(
        function,
        inputs=[TorchScalarVariable(name=name, default_value=0.4, scale=0.1, value_range=(0.0, 2.0)) for name in names],
        outputs=[TorchScalarVariable(name="y"), TorchNDVariable(name="w", shape=(3,))],
        gradient=FiniteDifference(**options),
    )


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("scheme, per_input", [("central", 2), ("forward", 1), ("fourth", 4)])
def test_a_box_of_numbers_takes_its_runs_once(mode: str, count: int, scheme: str, per_input: int) -> None:
    model = numbers(count, scheme=scheme, step=1e-3)
    _, cost = spend(model, ["y", "w"], model.input_names, mode)
    assert runs_of(cost) == {"reverse": 1 + per_input * count, "forward": 1 + per_input * count}
    assert (cost.runs, cost.learning_runs) == (cost.predicted.runs, 0)
    assert cost.mode == ("forward" if count < 4 else "reverse") if mode == "auto" else mode


def test_noise_is_measured_once_and_counted_apart() -> None:
    model = numbers(3)
    _, first = spend(model, ["y", "w"], model.input_names)
    assert 3 * 8 <= first.learning_runs <= 3 * 16
    for mode in ("reverse", "forward"):
        _, cost = spend(model, ["y", "w"], model.input_names, mode)
        assert cost.learning_runs == 0
        assert cost.runs == cost.predicted.runs == runs_of(cost)["forward"]
        assert 1 + 2 * 3 <= cost.runs <= 1 + 3 * 2 * 3


def test_a_known_point_costs_nothing_more() -> None:
    model = numbers(2, step=1e-3)
    point = fresh(model.input_names)
    tables = [spend(model, ["y"], model.input_names, mode, **point) for mode in ("reverse", "forward", "auto")]
    assert [cost.runs for _, cost in tables] == [5, 0, 0]
    assert {cost.predicted.runs for _, cost in tables} == {5}
    assert tables[0][0]["y"]["a1"].item() == pytest.approx(2.0 * np.cos(point["a1"]), rel=1e-6)
    assert all(table["y"]["a1"] == tables[0][0]["y"]["a1"] for table, _ in tables)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_batch_and_a_limit_are_foretold(mode: str) -> None:
    """Next to a limit the stencil of four points becomes a one-sided one of two."""
    model = numbers(2, scheme="fourth", step=1e-2)
    _, cost = spend(model, ["y"], ["a0", "a1"], mode, a0=t([0.0, 1.0, 1.5]), a1=0.7)
    assert cost.runs == cost.predicted.runs == 3 * 1 + (2 + 4 + 4) + 3 * 4


def test_a_box_without_a_gradient_says_so_in_every_mode() -> None:
    names = [TorchScalarVariable(name="a", default_value=1.0)]
    model = BlackBoxModel.from_function(lambda a: a, names, [TorchScalarVariable(name="y")], gradient=None)
    for mode in ("auto", *MODES):
        with pytest.raises(GradientError, match="built without a gradient"):
            model.jacobian(["y"], ["a"], mode=mode)


class HalfNative(Simulator):
    """Know one of two derivatives."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {"y": inputs["a"] ** 2 * inputs["b"] ** 3}

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        return {"y": {"a": np.array(2.0 * inputs["a"] * inputs["b"] ** 3)}}


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
def test_derivatives_of_the_codes_own_are_free(mode: str) -> None:
    knobs = [TorchScalarVariable(name=name, default_value=0.5, scale=0.1) for name in "ab"]
    output = TorchScalarVariable(name="y", read_only=True)
    model = BlackBoxModel(HalfNative, [*knobs, output], FiniteDifference(native=True, step=1e-3))
    _, first = spend(model, ["y"], ["a", "b"], mode)
    assert (first.runs, first.learning_runs) == (3, 2)
    table, cost = spend(model, ["y"], ["a", "b"], mode, a=0.5, b=0.6)
    assert cost.runs == cost.predicted.runs == 3
    assert table["y"]["a"].item() == pytest.approx(0.6**3, rel=1e-12)


class Wrapped(LUMEModel):
    """Take the sum of what a box gives, under the box's names."""

    def __init__(self, model: LUMEModel) -> None:
        super().__init__(model.supported_variables.values())
        self.model = model

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {name: 2.0 * value for name, value in self.model(inputs, outputs=outputs).items()}


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
def test_a_box_in_a_wrapper_is_foretold(mode: str) -> None:
    model = Wrapped(numbers(2, step=1e-3))
    table, cost = spend(model, ["w"], ["a0", "a1"], mode, a0=0.5, a1=0.6)
    assert cost.runs == cost.predicted.runs == 5
    assert table["w"]["a0"][2].item() == pytest.approx(2.0 * np.cos(0.5), rel=1e-5)
