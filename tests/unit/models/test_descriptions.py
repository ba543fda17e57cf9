"""What can be changed about a model's variables once it is made, and what ``reset`` goes back to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lume_diff.errors import UnitError, UnknownVariableError, ValidationError
from lume_diff.models import LUMEModel, TorchModel
from lume_diff.variables import IntVariable, TorchScalarVariable


@pytest.fixture
def model() -> LUMEModel:
    """Return a model of one input and one output."""
    x = TorchScalarVariable(name="x", unit="mm", default_value=1.0)
    return TorchModel(lambda x: 2.0 * x, [x], [TorchScalarVariable(name="y", read_only=True)])


def described(model: LUMEModel, name: str, **fields: Any) -> None:
    model.describe([model.supported_variables[name].replace(**fields)])


def test_limits_are_enforced_from_then_on(model: LUMEModel) -> None:
    described(model, "x", value_range=(0.0, 2.0), description="a knob")
    assert model.supported_variables["x"].description == "a knob"
    with pytest.raises(ValidationError, match=r"outside value_range \[0, 2\] mm"):
        model.set({"x": 3.0})
    described(model, "y", unit="T", value_range=(0.0, 1.0), default_validation_config="error")
    with pytest.raises(ValidationError, match=r"outside value_range \[0, 1\] T"):
        model.get("y")


def test_what_does_not_fit_is_refused_and_changes_nothing(model: LUMEModel) -> None:
    before = dict(model.supported_variables)
    with pytest.raises(ValidationError, match=r"outside value_range \[2, 3\]"):
        model.describe([TorchScalarVariable(name="x", unit="mm", value_range=(2.0, 3.0))])
    with pytest.raises(UnitError, match="cannot be described in 'm'"):
        described(model, "x", unit="m")
    with pytest.raises(ValidationError, match="another kind"):
        model.describe([IntVariable(name="x")])
    with pytest.raises(ValidationError, match="an input an output"):
        described(model, "x", read_only=True)
    with pytest.raises(UnknownVariableError):
        model.describe([TorchScalarVariable(name="z")])
    assert dict(model.supported_variables) == before


def test_reset_goes_back_to_the_baseline_that_was_made(model: LUMEModel) -> None:
    model.set({"x": torch.tensor(3.0, dtype=torch.float64, requires_grad=True)})
    model.make_baseline()
    model.set({"x": 4.0})
    assert float(model.baseline("x")) == 3.0
    model.reset()
    assert float(model.get("x")) == 3.0
    assert not model.get("x").requires_grad
    with pytest.raises(UnknownVariableError):
        model.baseline("y")
