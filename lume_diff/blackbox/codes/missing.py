"""What is said when a code is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from lume_diff.errors import MissingExtraError


def require(module: str, code: str, install: str) -> ModuleType:
    """Import the Python package of a code, or say how to get it.

    Args:
        module: what to import.
        code: its name as people know it.
        install: the line that installs it.

    Raises:
        MissingExtraError: if it is not installed; with that line.

    Example:
        >>> require("math", "Math", "pip install math").pi > 3
        True
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # it is there, and something that it needs is not: its own message says what
        raise MissingExtraError(f"{code} is not installed: Python has no package {module!r}; {install}") from error
