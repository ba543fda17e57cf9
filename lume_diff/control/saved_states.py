"""Saved states: values of process variables in a file."""

from __future__ import annotations

import csv
import io
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.errors import ValidationError
from lume_diff.variables.text import load_yaml

_FIELDS = ("value", "time", "severity", "message")


def read_state(path: str | os.PathLike[str]) -> dict[str, Reading]:
    """Read a saved state.

    A YAML file has values by the name of the process variable, each plain or ``{value: 1.2, time: ..., severity: 0}``.
    A CSV file has a header with the columns ``pv`` and ``value``, and, if it likes, ``time``, ``severity`` and
    ``message``. YAML is read by the rules of version 1.2, in which ``on`` is a word and ``1e-3`` a number. Times are
    ISO 8601 or seconds since 1970; without one, that of the file holds.

    Args:
        path: of the file, which ends with ``.yaml``, ``.yml`` or ``.csv``.

    Returns:
        Readings by the name of the process variable.

    Raises:
        ValidationError: with every mistake in the file.
    """
    file = Path(path)
    if not file.is_file():
        raise ValidationError(f"saved state {str(file)!r} does not exist")
    suffix = file.suffix.lower()
    if suffix not in (".yaml", ".yml", ".csv"):
        raise ValidationError(f"saved state {str(file)!r}: expected a name that ends with .yaml, .yml or .csv")
    rows = _csv_rows(file) if suffix == ".csv" else _yaml_rows(file)
    saved, wrong, found = file.stat().st_mtime, [], {}
    for place, name, fields in rows:
        if name in found:
            wrong.append(f"{place}: {name!r} is there twice")
            continue
        try:
            found[name] = _reading(fields, saved)
        except (ValueError, TypeError) as error:
            wrong.append(f"{place}: {name!r}: {error}")
    if wrong:
        raise ValidationError(f"{file}: " + "; ".join(wrong))
    return found


def _yaml_rows(file: Path) -> list[tuple[str, str, dict[str, Any]]]:
    content = load_yaml(file)
    if not isinstance(content, dict):
        raise ValidationError(f"{file}: expected values by the name of the process variable, received {content!r}")
    return [
        (f"entry {number}", str(name), value if isinstance(value, dict) else {"value": value})
        for number, (name, value) in enumerate(content.items(), 1)
    ]


def _csv_rows(file: Path) -> list[tuple[str, str, dict[str, Any]]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValidationError(f"{file} is no text in UTF-8: {error}") from None
    with io.StringIO(text, newline="") as lines:
        reader = csv.DictReader(lines)
        if not {"pv", "value"} <= set(reader.fieldnames or ()):
            raise ValidationError(f"{file}: expected a header with 'pv' and 'value', received {reader.fieldnames}")
        rows = []
        for row in reader:
            fields = {key: text for key, text in row.items() if key in _FIELDS and text not in ("", None)}
            if "value" in fields:
                fields["value"] = _number(fields["value"])
            rows.append((f"line {reader.line_num}", str(row["pv"]), fields))
    return rows


def _reading(fields: dict[str, Any], saved: float) -> Reading:
    unknown = set(fields) - set(_FIELDS)
    if unknown or "value" not in fields:
        raise ValueError(f"expected 'value' and, as it likes, 'time' and 'severity', received {sorted(fields)}")
    if fields["value"] is None:
        raise ValueError("its value is empty; expected a number, a word or a list")
    severity = Severity(int(fields.get("severity", 0)))
    condition = Condition.FINE if severity is Severity.NO_ALARM else Condition.FAILED
    return Reading(
        fields["value"], _time(fields.get("time", saved)), 0, severity, condition, str(fields.get("message", ""))
    )


def _time(given: Any) -> float:
    try:
        return float(given)
    except ValueError:
        return datetime.fromisoformat(given).timestamp()


def _number(text: str) -> Any:
    """Return a number where it is one, else the text: enumerations and texts are words."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
