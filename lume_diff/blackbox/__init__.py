"""Black boxes: simulators without gradients as nodes of the graph."""

from lume_diff.blackbox.difference import FiniteDifference
from lume_diff.blackbox.model import BlackBoxModel
from lume_diff.blackbox.simulator import FunctionSimulator, Simulator

__all__ = ["BlackBoxModel", "FiniteDifference", "FunctionSimulator", "Simulator"]
