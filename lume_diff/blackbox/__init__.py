"""Black boxes: simulators without gradients as nodes of the graph.

Names load what they need when they are first used: codes, and torch, which a worker process does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_diff.blackbox.at import ATModel
    from lume_diff.blackbox.difference import FiniteDifference
    from lume_diff.blackbox.executors import ExecutorRunner
    from lume_diff.blackbox.impactx import ImpactXModel
    from lume_diff.blackbox.lume import LumeModel, to_lume
    from lume_diff.blackbox.madx import MADXModel
    from lume_diff.blackbox.model import BlackBoxModel
    from lume_diff.blackbox.proxy import SimulatorProxy
    from lume_diff.blackbox.simulator import FunctionSimulator, Simulator
    from lume_diff.blackbox.workers import WorkerPool

_HOME_OF = {
    "ATModel": "at",
    "BlackBoxModel": "model",
    "ExecutorRunner": "executors",
    "FiniteDifference": "difference",
    "FunctionSimulator": "simulator",
    "ImpactXModel": "impactx",
    "LumeModel": "lume",
    "MADXModel": "madx",
    "Simulator": "simulator",
    "SimulatorProxy": "proxy",
    "WorkerPool": "workers",
    "to_lume": "lume",
}

__all__ = [
    "ATModel",
    "BlackBoxModel",
    "ExecutorRunner",
    "FiniteDifference",
    "FunctionSimulator",
    "ImpactXModel",
    "LumeModel",
    "MADXModel",
    "Simulator",
    "SimulatorProxy",
    "WorkerPool",
    "to_lume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lume_diff.blackbox' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lume_diff.blackbox.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
