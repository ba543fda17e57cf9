"""EnsembleModel: means, deviations, their gradients, and members that do not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lume_diff.errors import ReadOnlyError, UnknownVariableError, ValidationError
from lume_diff.models import BunchFromMoments, EnsembleModel, StagedModel, TorchModel
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

F64 = torch.float64


def member(seed: int, inputs: tuple[str, ...] = ("a", "b"), dtype: torch.dtype = F64, **options: Any) -> TorchModel:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(len(inputs), 6), nn.Tanh(), nn.Linear(6, 2)).to(dtype)
    made = [TorchScalarVariable(name=name, default_value=0.2, value_range=(-1.0, 1.0)) for name in inputs]
    return TorchModel(net, made, [TorchScalarVariable(name=name, unit="m") for name in ("y", "z")], **options)


def test_mean_and_deviation_are_those_of_the_members() -> None:
    members = [member(seed) for seed in range(4)]
    model = EnsembleModel(members)
    a = torch.linspace(-1, 1, 5, dtype=F64)
    found = model({"a": a})
    each = torch.stack([one({"a": a})["y"] for one in members])
    torch.testing.assert_close(found["y"], each.mean(0), rtol=1e-14, atol=0.0)
    torch.testing.assert_close(found["y.std"], each.std(0), rtol=1e-13, atol=0.0)
    assert model.supported_variables["y.std"].unit == "m"
    assert model.output_names == ["y", "y.std", "z", "z.std"]


def test_members_that_agree_have_no_deviation_and_a_finite_gradient() -> None:
    model = EnsembleModel([member(1), member(1), member(1)])
    a = torch.tensor(0.3, dtype=F64, requires_grad=True)
    deviation = model({"a": a})["y.std"]
    assert deviation.item() < 1e-15
    (gradient,) = torch.autograd.grad(deviation, a)
    assert bool(gradient.isfinite())


def test_arrays_have_an_array_of_deviations() -> None:
    wave = TorchNDVariable(name="wave", shape=(3,))
    x = TorchScalarVariable(name="x", default_value=1.0)
    model = EnsembleModel([TorchModel(lambda v, k=k: v * torch.arange(3.0) * k, [x], [wave]) for k in (1.0, 2.0)])
    assert model({"x": torch.ones(4, dtype=F64)})["wave.std"].shape == (4, 3)


def test_a_constant_stays_one() -> None:
    x = TorchScalarVariable(name="x", default_value=1.0)
    fixed = TorchScalarVariable(name="charge", default_value=3.0, read_only=True)
    y = TorchScalarVariable(name="y")
    model = EnsembleModel([TorchModel(lambda v, k=k: k * v.prod(-1), [x, fixed], [y]) for k in (1.0, 2.0)])
    assert model.get() == {"x": 1.0, "charge": 3.0, "y": 4.5, "y.std": pytest.approx(4.5**0.5 * 1.0)}
    with pytest.raises(ReadOnlyError):
        model.set({"charge": 1.0})


def test_it_is_a_stage_like_any_other() -> None:
    bunch = BunchFromMoments(
        50, mean_energy=1e8, charge=1e-10, beta_x=5.0, beta_y=5.0, norm_emit_x=1e-6, norm_emit_y=1e-6
    )
    chain = StagedModel({"gun": EnsembleModel([member(0), member(1)]), "bunch": bunch}, {"bunch/mean_x": "gun/y"})
    a = torch.tensor(0.1, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(chain({"a": a})["final.mean_x"], a)
    assert gradient.item() != 0.0


def in_micrometres(model: TorchModel) -> TorchModel:
    variables = model.supported_variables
    outputs = [variables[name].replace(unit="um") for name in model.output_names]
    return TorchModel(model.module, [variables[name] for name in model.input_names], outputs)


@pytest.mark.parametrize(
    "members, match",
    [
        ([], "members has 0"),
        ([member(0)], "needs two or more"),
        ([member(0), member(1, ("a", "c"))], "input_names of member 1"),
        ([member(0), member(1, dtype=torch.float32)], "dtype of member 1"),
        ([member(0), 3], "member 1 is a int"),
        ([(same := member(0)), same], "one model twice"),
        ([member(0), in_micrometres(member(1))], "'y' of member 1 is a TorchScalarVariable in 'um', of member 0"),
    ],
    ids=["none", "one", "other inputs", "other precision", "no model", "twice", "other unit"],
)
def test_members_that_do_not_fit_are_refused(members: list[Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        EnsembleModel(members)


def test_a_deviation_is_read_only() -> None:
    model = EnsembleModel([member(0), member(1)])
    with pytest.raises(ReadOnlyError, match=r"y\.std"):
        model.set({"y.std": 1.0})
    with pytest.raises(UnknownVariableError, match=r"nearest: 'y\.std'"):
        model.get("y.sdt")
