"""Who a client claims to be, and where it is."""

from __future__ import annotations

from typing import Any


def client_name(op: Any) -> str:
    """Return the account and the address that come with an operation of p4p."""
    return f"{op.account() or 'anonymous'}@{op.peer()}"
