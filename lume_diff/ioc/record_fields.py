"""Fields of a record, ``.DESC`` to ``.LOLO``, as every EPICS protocol shows them."""

from __future__ import annotations

from typing import NamedTuple

from lume_diff.errors import LumeDiffError, ReadOnlyError
from lume_diff.ioc.served import Served


class _End(NamedTuple):
    """One end of one kind of limits."""

    kind: str
    side: int


_ENDS = {
    "DRVL": _End("drive", 0),
    "DRVH": _End("drive", 1),
    "LOPR": _End("display", 0),
    "HOPR": _End("display", 1),
    "LOW": _End("warning", 0),
    "HIGH": _End("warning", 1),
    "LOLO": _End("alarm", 0),
    "HIHI": _End("alarm", 1),
}

#: Every field that there is beside the value.
FIELDS = (*_ENDS, "DESC", "EGU", "PREC")


def read_field(served: Served, name: str, field: str) -> float | int | str:
    """Return a field of a variable; an open end is an infinity."""
    variable = served.variables[name]
    if field == "DESC":
        return variable.description
    if field == "EGU":
        return variable.unit
    if field == "PREC":
        return int(getattr(variable, "precision", None) or 0)
    end = _ENDS[field]
    return float(getattr(served.limits[name], end.kind)[end.side])


def write_field(served: Served, name: str, field: str, value: float, client: str) -> None:
    """Change one end of a limit, on every protocol.

    Args:
        served: what is served.
        name, field: of the variable.
        value: the new end [unit of the variable].
        client: who asks.

    Raises:
        ReadOnlyError: for any other field, and for limits that are fixed.
        ValidationError: for an end that cannot be.
    """
    writes, written, before = served.runtime.writes, {f"{name}.{field}": value}, read_field(served, name, field)
    try:
        served.access.check(client, written)
        if field not in _ENDS:
            raise ReadOnlyError(f"field {field} of {name!r} cannot be written")
        end = _ENDS[field]
        served.limits.change(name, end.kind, **{("low", "high")[end.side]: value})
    except LumeDiffError as error:
        writes.refused(client, written, {f"{name}.{field}": before}, error)
        raise
    writes.accepted(client, f"{name}.{field}", before, value, served.runtime.cycle)
    served.runtime.limits_changed(name)
