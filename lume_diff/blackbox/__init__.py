"""Black boxes: simulators without gradients as nodes of the graph; codes load when they are used."""

from lume_diff.blackbox.at import ATModel
from lume_diff.blackbox.difference import FiniteDifference
from lume_diff.blackbox.impactx import ImpactXModel
from lume_diff.blackbox.lume import LumeModel, to_lume
from lume_diff.blackbox.madx import MADXModel
from lume_diff.blackbox.model import BlackBoxModel
from lume_diff.blackbox.simulator import FunctionSimulator, Simulator

__all__ = [
    "ATModel",
    "BlackBoxModel",
    "FiniteDifference",
    "FunctionSimulator",
    "ImpactXModel",
    "LumeModel",
    "MADXModel",
    "Simulator",
    "to_lume",
]
