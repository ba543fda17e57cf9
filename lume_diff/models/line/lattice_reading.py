"""What the readers of lattice files share: the text, the precision, and errors that say where."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lume_diff.errors import LatticeError

_CONSTRUCTORS = {torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.eye, torch.full}


def lattice_error(path: Path, problem: str, line: int | None = None) -> LatticeError:
    return LatticeError(f"lattice file {str(path)!r}{'' if line is None else f', line {line}'}: {problem}")


@contextmanager
def failing_as(described: Callable[[Exception], LatticeError]) -> Iterator[None]:
    """Turn what Cheetah or a lattice raises into an error that says where; a warning raised by a filter passes."""
    try:
        yield
    except (LatticeError, Warning):
        raise
    except Exception as error:
        raise described(error) from error


def reason(error: BaseException) -> str:
    if not str(error):  # an assertion of Cheetah without words
        return f"Cheetah checks {traceback.extract_tb(error.__traceback__)[-1].line!r}"
    return f"{error}" if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def read_text(path: Path) -> str:
    """Return the text of a file, in whatever way its comments are encoded."""
    if path.is_dir():
        raise lattice_error(path, "is a directory; expected a file")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise lattice_error(path, "does not exist") from error
    except OSError as error:
        raise lattice_error(path, f"cannot be read: {error.strerror}") from error
    if not data.strip():
        raise lattice_error(path, "is empty; expected a lattice")
    control = re.search(rb"[\x00-\x08\x0e-\x1f]", data)
    if control:
        raise lattice_error(
            path,
            f"is not text: byte {control[0][0]:#04x}; expected a text file",
            data.count(b"\n", 0, control.start()) + 1,
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


class _Doubles(TorchFunctionMode):
    """Make float64 of every number for which Cheetah's readers forget to say so; in this thread only."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _CONSTRUCTORS and kwargs.get("dtype") is None and result.is_floating_point():
            return func(*args, **{**kwargs, "dtype": torch.float64})
        return result


@contextmanager
def converting() -> Iterator[None]:
    """Let Cheetah build elements in float64, with any names."""
    from cheetah import DirtyNameWarning

    with warnings.catch_warnings(), _Doubles():
        warnings.simplefilter("ignore", DirtyNameWarning)
        yield
