"""What can be changed about a model's variables once it is made, and what ``reset`` goes back to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import cheetah
import pytest
import torch

from lume_diff.errors import UnitError, UnknownVariableError, ValidationError
from lume_diff.models import BunchFromMoments, CheetahModel, FacilityModel, LUMEModel, StagedModel, TorchModel
from lume_diff.variables import IntVariable, TorchNDVariable, TorchScalarVariable


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
    image = TorchModel(
        lambda x: x.expand(-1, 4), [TorchScalarVariable(name="x")], [TorchNDVariable(name="w", shape=(4,))]
    )
    with pytest.raises(ValidationError, match=r"'w' has the shape \(4,\)"):
        described(image, "w", shape=(3,))
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


def segment_model() -> CheetahModel:
    """Return one quadrupole, at zero strength in its segment."""
    twiss = {"norm_emit_x": 1e-6, "norm_emit_y": 1e-6, "beta_x": 10.0, "beta_y": 5.0}
    bunch = BunchFromMoments(20, mean_energy=1e8, charge=1e-10, **twiss)
    length, k1 = (torch.tensor(number, dtype=torch.float64) for number in (0.2, 0.0))
    segment = cheetah.Segment([cheetah.Quadrupole(length, k1, name="Q1")], name="line")
    return CheetahModel(segment, bunch.get("final_particles"))


def chain() -> StagedModel:
    return StagedModel({"line": segment_model()})


def facility() -> FacilityModel:
    return FacilityModel(segment_model(), {"keep": ["Q1.k1", "final.sigma_px"]})


def another_stage(model: LUMEModel) -> LUMEModel:
    """Return a chain whose second stage has been replaced since the baseline was made."""
    assert isinstance(model, StagedModel)
    model.replace("after", segment_model())
    return model


def with_stage_behind() -> StagedModel:
    return StagedModel({"line": segment_model(), "after": segment_model()})


def refreshed(model: LUMEModel) -> LUMEModel:
    model.refresh()
    return model


def after_to(model: LUMEModel) -> LUMEModel:
    return model.to(torch.float64)


@pytest.mark.parametrize(
    ("make", "change"),
    [
        *(
            (make, change)
            for make in (segment_model, chain, facility)
            for change in (copy.deepcopy, refreshed, after_to)
        ),
        (with_stage_behind, another_stage),
    ],
    ids=lambda function: function.__name__,
)
def test_a_baseline_that_was_made_stays_that_of_the_line(
    make: Callable[[], LUMEModel], change: Callable[[LUMEModel], LUMEModel]
) -> None:
    model = make()
    name = "Q1.k1" if "Q1.k1" in model.input_names else "line/Q1.k1"
    output = "final.sigma_px" if "final.sigma_px" in model.output_names else "line/final.sigma_px"
    model.set({name: 5.0})
    expected = float(model.get(output))
    model.make_baseline()
    model.reset()
    assert float(model.get(output)) == pytest.approx(expected, rel=1e-14)
    model = change(model)
    assert float(model.get(name)) == float(model.baseline(name)) == 5.0
    assert float(model.get(output)) == pytest.approx(expected, rel=1e-14)
    model.set({name: 1.0})
    model.reset()
    assert float(model.get(output)) == pytest.approx(expected, rel=1e-14)


def test_an_own_parameter_of_the_segment_does_not_undo_a_baseline() -> None:
    model = segment_model()
    segment = model.simulator
    segment.Q1.k1 = torch.nn.Parameter(segment.Q1.k1)
    model = CheetahModel(segment, model.get("initial_particles"))
    model.set({"Q1.k1": 5.0})
    expected = float(model.get("final.sigma_px"))
    model.make_baseline()
    model.reset()
    fresh = copy.deepcopy(model)
    for each in (model, fresh):
        assert float(each.get("Q1.k1")) == 5.0
        assert float(each.get("final.sigma_px")) == pytest.approx(expected, rel=1e-14)
