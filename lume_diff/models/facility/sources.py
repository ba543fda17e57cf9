"""Where the energy of a conversion comes from."""

from __future__ import annotations

from typing import Any

from lume_diff.models.facility.entries import Constant, Energy, Named

#: What kind of source, and the element, variable or number [eV].
Source = tuple[str, Any]


def source_of(energy: Energy, element: str) -> Source:
    """Return where an energy comes from, in the same form for every conversion that shares it."""
    if isinstance(energy, Constant):
        return "constant", energy.value
    return ("variable", energy.name) if isinstance(energy, Named) else ("model", element)
