"""Plug-ins: what other packages add to lume_diff by an entry point."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from lume_diff.errors import MissingExtraError, ValidationError, nearest_names


def plugin(group: str, name: str) -> Any:
    """Load what an entry point names.

    Args:
        group: of entry points, without the package's name: ``"likelihoods"``.
        name: of the entry point.

    Raises:
        ValidationError: if there is none; with the nearest names.
        MissingExtraError: if it is there but cannot be imported.

    Example:
        >>> plugin("likelihoods", "moments").__name__
        'Moments'
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=f"lume_diff.{group}")}
    if name not in found:
        raise ValidationError(f"{name!r} is none of the {group} that are installed{nearest_names(name, found)}")
    try:
        return found[name].load()
    except ImportError as error:
        raise MissingExtraError(
            f"{name!r} of the {group} is announced by {found[name].value!r}, which cannot be imported: {error}"
        ) from error


def plugins(group: str) -> list[str]:
    """Return the names of everything a group has, in alphabetical order.

    Example:
        >>> "images" in plugins("likelihoods")
        True
    """
    return sorted(entry.name for entry in importlib.metadata.entry_points(group=f"lume_diff.{group}"))
