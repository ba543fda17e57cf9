"""The client side of control systems, whatever their protocol."""

from __future__ import annotations

from lume_diff.control.archiver import archived_state
from lume_diff.control.client import ControlClient, Subscription, client_of
from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.control.saved_states import read_state

__all__ = [
    "Condition",
    "ControlClient",
    "Reading",
    "Severity",
    "Subscription",
    "archived_state",
    "client_of",
    "read_state",
]
