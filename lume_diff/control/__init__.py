"""The client side of control systems, whatever their protocol."""

from __future__ import annotations

from lume_diff.control.readings import Condition, Reading, Severity

__all__ = ["Condition", "Reading", "Severity"]
