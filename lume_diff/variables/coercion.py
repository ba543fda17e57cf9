"""Coercion: Python numbers, numpy arrays, tensors and nested lists of them as one tensor, graph kept.

Nothing here judges a value against limits; what cannot be a value of the kind at all is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.errors import ShapeError, ValidationError, shortened
from lume_diff.variables.limits import INT64, has_values


def shown(value: Any) -> str:
    """Return a value in few words, for messages."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of dtype {value.dtype} and shape {tuple(value.shape)}"
    text = shortened(repr(value))
    return text if value is None else f"{text} ({type(value).__name__})"


def refuse(name: str, value: Any, expected: str, fix: str) -> ValidationError:
    """Return the error for a value of the wrong kind."""
    return ValidationError(f"variable {name!r}: received {shown(value)}, expected {expected}; {fix}")


def real_tensor(name: str, value: Any) -> Tensor:
    """Return real numbers as a tensor in the dtype that they came in; tensors are returned as they are.

    Args:
        name: the variable's name, for messages.
        value: a number, numpy scalar or array, tensor, or nested lists of them.

    Returns:
        A tensor of a floating or integer dtype.

    Raises:
        ValidationError: bool, complex, text, None or anything else that is no real number.
        ShapeError: lists of unequal length.

    Gradient: exact.
    """
    if isinstance(value, Tensor):
        if value.dtype is torch.bool or value.is_complex():
            raise _not_real(name, value)
        return value
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "fiu":
            raise _not_real(name, value)
        keep = value.dtype.kind == "f" and value.dtype.itemsize <= 8
        # A copy: numpy's memory may change under the tensor. The native byte order is what torch reads.
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=") if keep else np.float64, order="C"))
    if isinstance(value, list | tuple):
        return _stacked(name, value, real_tensor, frozenset((float, int)), np.float64)
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise _not_real(name, value)
    try:
        return torch.scalar_tensor(float(value), dtype=torch.float64)
    except OverflowError:
        raise refuse(name, value, "a number that a float can hold", "use another unit") from None


def integer_tensor(name: str, value: Any) -> Tensor:
    """Return whole numbers as an int64 tensor.

    Args:
        name: the variable's name, for messages.
        value: an integer, a float without a fraction, an array or tensor, or nested lists of them.

    Returns:
        An int64 tensor.

    Raises:
        ValidationError: a fraction, NaN, bool, complex, text, None, or too large for int64.
        ShapeError: lists of unequal length.

    Gradient: none.
    """
    expected, fix = "whole numbers", "round the value or declare a TorchScalarVariable"
    if isinstance(value, int) and not isinstance(value, bool):
        if not INT64.min <= value <= INT64.max:
            raise refuse(name, value, "an integer of 64 bits", "use a smaller number")
        return torch.scalar_tensor(value, dtype=torch.int64)
    if isinstance(value, list | tuple):
        return _stacked(name, value, integer_tensor, frozenset((int,)), np.int64)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu":
        if value.dtype == np.uint64 and value.size and int(value.max()) > INT64.max:
            raise refuse(name, value, "integers of 64 bits with sign", "use smaller numbers")
        return torch.from_numpy(np.array(value, dtype=np.int64, order="C"))
    try:
        tensor = real_tensor(name, value)
    except ValidationError:
        raise refuse(name, value, expected, fix) from None
    if tensor.is_floating_point() and has_values(tensor):
        tensor = tensor.detach()
        whole = (tensor == tensor.round()) & (tensor.abs() < 2.0**63)
        if not bool(whole.all()):
            raise refuse(name, tensor[~whole].reshape(-1)[0].item(), expected, fix)
    return tensor.to(torch.int64)


def bool_tensor(name: str, value: Any) -> Tensor:
    """Return truth values as a bool tensor; numbers are refused.

    Args:
        name: the variable's name, for messages.
        value: a bool, an array or tensor of dtype bool, or nested lists of them.

    Returns:
        A bool tensor.

    Raises:
        ValidationError: anything that is not of a bool type.
        ShapeError: lists of unequal length.

    Gradient: none.
    """
    if isinstance(value, Tensor) and value.dtype is torch.bool:
        return value
    if isinstance(value, bool):
        return torch.scalar_tensor(value, dtype=torch.bool)
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "b":
        return torch.from_numpy(np.array(value, dtype=np.bool_, order="C"))
    if isinstance(value, list | tuple):
        return _stacked(name, value, bool_tensor, frozenset((bool,)), np.bool_)
    raise refuse(name, value, "True or False", "compare first, e.g. value != 0, or declare an IntVariable")


def _not_real(name: str, value: Any) -> ValidationError:
    dtype = getattr(value, "dtype", None)
    if isinstance(value, bool) or (dtype is not None and dtype in (torch.bool, np.dtype(bool))):
        return refuse(name, value, "real numbers", "use 1.0 and 0.0, or declare a BoolVariable")
    if isinstance(value, complex) or "complex" in str(dtype):
        return refuse(name, value, "real numbers", "set the real and imaginary parts as variables of their own")
    return refuse(name, value, "real numbers", "give a Python or numpy number, or a tensor")


def _stacked(
    name: str, value: Sequence[Any], convert: Callable[[str, Any], Tensor], plain: frozenset[type], dtype: Any
) -> Tensor:
    """Return nested sequences as one tensor: by numpy where all leaves are plain, else leaf by leaf with the graph."""
    if not value:
        return torch.from_numpy(np.zeros(0, dtype=dtype))
    if _all_plain(value, plain):
        try:
            return torch.from_numpy(np.array(value, dtype=dtype))
        except OverflowError:
            raise refuse(name, value, "numbers of 64 bits", "use smaller numbers or another unit") from None
        except ValueError:
            raise ShapeError(f"variable {name!r}: received lists of unequal length; give a full array") from None
    parts = [convert(name, item) for item in value]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise ShapeError(f"variable {name!r}: received a list of unequal shapes {sorted(shapes)}; give a full array")
    device = next((part.device for part in parts if part.device.type != "cpu"), parts[0].device)
    common = parts[0].dtype
    for part in parts[1:]:
        common = torch.promote_types(common, part.dtype)
    return torch.stack([part.to(device=device, dtype=common) for part in parts])


def _all_plain(value: Sequence[Any], plain: frozenset[type]) -> bool:
    kinds = set(map(type, value))
    if kinds <= plain:
        return True
    return kinds <= {list, tuple} and all(_all_plain(item, plain) for item in value)
