"""What else was noted about data: anything that JSON can say, with a unit where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lume_diff.errors import UnitError, ValidationError
from lume_diff.variables.units import parse_unit


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return metadata as plain values; ``(value, unit)`` stays a pair.

    Raises:
        ValidationError: something that cannot be written to a file.
        UnitError: a unit that is not known.
    """
    return {str(key): _entry(str(key), value) for key, value in (metadata or {}).items()}


def _entry(key: str, value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], str) and not isinstance(value[0], str):
        try:
            parse_unit(value[1])
        except UnitError as problem:
            raise UnitError(f"metadata {key!r}: {problem}") from None
        return plain_value(f"metadata {key!r}", value[0]), value[1]
    return plain_value(f"metadata {key!r}", value)


def plain_value(what: str, value: Any) -> Any:
    """Return a value as JSON has it; numbers and arrays of numpy and torch become Python's.

    Args:
        what: it is, for messages.
        value: numbers, strings, lists or mappings of them.

    Raises:
        ValidationError: something that cannot be written to a file.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain_value(what, item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): plain_value(f"{what}, {name!r}", item) for name, item in value.items()}
    raise ValidationError(
        f"{what} is a {type(value).__name__}; expected numbers, strings, lists or mappings of them, or (value, unit)"
    )


def metadata_to_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata for JSON, which has no pairs."""
    return {
        key: {"value": value[0], "unit": value[1]} if isinstance(value, tuple) else {"value": value}
        for key, value in metadata.items()
    }


def metadata_from_json(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata that `metadata_to_json` made."""
    return {key: (entry["value"], entry["unit"]) if "unit" in entry else entry["value"] for key, entry in data.items()}
