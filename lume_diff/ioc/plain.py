"""Model values as the plain numbers, texts and arrays that go over a wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from lume_diff.errors import ShapeError, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import TorchNDVariable, Variable

#: Columns of a bunch, with their units.
BUNCH_COLUMNS = {
    **dict.fromkeys(("x", "y", "z"), "m"),
    **dict.fromkeys(("px", "py", "pz"), "eV/c"),
    "t": "s",
    "weight": "C",
    "alive": "",
}

#: Columns of the moments of a bunch: the mean, and the row of the covariance matrix of each coordinate.
MOMENT_ROWS = ("x", "px", "y", "py", "t", "pz")

_STRIDE = 997  # [bytes] a prime, so that every byte of a number is looked at


def to_plain(variable: Variable, value: Any) -> Any:
    """Return a value as a float, int, bool, text or array, a beam as columns by name; None where there is none.

    Raises:
        ShapeError: for a value with batch dimensions, which a process variable cannot have.
    """
    if value is None or isinstance(value, str):
        return value
    if type(value) is torch.Tensor and not value.dim() and not isinstance(variable, TorchNDVariable):
        return value.item()
    if isinstance(value, TorchParticleGroup):
        _refuse_batch(variable, value.x.shape[:-1])
        return {name: _array(getattr(value, name)) for name in BUNCH_COLUMNS}
    if isinstance(value, TorchMoments):
        _refuse_batch(variable, value.mean.shape[:-1])
        covariance = {f"cov_{name}": _array(row) for name, row in zip(MOMENT_ROWS, value.cov.unbind(-2), strict=True)}
        return {"mean": _array(value.mean), **covariance}
    if isinstance(variable, TorchNDVariable):
        _refuse_batch(variable, value.shape[: value.dim() - len(variable.shape)])
        return _array(value)
    _refuse_batch(variable, value.shape)
    return value.item()


def check_text(text: str) -> str:
    """Return a text that every protocol can carry.

    Raises:
        ValidationError: for one with a NUL, where it would end, or with what is no character.
    """
    if "\0" in text:
        raise ValidationError(f"a text ends at its first NUL, and {text[:20]!r} has one")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValidationError(f"a text is sent as UTF-8: {error}") from None
    return text


def same(a: Any, b: Any) -> bool:
    """Tell whether two plain values are equal, NaN to NaN too."""
    if type(a) is float and type(b) is float:
        return a == b or (a != a and b != b)
    if isinstance(a, dict) or isinstance(b, dict):
        return isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and _same_bits(a, b)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether two arrays have the same bits, NaN among them; a few are looked at first."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    bits_a, bits_b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return np.array_equal(bits_a[::_STRIDE], bits_b[::_STRIDE]) and np.array_equal(bits_a, bits_b)


def finite(value: Any) -> bool:
    """Tell whether every number of a plain value is finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        return bool(np.isfinite(value.sum())) or bool(np.isfinite(value).all())  # a sum may overflow


def _array(value: torch.Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().copy()


def _refuse_batch(variable: Variable, batch: tuple[int, ...] | torch.Size) -> None:
    if len(batch):
        raise ShapeError(
            f"{variable.name!r} has batch dimensions {tuple(batch)}, and a process variable holds one value: write "
            "inputs without a batch before serving the model"
        )


def as_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values as JSON takes them, arrays as lists; beams, and what there is none of, are left out."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in values.items()
        if value is not None and not isinstance(value, dict)
    }
