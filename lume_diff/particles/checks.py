"""Validation of the tensors that a bunch or its moments are built from."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.errors import ShapeError, ValidationError


def is_concrete(tensor: Tensor) -> bool:
    """Return whether the values can be looked at: not inside torch.func, a trace, or on the meta device."""
    if torch.compiler.is_compiling() or tensor.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def as_float_tensors(values: Mapping[str, Any], owner: str) -> dict[str, Tensor]:
    """Turn numbers, lists, arrays and tensors into float tensors of one dtype and device.

    Python numbers follow the dtype of the others; lists of them and numbers alone are float64.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float] = {}
    for name, value in values.items():
        try:
            if isinstance(value, Real) and not isinstance(value, bool) and not hasattr(value, "dtype"):
                numbers[name] = float(value)
                continue
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise ValidationError(
                f"{owner}: {name} is {value!r:.80}; expected a float tensor or array (torch.stack makes one of tensors)"
            ) from error
        if not tensor.is_floating_point():
            raise ValidationError(
                f"{owner}: {name} has dtype {tensor.dtype}; expected a float dtype, such as {name}.to(torch.float64)"
            )
        tensors[name] = tensor
    dtype = torch.float64
    device = torch.device("cpu")
    if tensors:
        dtypes = [tensor.dtype for tensor in tensors.values()]
        dtype = dtypes[0]
        for other in dtypes[1:]:
            dtype = torch.promote_types(dtype, other)
        devices = {tensor.device for tensor in tensors.values() if tensor.dim() > 0} or {
            tensor.device for tensor in tensors.values()
        }
        if len(devices) > 1:
            raise ValidationError(f"{owner}: fields lie on several devices {sorted(map(str, devices))}; use one")
        device = devices.pop()
    result = {name: tensor.to(dtype=dtype, device=device) for name, tensor in tensors.items()}
    result.update({name: torch.tensor(number, dtype=dtype, device=device) for name, number in numbers.items()})
    return {name: result[name] for name in values}


def broadcast_batch(shapes: Mapping[str, torch.Size], owner: str) -> torch.Size:
    """Return the common shape of named shapes, or raise naming the one that does not fit."""
    common = torch.Size()
    for name, shape in shapes.items():
        try:
            common = torch.broadcast_shapes(common, shape)
        except RuntimeError as error:
            listed = ", ".join(f"{n}: {tuple(s)}" for n, s in shapes.items())
            raise ShapeError(
                f"{owner}: {name} has shape {tuple(shape)}, which does not broadcast with {tuple(common)} of the "
                f"others; expected one common shape (*batch, n). Shapes: {listed}"
            ) from error
    return common


def check_finite(tensors: Mapping[str, Tensor], owner: str) -> None:
    """Raise if a field holds NaN or infinity, naming the field and how many values."""
    for name, tensor in tensors.items():
        if not is_concrete(tensor):
            continue
        finite = torch.isfinite(tensor.detach())
        if not bool(finite.all()):
            bad = tensor.detach()[~finite]
            raise ValidationError(
                f"{owner}: {name} has {bad.numel()} value(s) that are not finite, the first is {bad[0].item()}; "
                "expected finite numbers, remove those particles or repair the source"
            )


def check_bounds(name: str, tensor: Tensor, low: float | None, high: float | None, owner: str, why: str) -> None:
    """Raise if a value lies outside [low, high]."""
    if not is_concrete(tensor) or tensor.numel() == 0:
        return
    smallest, largest = (v.item() for v in torch.aminmax(tensor.detach()))
    if (low is not None and smallest < low) or (high is not None and largest > high):
        raise ValidationError(
            f"{owner}: {name} ranges from {smallest:g} to {largest:g}; expected "
            + (f"{low:g} to {high:g}" if high is not None else f"at least {low:g}")
            + f" ({why})"
        )


def check_id(id: Any, n: int, device: torch.device, owner: str) -> Tensor:
    """Return ids as an int64 tensor (n,), or raise if they are not n unique integers."""
    try:
        id = torch.as_tensor(id).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValidationError(f"{owner}: id is {id!r:.80}; expected integers, ({n},)") from error
    if id.is_floating_point() or id.is_complex() or id.dtype == torch.bool:
        raise ValidationError(f"{owner}: id has dtype {id.dtype}; expected integers")
    if id.shape != (n,):
        raise ShapeError(f"{owner}: id has shape {tuple(id.shape)}; expected ({n},)")
    if torch.unique(id).numel() != n:
        raise ValidationError(f"{owner}: id has repeated values; expected unique integers, or leave it out")
    return id.to(device=device, dtype=torch.int64)
