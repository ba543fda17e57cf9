"""Black boxes: simulators without gradients as nodes of the graph.

Names load what they need when they are first used: codes, and torch, which a worker process does without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_diff.blackbox.at.model import ATModel
    from lume_diff.blackbox.bmad.model import BmadModel
    from lume_diff.blackbox.differences.method import FiniteDifference
    from lume_diff.blackbox.impact.model import ImpactTModel
    from lume_diff.blackbox.impactx.model import ImpactXModel
    from lume_diff.blackbox.lume.model import LumeModel, to_lume
    from lume_diff.blackbox.madx.model import MADXModel
    from lume_diff.blackbox.model import BlackBoxModel
    from lume_diff.blackbox.runners.executors import ExecutorRunner
    from lume_diff.blackbox.runners.pool import WorkerPool
    from lume_diff.blackbox.runners.proxy import SimulatorProxy
    from lume_diff.blackbox.simulator import FunctionSimulator, Simulator

_HOME_OF = {
    "ATModel": "at.model",
    "BlackBoxModel": "model",
    "BmadModel": "bmad.model",
    "ExecutorRunner": "runners.executors",
    "FiniteDifference": "differences.method",
    "FunctionSimulator": "simulator",
    "ImpactTModel": "impact.model",
    "ImpactXModel": "impactx.model",
    "LumeModel": "lume.model",
    "MADXModel": "madx.model",
    "Simulator": "simulator",
    "SimulatorProxy": "runners.proxy",
    "WorkerPool": "runners.pool",
    "to_lume": "lume.model",
}

__all__ = [
    "ATModel",
    "BlackBoxModel",
    "BmadModel",
    "ExecutorRunner",
    "FiniteDifference",
    "FunctionSimulator",
    "ImpactTModel",
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
