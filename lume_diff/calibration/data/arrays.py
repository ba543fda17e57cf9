"""Arrays as they were given, made read-only arrays of real numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from lume_diff.errors import LumeDiffError, ShapeError, ValidationError


def real_array(name: str, value: Any) -> np.ndarray:
    """Return real numbers as an array that nobody can write to.

    Args:
        name: what they are, for messages.
        value: a number, an array, a tensor, a pandas column, or nested lists.

    Returns:
        A float32 array where float32 holds every value of the dtype given exactly, else float64.

    Raises:
        ValidationError: not real numbers.
        ShapeError: lists of unequal length.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value)
    except ValueError:
        raise ShapeError(f"{name}: received lists of unequal length; give one array") from None
    if array.dtype == bool or array.dtype.kind not in "fiu":
        raise ValidationError(f"{name}: received an array of dtype {array.dtype}, expected real numbers")
    narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
    return frozen(array.astype(np.float32 if narrow else np.float64))


def frozen(array: np.ndarray) -> np.ndarray:
    """Return the array with writing switched off; a view of someone else's memory is copied."""
    if array.flags.writeable and array.base is not None:
        array = array.copy()
    array.flags.writeable = False
    return array


def broadcast(name: str, value: Any, shape: tuple[int, ...], expected: str) -> np.ndarray:
    """Return a value as a read-only array of a shape, or raise a ShapeError that says what is expected."""
    array = np.asarray(value)
    try:
        return frozen(np.broadcast_to(array, shape).copy())
    except ValueError:
        raise ShapeError(f"{name}: received shape {array.shape}, expected {expected} = {shape}") from None


def per_shot(name: str, value: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return numbers or truths for each shot, ``(settings, shots)``, read-only; one a setting serves all its shots."""
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return broadcast(name, array[:, None] if array.ndim == 1 else array, shape, "(settings, shots)")


def checked_weights(name: str, weights: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return weights ``(settings, shots)``, 1 where none are given, or raise where one is negative or not finite."""
    found = per_shot(name, 1.0 if weights is None else weights, shape).astype(np.float64)
    if not (np.isfinite(found).all() and (found >= 0.0).all()):
        raise ValidationError(f"{name} must be finite and not negative; 0 leaves an image or a shot out")
    return frozen(found)


def digest(header: Any, arrays: Iterable[np.ndarray]) -> str:
    """Return a hash of content: the same on every machine, whatever dtype the numbers are kept in.

    Args:
        header: what JSON can say.
        arrays: numbers, in an order that the header fixes.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        found.update(str(array.shape).encode())
        for part in array if array.ndim else array[None]:  # part by part: a scan may fill the memory already
            found.update((np.ascontiguousarray(part, dtype="<f8") + 0.0).tobytes())  # + 0.0: -0.0 is 0.0
    return found.hexdigest()


def raise_all(where: str, problems: list[LumeDiffError]) -> None:
    """Raise everything that was found at once: one problem as it is, several as one error of the first one's class."""
    if not problems:
        return
    if len(problems) == 1:
        raise type(problems[0])(f"{where}: {problems[0]}")
    raise type(problems[0])(
        f"{where}: {len(problems)} problems\n" + "\n".join(f"  {i}. {p}" for i, p in enumerate(problems, 1))
    )
