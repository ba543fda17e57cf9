"""Arrays: shapes, defaults of any size, limits of elements."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.errors import OutOfRangeWarning, ShapeError, ValidationError
from lume_diff.variables import TorchNDVariable, from_dict, from_json, from_yaml, to_dict, to_json, to_yaml

F32, F64 = torch.float32, torch.float64
REFERENCE = np.arange(6.0).reshape(2, 3)

ACCEPTED: list[tuple[str, Any]] = [
    ("nested list", REFERENCE.tolist()), ("nested tuple", tuple(map(tuple, REFERENCE.tolist()))),
    ("array", REFERENCE), ("float32 array", REFERENCE.astype(np.float32)),
    ("integer array", REFERENCE.astype(np.uint16)),
    ("Fortran order", np.asfortranarray(REFERENCE)), ("big-endian", REFERENCE.astype(">f8")),
    ("tensor", torch.from_numpy(REFERENCE)), ("float32 tensor", torch.from_numpy(REFERENCE).float()),
    ("integer tensor", torch.arange(6).reshape(2, 3)), ("transposed view", torch.from_numpy(REFERENCE.T.copy()).T),
    ("list of tensors", [torch.arange(3.0), torch.arange(3.0, 6.0)]), ("list of arrays", list(REFERENCE)),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("value", [pytest.param(x, id=i) for i, x in ACCEPTED])
def test_arrays_are_cast_to_the_dtype(value: Any, dtype: torch.dtype) -> None:
    out = TorchNDVariable(name="a", shape=(2, 3)).validate_value(value, dtype=dtype, device="cpu")
    assert out.dtype is dtype
    assert torch.equal(out, torch.from_numpy(REFERENCE).to(dtype))


@pytest.mark.parametrize("batch", [(), (1,), (4, 5), (0,)], ids=str)
def test_batch_dimensions_come_first(batch: tuple[int, ...]) -> None:
    variable = TorchNDVariable(name="a", shape=(2, 3))
    value = torch.zeros(*batch, 2, 3, dtype=F64)
    assert variable.validate_value(value) is value
    assert variable.batch_shape(value) == batch
    assert variable.batch_shape(value.numpy()) == batch


@pytest.mark.parametrize("shape", [(), (3,), (3, 2), (2, 3, 1), (2, 4), (0,)], ids=str)
def test_a_wrong_shape_names_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        TorchNDVariable(name="SCR1.image", shape=(2, 3)).validate_value(torch.zeros(shape))
    for words in ("'SCR1.image'", f"received shape {shape}", "expected (*batch, 2, 3)"):
        assert words in str(caught.value)


def test_the_graph_is_kept() -> None:
    leaf = torch.ones(4, 2, 3, dtype=F64, requires_grad=True)
    out = TorchNDVariable(name="a", shape=(2, 3), value_range=(0, 2)).validate_value(leaf, dtype=F32)
    out.square().sum().backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.full_like(leaf, 2.0))


def test_the_worst_element_is_named() -> None:
    variable = TorchNDVariable(name="a", shape=(2, 3), value_range=(0, 1), unit="mm")
    value = torch.zeros(5, 2, 3, dtype=F64)
    value[3, 1, 2], value[0, 0, 0] = 4.0, 2.0
    with pytest.raises(ValidationError) as caught:
        variable.validate_value(value)
    for words in ("4.0 mm", "batch index (3,)", "element (1, 2)", "2 of 30 elements", "[0, 1] mm"):
        assert words in str(caught.value)
    with pytest.raises(ValidationError, match=r"4.0 mm at element \(1, 2\)"):
        variable.validate_value(value[3])
    with pytest.warns(OutOfRangeWarning, match="4.0 mm"):
        assert variable.validate_value(value, config="warn") is value
    assert variable.validate_value(value, config="none") is value


def test_shapes_are_checked_inside_transforms_and_numbers_are_not() -> None:
    variable = TorchNDVariable(name="a", shape=(3,), value_range=(0, 1))
    x = torch.full((5, 3), 7.0, dtype=F64)
    assert torch.equal(torch.func.vmap(variable.validate_value)(x), x)
    with pytest.raises(ShapeError, match=r"received shape \(3,\), expected \(\*batch, 4\)"):
        torch.func.vmap(variable.replace(shape=4).validate_value)(x)
    jacobian = torch.func.jacfwd(lambda y: variable.validate_value(y).square())(x[0])
    assert torch.equal(jacobian, 14.0 * torch.eye(3, dtype=F64))
    with pytest.raises(ShapeError):
        variable.validate_value(torch.empty(4, device="meta"))


@pytest.mark.parametrize("value", [pytest.param(x, id=i) for i, x in ACCEPTED])
def test_default_is_a_read_only_array(value: Any) -> None:
    default = TorchNDVariable(name="a", shape=(2, 3), default_value=value).default_value
    assert isinstance(default, np.ndarray)
    assert default.dtype == np.float64
    assert np.array_equal(default, REFERENCE)
    with pytest.raises(ValueError, match="read-only"):
        default[0, 0] = 1.0
    assert not np.shares_memory(default, REFERENCE)


def test_a_default_of_the_wrong_shape_names_both() -> None:
    with pytest.raises(ShapeError, match=r"'a'.*shape \(3,\), expected \(2, 3\)"):
        TorchNDVariable(name="a", shape=(2, 3), default_value=[1.0, 2.0, 3.0])
    with pytest.raises(ShapeError, match=r"'a'.*unequal length"):
        TorchNDVariable(name="a", shape=(2, 3), default_value=[[1.0, 2.0], [3.0]])


@pytest.mark.parametrize("shape", [(3,), (16, 16), (17, 16), (100, 120)], ids=str)
def test_defaults_of_any_size_round_trip_exactly(shape: tuple[int, ...]) -> None:
    default = np.random.default_rng(1).normal(size=shape)
    variable = TorchNDVariable(name="a", shape=shape, default_value=default)
    for other in (from_yaml(to_yaml(variable)), from_json(to_json(variable))):
        assert other == variable
        assert np.array_equal(other.default_value, default)
        assert not other.default_value.flags.writeable
    changed = default.copy()
    changed.flat[-1] += 1e-15 + abs(changed.flat[-1]) * 1e-15
    assert variable.replace(default_value=changed) != variable
    assert variable.replace(default_value=None) != variable


def test_a_big_default_is_compact() -> None:
    variable = TorchNDVariable(name="a", shape=(500, 500), default_value=np.zeros((500, 500)))
    assert len(to_yaml(variable)) < 10_000
    assert "500" in repr(variable)
    assert len(repr(variable)) < 200


@pytest.mark.parametrize(
    "change",
    [
        {"zlib": "eJwLy"}, {"zlib": "***"}, {"shape": [20, 21]}, {"shape": [20, 19]}, {"shape": "ab"}, {"zlib": None},
        {"shape": [-1, 20]}, {"shape": [-20, -20]},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_default_is_refused(change: dict[str, Any]) -> None:
    data = to_dict(TorchNDVariable(name="a", shape=(20, 20), default_value=np.ones((20, 20))))
    data["default_value"] |= change
    with pytest.raises(ValidationError, match="'a': default_value is damaged"):
        from_dict(data)


@pytest.mark.parametrize("shape", [3, [3], (3,), np.int64(3), (np.int32(3),)], ids=repr)
def test_a_shape_is_kept_as_a_tuple(shape: Any) -> None:
    variable = TorchNDVariable(name="a", shape=shape)
    assert variable.shape == (3,)
    assert all(type(length) is int for length in variable.shape)


@pytest.mark.parametrize("shape", [(), 0, (-1,), (2.0,), "ab", (True,), None, [[2]]], ids=repr)
def test_a_wrong_shape_is_refused_at_construction(shape: Any) -> None:
    with pytest.raises(ValidationError, match="'a': shape="):
        TorchNDVariable(name="a", shape=shape)


@pytest.mark.parametrize(
    "fields,scale",
    [({}, 1e-2), ({"value_range": (0, 5)}, 0.5), ({"default_value": [-300, 2]}, 3.0), ({"scale": 7}, 7.0)],
    ids=str,
)
def test_scale(fields: dict[str, Any], scale: float) -> None:
    assert math.isclose(TorchNDVariable(name="a", shape=(2,), **fields).scale, scale, rel_tol=1e-15)
