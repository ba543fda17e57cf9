"""Real numbers: what is accepted, how it is cast, and what limits do."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lume_diff.errors import OutOfRangeWarning, ShapeError, ValidationError
from lume_diff.variables import TorchScalarVariable, from_dict, from_json, from_yaml, to_dict, to_json, to_yaml

F32, F64 = torch.float32, torch.float64

ACCEPTED: list[tuple[str, Any]] = [
    ("float", 2.0), ("int", 2), ("numpy float64", np.float64(2)), ("numpy float32", np.float32(2)),
    ("numpy float16", np.float16(2)), ("numpy longdouble", np.longdouble(2)), ("numpy int32", np.int32(2)),
    ("numpy int64", np.int64(2)), ("numpy uint64", np.uint64(2)), ("0-d array", np.array(2.0)),
    ("0-d integer array", np.array(2)), ("0-d tensor", torch.tensor(2.0, dtype=F64)),
    ("0-d float32 tensor", torch.tensor(2.0)), ("0-d bfloat16 tensor", torch.tensor(2.0, dtype=torch.bfloat16)),
    ("0-d integer tensor", torch.tensor(2)), ("0-d int32 tensor", torch.tensor(2, dtype=torch.int32)),
    ("parameter", torch.nn.Parameter(torch.tensor(2.0))),
    ("array", np.full((3, 2), 2.0)), ("float32 array", np.full((3, 2), 2, dtype=np.float32)),
    ("reversed array", np.full((3, 2), 2.0)[::-1]), ("big-endian array", np.full((3, 2), 2.0, dtype=">f4")),
    ("tensor", torch.full((3, 2), 2.0)), ("integer tensor", torch.full((3, 2), 2)), ("list", [[2.0, 2]] * 3),
    ("tuple", ((2, 2),) * 3), ("list of tensors", [torch.full((2,), 2.0)] * 3),
    ("mixed list", [[torch.tensor(2.0), 2.0], [np.float32(2), 2], np.array([2, 2])]),
    ("empty batch", torch.zeros(0, 3)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("value", [pytest.param(x, id=i) for i, x in ACCEPTED])
def test_numbers_are_cast_to_the_dtype(value: Any, dtype: torch.dtype) -> None:
    out = TorchScalarVariable(name="a", value_range=(0, 3)).validate_value(value, dtype=dtype, device="cpu")
    assert out.dtype is dtype
    assert tuple(out.shape) == (np.shape(value) if not isinstance(value, list) else (3, 2))
    assert (out == 2.0).all()


@pytest.mark.parametrize("make", [np.float64, np.array, lambda x: np.array([x]), torch.tensor, lambda x: [x]])
def test_double_precision_is_kept(make: Any) -> None:
    value = torch.tensor(0.1, dtype=F64) if make is torch.tensor else make(0.1)
    assert TorchScalarVariable(name="a").validate_value(value).reshape(()).item() == 0.1


def test_memory_of_numpy_is_copied() -> None:
    array = np.array([1.0, 2.0])
    out = TorchScalarVariable(name="a").validate_value(array)
    array[0] = 7.0
    assert out.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_the_graph_is_kept(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    leaf = torch.ones(shape, dtype=F64, requires_grad=True)
    out = TorchScalarVariable(name="a", value_range=(-2, 2)).validate_value(leaf, dtype=dtype)
    (3.0 * out).sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.full(shape, 3.0, dtype=F64))
    if dtype is F64:
        assert out is leaf


def test_the_graph_is_kept_through_a_list() -> None:
    a, b = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (1.0, 2.0))
    TorchScalarVariable(name="k").validate_value([[a, 3.0], [b, b]]).square().sum().backward()
    assert (a.grad, b.grad) == (torch.tensor(2.0, dtype=F64), torch.tensor(8.0, dtype=F64))


LOW, HIGH = -1.0, 2.0
OUTSIDE = [
    ("float", 3.0, ""), ("int", -2, ""), ("0-d", torch.tensor(3.0, dtype=F64), ""),
    ("batch", torch.tensor([0.0, 3.0, 2.5]), "batch index (1,)"),
    ("matrix", np.array([[0.0, 0.0], [-9.0, 3.0]]), "batch index (1, 0)"),
    ("graph", torch.tensor([0.0, 3.0], requires_grad=True), "batch index (1,)"),
]  # fmt: skip


@pytest.mark.parametrize("value,where", [pytest.param(x, w, id=i) for i, x, w in OUTSIDE])
class TestLimits:
    variable = TorchScalarVariable(name="Q1.k1", unit="1/m^2", value_range=(LOW, HIGH))

    def test_error_names_everything(self, value: Any, where: str) -> None:
        with pytest.raises(ValidationError) as caught:
            self.variable.validate_value(value)
        worst = np.asarray(torch.as_tensor(value).detach())
        worst = worst.reshape(-1)[np.maximum(LOW - worst, worst - HIGH).argmax()]
        for words in ("'Q1.k1'", f"{float(worst)!r} 1/m^2", "[-1, 2] 1/m^2", where, "widen value_range"):
            assert words in str(caught.value)

    def test_warn_passes_with_a_warning(self, value: Any, where: str) -> None:
        with pytest.warns(OutOfRangeWarning, match="outside value_range"):
            out = self.variable.validate_value(value, config="warn")
        assert torch.equal(out, torch.as_tensor(value).to(F64))
        with pytest.warns(OutOfRangeWarning):
            self.variable.replace(default_validation_config="warn").validate_value(value)
        with pytest.warns(OutOfRangeWarning):
            self.variable.replace(read_only=True).validate_value(value)

    def test_none_passes(self, value: Any, where: str) -> None:
        for out in (
            self.variable.validate_value(value, config="none"),
            self.variable.replace(default_validation_config="none").validate_value(value),
        ):
            assert torch.equal(out, torch.as_tensor(value).to(F64))

    def test_the_caller_overrides_the_variable(self, value: Any, where: str) -> None:
        with pytest.raises(ValidationError):
            self.variable.replace(default_validation_config="none").validate_value(value, config="error")


@pytest.mark.parametrize("value", [LOW, HIGH, torch.tensor(HIGH, dtype=F64), torch.tensor([LOW, HIGH])], ids=str)
def test_ends_belong_to_the_range(value: Any) -> None:
    TorchScalarVariable(name="a", value_range=(LOW, HIGH)).validate_value(value)


@pytest.mark.parametrize("source", [F64, F32, torch.float16], ids=str)
@pytest.mark.parametrize("target", [F64, F32], ids=str)
@pytest.mark.parametrize("shape", [(), (2,)], ids=str)
def test_rounding_of_the_ends_is_no_violation(source: torch.dtype, target: torch.dtype, shape: tuple[int]) -> None:
    variable = TorchScalarVariable(name="a", value_range=(0.1, 0.3))
    for end in (0.1, 0.3):
        variable.validate_value(torch.full(shape, end, dtype=source), dtype=target)
    with pytest.raises(ValidationError):
        variable.validate_value(torch.full(shape, 0.301, dtype=source), dtype=target)


@pytest.mark.parametrize("ends", [(None, 1), (0, None), (-math.inf, 1.0), (None, None), [0, 1]], ids=str)
def test_open_ends(ends: Any) -> None:
    variable = TorchScalarVariable(name="a", value_range=ends)
    low, high = variable.value_range
    assert low == (-math.inf if ends[0] is None else ends[0])
    assert high == (math.inf if ends[1] is None else ends[1])
    variable.validate_value(0.5)
    for end, bad in ((low, -1e300), (high, 1e300)):
        if math.isinf(end):
            variable.validate_value(bad)
        else:
            with pytest.raises(ValidationError):
                variable.validate_value(bad)


@pytest.mark.parametrize("policy", ["none", "warn", "error"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor([0.0, -torch.inf])], ids=str)
def test_not_finite_never_passes_on_an_input(policy: str, bad: Any) -> None:
    with pytest.raises(ValidationError, match="not finite"):
        TorchScalarVariable(name="a").validate_value(bad, config=policy)


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor([0.0, -torch.inf])], ids=str)
def test_not_finite_follows_the_policy_on_an_output(bad: Any) -> None:
    variable = TorchScalarVariable(name="a", read_only=True)
    with pytest.warns(OutOfRangeWarning, match="not finite"):
        variable.validate_value(bad)
    variable.validate_value(bad, config="none")
    with pytest.raises(ValidationError, match="not finite"):
        variable.validate_value(bad, config="error")


def test_what_the_dtype_cannot_hold_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"too large for torch\.float32"):
        TorchScalarVariable(name="a").validate_value(1e39, dtype=F32)
    with pytest.raises(ValidationError, match="not finite"):
        TorchScalarVariable(name="a").validate_value(torch.tensor(torch.inf), dtype=F32)


class TestTransforms:
    variable = TorchScalarVariable(name="a", value_range=(0.0, 1.0))

    def test_numbers_are_not_read(self) -> None:
        def f(x: torch.Tensor) -> torch.Tensor:
            return self.variable.validate_value(x, dtype=F64, config="error").square().sum()

        x = torch.tensor([2.0, 3.0], dtype=F64)
        assert torch.equal(torch.func.grad(f)(x), 2 * x)
        assert torch.equal(torch.func.vmap(f)(x), x**2)
        assert torch.equal(torch.func.jacfwd(f)(x), 2 * x)
        assert torch.equal(torch.func.jacrev(f)(x), 2 * x)
        assert torch.equal(torch.func.hessian(f)(x), 2 * torch.eye(2, dtype=F64))
        assert torch.equal(torch.func.vmap(torch.func.grad(f))(x), 2 * x)

    def test_meta_and_fake_tensors_pass(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensorMode

        for shape in ((), (3,)):
            assert self.variable.validate_value(torch.empty(shape, dtype=F64, device="meta")).shape == shape
            with FakeTensorMode():
                assert self.variable.validate_value(torch.empty(shape, dtype=F64)).shape == shape

    def test_forward_mode_duals_are_checked(self) -> None:
        import torch.autograd.forward_ad as fwad

        with fwad.dual_level():
            dual = fwad.make_dual(torch.tensor(0.5, dtype=F64), torch.tensor(1.0, dtype=F64))
            assert fwad.unpack_dual(self.variable.validate_value(dual) ** 2).tangent == 1.0
            with pytest.raises(ValidationError):
                self.variable.validate_value(fwad.make_dual(torch.tensor(5.0, dtype=F64), torch.ones((), dtype=F64)))


@pytest.mark.parametrize(
    "fields,scale",
    [
        ({}, 1e-2), ({"default_value": -50.0}, 0.5), ({"default_value": 0.1}, 1e-2), ({"value_range": (-1, 3)}, 0.4),
        ({"value_range": (0, None), "default_value": 1e3}, 10.0), ({"value_range": (2, 2)}, 1e-2),
        ({"value_range": (-1.5e308, 1.5e308)}, 1e-2), ({"value_range": (0, 1), "scale": 3}, 3.0),
    ],
    ids=str,
)  # fmt: skip
def test_scale(fields: dict[str, Any], scale: float) -> None:
    variable = TorchScalarVariable(name="a", **fields)
    assert variable.scale == pytest.approx(scale, rel=1e-15)
    for other in (pickle.loads(pickle.dumps(variable)), from_dict(to_dict(variable))):
        assert other.scale == variable.scale
    assert ("scale" in to_dict(variable)) == ("scale" in fields)


def test_scale_follows_a_new_range_unless_given() -> None:
    variable = TorchScalarVariable(name="a", value_range=(0, 1))
    assert variable.replace(value_range=(0, 100)).scale == 10.0
    assert variable.replace(scale=0.5).replace(value_range=(0, 100)).scale == 0.5


@pytest.mark.parametrize(
    "fields,words",
    [
        ({"value_range": (1, 0)}, r"value_range=\(1, 0\): the lower end must not exceed"),
        ({"value_range": 1}, "two numbers"), ({"value_range": np.array(1.0)}, "two numbers"),
        ({"value_range": "ab"}, "two numbers"),
        ({"value_range": (0, 1, 2)}, "two numbers"), ({"value_range": (0, math.nan)}, "NaN"),
        ({"value_range": (0, "1")}, "real number"), ({"value_range": (True, 2)}, "real number"),
        ({"value_range": (math.inf, None)}, "lower end"), ({"warning_range": (1, 0)}, "lower end"),
        ({"alarm_range": (1, 0)}, "lower end"), ({"scale": 0}, "positive"), ({"scale": -1}, "positive"),
        ({"scale": math.inf}, "finite"), ({"scale": True}, "real number"), ({"precision": -1}, "greater than"),
        ({"precision": 2.5}, "integer"), ({"precision": "2"}, "integer"), ({"dtype": torch.complex64}, "real numbers"),
        ({"dtype": "float99"}, "real numbers"), ({"default_value": 5, "value_range": (0, 1)}, r"outside .*\[0, 1\]"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_fields_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as caught:
        TorchScalarVariable(name="Q1", **fields)
    assert "variable 'Q1'" in str(caught.value)


def test_several_wrong_fields_are_all_named() -> None:
    with pytest.raises(ValidationError, match=r"scale=-1.*'uint' is not a field"):
        TorchScalarVariable(name="a", scale=-1, uint="m")


@pytest.mark.parametrize(
    "value", [0.5, 1, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5]), torch.ones(())], ids=str
)
def test_default_is_kept_as_a_python_number(value: Any) -> None:
    default = TorchScalarVariable(name="a", default_value=value).default_value
    assert type(default) is float
    assert default == float(value)


@pytest.mark.parametrize(
    "value,severity",
    [
        (0.0, "NO_ALARM"), (1.0, "NO_ALARM"), (1.5, "MINOR"), (-1.5, "MINOR"), (2.0, "MINOR"), (2.5, "MAJOR"),
        (-9, "MAJOR"), (math.nan, "INVALID"), (math.inf, "INVALID"), (torch.tensor([0.0, 1.5]), "MINOR"),
        (torch.tensor([1.5, 3.0]), "MAJOR"), (np.float32(1.0), "NO_ALARM"), (torch.zeros(0), "NO_ALARM"),
    ],
    ids=str,
)  # fmt: skip
def test_alarm_severity(value: Any, severity: str) -> None:
    variable = TorchScalarVariable(name="a", warning_range=(-1, 1), alarm_range=(-2, 2))
    assert variable.alarm_severity(value) == severity


def test_no_alarm_ranges_no_alarm() -> None:
    assert TorchScalarVariable(name="a", value_range=(0, 1)).alarm_severity(7.0) == "NO_ALARM"
    one_sided = TorchScalarVariable(name="a", alarm_range=(None, 1))
    assert [one_sided.alarm_severity(x) for x in (-1e9, 2.0)] == ["NO_ALARM", "MAJOR"]


def test_lists_of_unequal_shapes_are_refused_with_the_graph_too() -> None:
    with pytest.raises(ShapeError, match="unequal shapes"):
        TorchScalarVariable(name="a").validate_value([torch.zeros(2), torch.zeros(3)])


finite = st.floats(allow_nan=False, allow_infinity=False)
ends = st.tuples(finite, finite, st.sampled_from(["both", "low", "high"])).map(
    lambda e: (min(e[:2]) if e[2] != "high" else None, max(e[:2]) if e[2] != "low" else None)
)


@st.composite
def scalars(draw: st.DrawFn) -> TorchScalarVariable:
    optional: dict[str, st.SearchStrategy[Any]] = {
        "description": st.text(),
        "unit": st.sampled_from(["", "m", "kG*m", "1/m^2", "%", "deg"]),
        "read_only": st.booleans(),
        "warning_range": ends,
        "alarm_range": ends,
        "precision": st.integers(0, 17),
        "scale": st.floats(1e-300, 1e300),
        "default_validation_config": st.sampled_from(["none", "warn", "error"]),
    }
    fields = {field: draw(strategy) for field, strategy in optional.items() if draw(st.booleans())}
    low, high = draw(ends)
    default = min(max(draw(finite), -math.inf if low is None else low), math.inf if high is None else high)
    return TorchScalarVariable(
        name=draw(st.text(min_size=1).filter(str.strip)), value_range=(low, high), default_value=default, **fields
    )


@given(scalars())
def test_random_scalars_survive_every_round_trip(variable: TorchScalarVariable) -> None:
    for other in (
        from_dict(to_dict(variable)),
        from_yaml(to_yaml(variable)),
        from_json(to_json(variable)),
        pickle.loads(pickle.dumps(variable)),
    ):
        assert other == variable
        assert other.scale == variable.scale


@given(finite, st.sampled_from([F64, F32]))
def test_validation_is_idempotent_and_agrees_with_a_cast(value: float, dtype: torch.dtype) -> None:
    variable = TorchScalarVariable(name="a")
    if abs(value) > torch.finfo(dtype).max:
        with pytest.raises(ValidationError):
            variable.validate_value(value, dtype=dtype)
        return
    out = variable.validate_value(value, dtype=dtype)
    assert out.item() == torch.tensor(value, dtype=dtype).item()
    assert torch.equal(variable.validate_value([value], dtype=dtype), out.reshape(1))
    assert variable.validate_value(out, dtype=dtype) is out
