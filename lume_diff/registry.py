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
    return _loaded(group, found[name])


def _loaded(group: str, entry: importlib.metadata.EntryPoint) -> Any:
    try:
        return entry.load()
    except ImportError as error:
        raise MissingExtraError(
            f"{entry.name!r} of the {group} is announced by {entry.value!r}, which cannot be imported: {error}"
        ) from error


def every_plugin(group: str) -> list[Any]:
    """Load all that a group has, in the alphabetical order of their names.

    Raises:
        MissingExtraError: if one is there but cannot be imported.

    Example:
        >>> [cls.__name__ for cls in every_plugin("functions")][:2]
        ['Product', 'Sum']
    """
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=f"lume_diff.{group}")}
    return [_loaded(group, found[name]) for name in sorted(found)]


def plugins(group: str) -> list[str]:
    """Return the names of everything a group has, in alphabetical order.

    Example:
        >>> "images" in plugins("likelihoods")
        True
    """
    return sorted(entry.name for entry in importlib.metadata.entry_points(group=f"lume_diff.{group}"))
