"""TorchModel: layouts, batches, transformers, dtypes, and what a module may return."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lume_diff.errors import GradientError, ReadOnlyError, ShapeError, SimulatorError, ValidationError
from lume_diff.models import TorchModel
from lume_diff.variables import BoolVariable, EnumVariable, TorchNDVariable, TorchScalarVariable

F64 = torch.float64


def scalars(*names: str, default: float | None = 0.0) -> list[TorchScalarVariable]:
    return [TorchScalarVariable(name=name, default_value=default) for name in names]


class Counted(nn.Module):
    """Two numbers from three, seen by rows only."""

    def __init__(self, dtype: torch.dtype = F64) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=dtype)
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 2
        self.shapes.append(tuple(x.shape))
        return self.layer(x).tanh()


def counted_model(**options: Any) -> TorchModel:
    return TorchModel(Counted(), scalars("a", "b", "c"), scalars("y", "z"), **options)


# -- constants


def fixed(**options: Any) -> TorchScalarVariable:
    return TorchScalarVariable(name="b", read_only=True, **options)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_a_read_only_input_is_a_constant(batch: tuple[int, ...]) -> None:
    a, c = scalars("a", "c")
    model = TorchModel(
        lambda x: x[..., :1] + 10.0 * x[..., 1:2] + x[..., 2:], [a, fixed(default_value=3.0), c], scalars("y")
    )
    assert (model.input_names, model.output_names) == (["a", "c"], ["b", "y"])
    found = model({"a": torch.ones(batch, dtype=F64), "c": 0.5})
    assert found["y"].tolist() == torch.full(batch, 31.5).tolist()
    assert found["b"].shape == batch
    assert model.constant_names == ["b"]
    with pytest.raises(ReadOnlyError, match="'b'"):
        model.set({"b": 1.0})


def test_a_constant_reaches_a_module_of_dictionaries() -> None:
    model = TorchModel(
        lambda v: {"y": v["a"] * v["b"]}, [*scalars("a"), fixed(default_value=3.0)], scalars("y"), layout="dict"
    )
    assert model({"a": 2.0})["y"].item() == 6.0
    assert model.get("b").item() == 3.0


def test_constants_need_a_value_and_an_input_beside_them() -> None:
    with pytest.raises(ValidationError, match=r"read-only inputs are constants.*'b'"):
        TorchModel(nn.Identity(), [*scalars("a"), fixed()], scalars("y", "z"))
    with pytest.raises(ValidationError, match="at least one input variable"):
        TorchModel(nn.Identity(), [fixed(default_value=1.0)], scalars("y"))


# -- columns and batches


@pytest.mark.parametrize("batch", [(), (1,), (5,), (4, 5), (0,)], ids=str)
def test_a_batch_takes_one_call_of_rows(batch: tuple[int, ...]) -> None:
    model = counted_model()
    module = model.simulator
    a = torch.linspace(-1, 1, int(torch.tensor(batch).prod()), dtype=F64).reshape(batch)
    found = model({"a": a, "b": 0.5, "c": torch.ones(batch[-1:], dtype=F64)})
    assert module.shapes == [(a.numel(), 3)]
    rows = torch.stack([a, torch.full_like(a, 0.5), torch.ones_like(a)], dim=-1)
    torch.testing.assert_close(torch.stack([found["y"], found["z"]], -1), module.layer(rows).tanh())
    assert found["y"].shape == batch


def test_columns_follow_the_variables_and_not_the_call() -> None:
    model = TorchModel(nn.Identity(), scalars("a", "b"), scalars("y", "z"))
    found = model({"b": 2.0, "a": 1.0})
    assert (found["y"].item(), found["z"].item()) == (1.0, 2.0)
    model.set({"b": 4.0})
    model.set({"a": 3.0})
    assert (model.get("y").item(), model.get("z").item()) == (3.0, 4.0)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_arrays_in_and_out(batch: tuple[int, ...]) -> None:
    matrix = TorchNDVariable(name="m", shape=(2, 3))
    model = TorchModel(
        nn.Identity(),
        [*scalars("a"), matrix],
        [TorchNDVariable(name="first", shape=(2, 2)), *scalars("y"), TorchNDVariable(name="last", shape=(2,))],
    )
    m = torch.arange(6.0, dtype=F64).reshape(2, 3) + torch.zeros(*batch, 2, 3, dtype=F64)
    found = model({"a": -1.0, "m": m})
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "first": (*batch, 2, 2),
        "y": batch,
        "last": (*batch, 2),
    }
    assert found["first"].reshape(-1, 4)[0].tolist() == [-1.0, 0.0, 1.0, 2.0]
    assert found["last"].reshape(-1, 2)[0].tolist() == [4.0, 5.0]


class SumOfRow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (1,)], ids=str)
def test_one_output_may_come_without_its_column(batch: tuple[int, ...]) -> None:
    model = TorchModel(SumOfRow(), scalars("a", "b"), scalars("y"))
    assert model({"a": torch.ones(batch, dtype=F64), "b": 2.0})["y"].tolist() == torch.full(batch, 3.0).tolist()


# -- what a module returns that does not fit


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda x: x, r"\(4, 3\) for 4 rows; expected \(4, 2\) for outputs \['y', 'z'\]"),
        (lambda x: x.sum(-1), r"\(4,\) for 4 rows"),
        (lambda x: x.sum(), r"\(\) for 4 rows"),
        (lambda x: x[:1, :2], r"\(1, 2\) for 4 rows"),
        (lambda x: x[:, :2].mT, r"\(2, 4\) for 4 rows"),
        (lambda x: [x], "returned a list"),
        (lambda x: {"y": x}, "returned a dict"),
    ],
    ids=["too many", "one", "scalar", "rows lost", "transposed", "list", "dict"],
)
def test_a_wrong_answer_is_a_shape_error(function: Any, words: str) -> None:
    model = TorchModel(function, scalars("a", "b", "c"), scalars("y", "z"))
    with pytest.raises(ShapeError, match=words):
        model({"a": torch.zeros(4, dtype=F64)})


def test_what_fails_in_the_module_names_the_inputs() -> None:
    model = TorchModel(nn.Linear(5, 2, dtype=F64), scalars("a", "b", "c"), scalars("y", "z"))
    with pytest.raises(SimulatorError, match=r"TorchModel failed: RuntimeError: mat1.*a=1\.5"):
        model.set({"a": 1.5})
    assert model.get("a").item() == 0.0


def test_inputs_without_a_value_are_all_named() -> None:
    model = TorchModel(Counted(), scalars("a", "b", "c", default=None), scalars("y", "z"))
    assert model.get("a") is None
    with pytest.raises(ValidationError, match="inputs 'a', 'c' without a value"):
        model.set({"b": 1.0})
    assert model.get("b") is None
    with pytest.raises(ValidationError, match="input 'c' without a value"):
        model({"a": 1.0, "b": 1.0})
    model.set({"a": 1.0, "b": 1.0, "c": 1.0})
    assert model.get("y").shape == ()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"layout": "table"}, "'tensor' or 'dict'"),
        ({"module": 3}, "module is a int"),
        ({"input_variables": []}, "at least one"),
        ({"input_variables": [BoolVariable(name="on")]}, "'on' is a BoolVariable.*layout='dict'"),
        ({"output_variables": scalars("a")}, "'a' is given twice"),
        ({"dtype": torch.float32}, r"parameters are torch.float64: call model.to\(torch.float32\)"),
    ],
    ids=["layout", "module", "no input", "no column", "name", "dtype"],
)
def test_bad_construction_is_refused(change: dict[str, Any], words: str) -> None:
    arguments = {"module": Counted(), "input_variables": scalars("a"), "output_variables": scalars("y")}
    with pytest.raises(ValidationError, match=words):
        TorchModel(**{**arguments, **change})


# -- transformers


class Normalize(nn.Module):
    """As BoTorch's input transform: to the unit interval, and back."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)
        self.learned = 0

    def forward(self, x: Tensor) -> Tensor:
        self.learned += self.training
        return (x - self.low) / self.width

    def untransform(self, x: Tensor) -> Tensor:
        return x * self.width + self.low


class Standardize(Normalize):
    """As BoTorch's outcome transform, which gives a variance as well."""

    def untransform(self, x: Tensor) -> Any:
        return super().untransform(x), None


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


@pytest.mark.parametrize("kind", [Normalize, Standardize])
def test_transforms_of_inputs_are_applied_and_those_of_outputs_undone(kind: type[Normalize]) -> None:
    inputs = Normalize(doubles(10.0, 100.0), doubles(20.0, 300.0))
    outputs = kind(doubles(-1.0, 5.0), doubles(1.0, 6.0))
    model = TorchModel(nn.Identity(), scalars("a", "b"), scalars("y", "z"), [inputs], [outputs])
    found = model({"a": doubles(10.0, 15.0), "b": 300.0})
    assert found["y"].tolist() == [-1.0, 0.0]
    assert found["z"].tolist() == [6.0, 6.0]
    assert inputs.learned == 0


def test_transforms_that_assign_their_buffers_keep_them_from_a_transform_of_torch() -> None:
    class Assigning(Normalize):
        def forward(self, x: Tensor) -> Tensor:
            self.low = self.low.to(x)  # as BoTorch's do
            return super().forward(x)

        def untransform(self, x: Tensor) -> Tensor:
            self.width = self.width.to(x)
            return super().untransform(x)

    steps = [Assigning(doubles(1.0), doubles(3.0)) for _ in range(2)]
    model = TorchModel(SumOfCubes(), scalars("a"), scalars("y"), *steps)
    at = torch.tensor(0.5, dtype=F64)
    hessians = [torch.func.hessian(lambda a: model({"a": a})["y"])(at) for _ in range(2)]
    assert hessians[0].item() == hessians[1].item() == pytest.approx(2.0 * 6.0 * (-0.25) / 4.0, rel=1e-14)
    assert not any(torch._C._functorch.is_functorch_wrapped_tensor(buffer) for buffer in model.buffers())


class SumOfCubes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x**3).sum(-1)


def test_functions_are_transformers_and_apply_in_their_order() -> None:
    steps = [lambda x: x + 1.0, lambda x: x * 10.0]
    model = TorchModel(nn.Identity(), scalars("a"), scalars("y"), steps, [lambda y: y - 0.5, torch.square])
    assert model({"a": 1.0})["y"].item() == 19.5**2


@pytest.mark.parametrize(
    "make", [lambda t: t, lambda t: [t], lambda t: nn.ModuleList([t])], ids=["one", "list", "modules"]
)
def test_one_transformer_needs_no_list(make: Any) -> None:
    outputs = make(Normalize(doubles(1.0), doubles(3.0)))
    assert TorchModel(nn.Identity(), scalars("a"), scalars("y"), (), outputs)({"a": 0.5})["y"].item() == 2.0


def test_transformers_in_double_feed_a_single_network() -> None:
    transform = Normalize(doubles(0.0, 0.0, 0.0), doubles(2.0, 2.0, 2.0))
    model = TorchModel(Counted(torch.float32), scalars("a", "b", "c"), scalars("y", "z"), transform)
    assert model({"a": 1.0})["y"].dtype == torch.float32


# -- dtype, device, mode, copies


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_modules_and_can_change(dtype: torch.dtype) -> None:
    model = TorchModel(Counted(dtype), scalars("a", "b", "c"), scalars("y", "z"))
    assert model.dtype == dtype
    assert model({"a": 1.0})["y"].dtype == dtype
    other = torch.float32 if dtype == F64 else F64
    assert model.to(other)({"a": torch.tensor(1.0, dtype=dtype)})["y"].dtype == other


def test_a_module_without_parameters_is_double_unless_asked() -> None:
    assert TorchModel(nn.Identity(), scalars("a"), scalars("y")).dtype == F64
    single = TorchModel(nn.Identity(), scalars("a"), scalars("y"), dtype=torch.float32)
    assert single({"a": 1.0})["y"].dtype == torch.float32


def test_dropout_is_off_until_somebody_trains() -> None:
    model = TorchModel(
        nn.Sequential(nn.Linear(1, 200, dtype=F64), nn.Dropout(0.5), SumOfRow()), scalars("a"), scalars("y")
    )
    assert torch.equal(model({"a": 1.0})["y"], model({"a": 1.0})["y"])
    before = model.get("y")
    model.train()
    assert not torch.equal(model.get("y"), before)
    model.eval()
    assert torch.equal(model.get("y"), before)


def test_batch_normalisation_does_not_learn_when_it_is_read() -> None:
    norm = nn.BatchNorm1d(1, dtype=F64)
    model = TorchModel(norm, scalars("a"), scalars("y"))
    model({"a": torch.linspace(0, 9, 5, dtype=F64)})
    assert norm.num_batches_tracked == 0


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_has_weights_of_its_own(make: Any) -> None:
    model = counted_model()
    other = make(model)
    before = model.get("y").detach().clone()
    with torch.no_grad():
        other.module.layer.weight.add_(1.0)
        other.module.layer.bias.add_(1.0)
    assert torch.equal(model.get("y"), before)
    assert not torch.equal(other.get("y"), before)


def test_weights_are_saved_and_loaded() -> None:
    model, other = counted_model(), counted_model()
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.get("y"), other.get("y"))


# -- dictionaries


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, values: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        sign = torch.where(values["flip"], -1.0, 1.0)
        return {"y": sign * values["k"], "sum": values["w"].sum(-1), "unused": 1, "state": values["mode"]}


def named_model() -> TorchModel:
    inputs = [
        *scalars("k", default=2.0),
        TorchNDVariable(name="w", shape=(2,), default_value=[1.0, 2.0]),
        BoolVariable(name="flip", default_value=False),
        EnumVariable(name="mode", options=["a", "b"], default_value="a"),
    ]
    outputs = [*scalars("y", "sum", default=None), EnumVariable(name="state", options=["a", "b"])]
    return TorchModel(ByName(), inputs, outputs, layout="dict")


def test_dictionaries_in_and_out() -> None:
    model = named_model()
    found = model({"k": torch.ones(3, dtype=F64), "flip": torch.tensor([True, False, True]), "mode": "b"})
    assert found["y"].tolist() == [-1.0, 1.0, -1.0]
    assert (found["sum"].item(), found["state"]) == (3.0, "b")
    assert model.simulator.calls == 1
    assert set(found) == {"y", "sum", "state"}


def test_a_dictionary_with_an_output_missing_is_refused() -> None:
    model = TorchModel(lambda values: {"x": values["a"]}, scalars("a"), scalars("y"), layout="dict")
    with pytest.raises(SimulatorError, match=r"did not return its output 'y'; it returned \['x'\]"):
        model.get("y")
    with pytest.raises(ShapeError, match="returned a Tensor"):
        TorchModel(lambda values: values["a"], scalars("a"), scalars("y"), layout="dict").get("y")


def test_a_table_of_truth_values_has_no_derivative() -> None:
    with pytest.raises(GradientError, match="'flip' is a BoolVariable"):
        named_model().jacobian(["y"], ["flip"])
    assert named_model().jacobian(["y"], ["k"])["y"]["k"].item() == 1.0
