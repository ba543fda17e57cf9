"""What Xopt's files keep: modules that hold lambdas and local functions too, and constructors Xopt has no name for."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from functools import lru_cache
from types import FrameType
from typing import Any

import torch

from lume_diff.errors import ValidationError

#: How far up Xopt's dump is looked for.
_DEPTH = 24

#: What a file says where it has no means.
LOST = (
    "the models of mean_modules are not in this file, so Xopt cannot load it: dump with Xopt(..., "
    "serialize_torch=True) and without serialize_inline"
)


def packed(owner: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return an object's state with some attributes as bytes, into which functions that no module has go along.

    Raises:
        ValidationError: for what cannot be kept, and how to make it so.
    """
    import cloudpickle

    try:
        inside = cloudpickle.dumps({name: owner.__dict__.get(name) for name in names})
    except Exception as error:
        raise ValidationError(
            f"a {type(owner).__name__} cannot be written to a file ({type(error).__name__}: {error}): build model, "
            "transform and readback without open files, locks, connections and generators in them"
        ) from error
    return {**{name: value for name, value in owner.__dict__.items() if name not in names}, "_packed": inside}


def unpacked(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state that ``packed`` was given."""
    import cloudpickle

    return {
        **{name: value for name, value in state.items() if name != "_packed"},
        **cloudpickle.loads(state["_packed"]),
    }


def loaded_module(path: str) -> Any:
    """Return the module in a file of Xopt's dump, read once for as long as the file stays the same."""
    return _loaded(os.path.abspath(path), os.stat(path).st_mtime_ns)


@lru_cache(maxsize=8)
def _loaded(path: str, written: int) -> Any:
    return torch.load(path, weights_only=False)


def is_kept_as_module() -> bool:
    """Tell whether Xopt, which is asking for fields, writes modules to files that it reads again; warn if not."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return True
        if frame.f_code.co_name == "orjson_dumps_custom" and "kwargs" in frame.f_locals:
            options = frame.f_locals["kwargs"]
            if options.get("serialize_torch") and not options.get("serialize_inline"):
                return True
            if not _is_shown(frame):
                warnings.warn(f"prior mean: {LOST}", UserWarning, stacklevel=2)
            return False
        frame = frame.f_back
    return True


def _is_shown(frame: FrameType | None) -> bool:
    """Tell whether the text is for people: ``print(X)``."""
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if frame.f_code.co_name in ("__repr__", "__str__"):
            return True
        frame = frame.f_back
    return False
