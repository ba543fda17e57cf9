"""Serve models to control systems."""

from __future__ import annotations

from lume_diff.control.readings import Condition, Reading, Severity, Update
from lume_diff.ioc.live_twin import LiveTwin
from lume_diff.ioc.served import ControlServer, Served
from lume_diff.ioc.server import Server, serve
from lume_diff.ioc.settling import Settling
from lume_diff.ioc.together import Servers
from lume_diff.ioc.twin_report import TwinReport

__all__ = [
    "Condition",
    "ControlServer",
    "LiveTwin",
    "Reading",
    "Served",
    "Server",
    "Servers",
    "Settling",
    "Severity",
    "TwinReport",
    "Update",
    "serve",
]
