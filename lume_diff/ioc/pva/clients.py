"""Who a client of PVAccess is."""

from __future__ import annotations

from typing import Any


def client_of(op: Any) -> str:
    """Return who a client claims to be, and where it is."""
    return f"{op.account() or 'anonymous'}@{op.peer()}"
