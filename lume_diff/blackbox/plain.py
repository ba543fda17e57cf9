"""One point without gradients: the short way from tensors to a simulator and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.errors import ShapeError, SimulatorError
from lume_diff.models.derivatives import component_shape
from lume_diff.models.transforms import in_transform
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import Variable

if TYPE_CHECKING:
    from lume_diff.blackbox.model import BlackBoxModel


def plain_run(model: BlackBoxModel, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any] | None:
    """Return the outputs at a point, or None where there is more to it: a batch, a gradient or a bunch.

    Args:
        model: the black box.
        inputs: all of its inputs, checked.
        outputs: what the simulator shall return.

    Raises:
        ShapeError: for an output of another shape than its variable says.
        SimulatorError: if the run fails.
    """
    point = None if in_transform() or forward_ad._current_level >= 0 else plain_point(model._variables, inputs)
    if point is None or not model._bunch_outputs.isdisjoint(outputs):
        return None
    key = tuple([value.tobytes() if isinstance(value, np.ndarray) else value for value in point.values()])
    notes = model._memory.at(("plain", key))
    result = notes.get("result", {})
    if not result.keys() >= set(outputs):
        (result,) = model._simulate([point], outputs)
        if isinstance(result, SimulatorError):
            raise result
        notes["result"] = result
        size = sum(value.nbytes for value in result.values() if isinstance(value, np.ndarray))
        model._memory.at(("plain", key), size)
    return {name: _checked(model, model._variables[name], result[name]) for name in outputs}


def plain_point(variables: Mapping[str, Variable], inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a point as the simulator gets it, or None where there is more to it: a batch, a gradient or a bunch."""
    differentiates = torch.is_grad_enabled()
    point: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Tensor):
            if differentiates and value.requires_grad:
                return None
            if not value.ndim:
                point[name] = value.item()
                continue
        if isinstance(value, TorchParticleGroup) or variables[name].batch_shape(value):
            return None
        point[name] = value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else value
    return point


def _checked(model: BlackBoxModel, variable: Variable, value: Any) -> Any:
    if not variable.is_differentiable:
        return variable.validate_value(value, config="none")
    shape = component_shape(variable)
    number = value if type(value) is float and not shape else as_numbers(variable.name, value, shape)
    return torch.tensor(number, dtype=model.dtype, device=model.device)


def as_numbers(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an output as an array of the shape that its variable has."""
    found = np.asarray(value, dtype=float)
    if found.shape != shape:
        raise ShapeError(f"the simulator returned {name!r} of shape {found.shape}; its variable says {shape}")
    return found
