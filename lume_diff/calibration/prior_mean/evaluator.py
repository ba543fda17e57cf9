"""xopt_evaluator: a model as what Xopt optimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from xopt.evaluator import DummyExecutor, Evaluator

from lume_diff.calibration.prior_mean.checks import checked_inputs, raise_all
from lume_diff.calibration.prior_mean.storing import loaded_module, packed, unpacked
from lume_diff.calibration.prior_mean.vocs import Definition, Quantity, quantities_of, quantity
from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.models import LUMEModel

#: Takes the settings asked for, returns those that the machine has, ``{name: value}``.
Readback = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Evaluation(nn.Module):
    """A model with what is to be computed from it: a module, so that Xopt's dump keeps it in a file."""

    def __init__(
        self, model: LUMEModel, names: list[str], quantities: dict[str, Quantity], readback: Readback | None
    ) -> None:
        super().__init__()
        self.model = model
        self._names = names
        self._quantities = quantities
        self._readback = readback

    def forward(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of a VOCS, ``(*batch,)`` each, and readbacks, at settings by name."""
        values = {name: np.asarray(settings[name], dtype=float) for name in self._names}
        read: Mapping[str, Any] = {} if self._readback is None else self._readback(values)
        asked = list(dict.fromkeys(name for q in self._quantities.values() for name in q.outputs))
        with torch.no_grad():
            found = self.model({**values, **read}, outputs=asked)
            shape = next(iter(values.values())).shape
            outputs = {name: _made(q, found).expand(shape).cpu().numpy().copy() for name, q in self._quantities.items()}
        return {**outputs, **{f"{name}_RBV": np.asarray(value) for name, value in read.items()}}

    def __getstate__(self) -> dict[str, Any]:
        return packed(self, ["_modules", "_quantities", "_readback"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(unpacked(state))


def _made(quantity: Quantity, found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    values = [found[name] for name in quantity.outputs]
    return values[0] if quantity.transform is None else quantity.transform(*values)


def evaluate(settings: Any, evaluation: Evaluation | str | None = None) -> dict[str, Any]:
    """Compute the outputs of a VOCS at the rows of a table of settings; an evaluation may be given by its file.

    Raises:
        ValidationError: without an evaluation, as after a dump that left it out.
    """
    if evaluation is None:
        raise ValidationError(
            "the model of this evaluator was not in the file that Xopt loaded: dump with Xopt(..., "
            "serialize_torch=True) and without serialize_inline, or give X.evaluator = xopt_evaluator(...) again"
        )
    found = loaded_module(evaluation) if isinstance(evaluation, str) else evaluation
    return found({name: settings[name] for name in found._names})


def xopt_evaluator(
    model: LUMEModel,
    vocs: Any,
    outputs: Mapping[str, Definition] | None = None,
    readback: Readback | None = None,
    batch: int = 1,
) -> Evaluator:
    """Make an Xopt evaluator of a model.

    All points that Xopt asks for together are one batch: a vectorised model computes them at once, a black box runs
    them on its workers.

    Args:
        model: any model; of a machine, a twin, a facility.
        vocs: Xopt's VOCS; one of ``vocs_from_model`` says itself how its outputs are computed.
        outputs: how those that the model does not have under their name are computed; see ``vocs_from_model``.
        readback: called with the settings asked for, ``{name: values}`` in an array each; sets them on a live machine,
            say, and returns what it has in fact: the model is asked there, and the values are recorded as
            ``"<name>_RBV"``.
        batch: how many points Xopt shall ask for in every step: as many as the model has workers, say.

    Returns:
        The evaluator. ``Xopt(..., serialize_torch=True)`` dumps it to a file that loads again.

    Raises:
        UnknownVariableError, ValidationError, ShapeError: for variables and outputs that the model does not have.

    Example:
        >>> import torch
        >>> from lume_diff import TorchModel
        >>> from lume_diff.calibration import vocs_from_model
        >>> from lume_diff.variables import TorchScalarVariable as Scalar
        >>> knob = Scalar(name="a", value_range=(-1.0, 2.0), default_value=0.0)
        >>> model = TorchModel(torch.nn.Softplus(), [knob], [Scalar(name="size", read_only=True)])
        >>> evaluator = xopt_evaluator(model, vocs_from_model(model, ["a"], {"size": "MINIMIZE"}))
        >>> round(float(evaluator.evaluate({"a": 0.0})["size"]), 3)
        0.693
    """
    names = checked_inputs(model, vocs.variable_names)
    known = quantities_of(vocs)
    quantities: dict[str, Quantity] = {}
    problems: list[str] = []
    for name in vocs.output_names:
        try:
            given = (outputs or {}).get(name) or known.get(name)
            quantities[name] = quantity(model, name, given)
        except LumeDiffError as error:
            problems.append(f"{name!r} of the VOCS: {error}; say how it is computed in outputs={{...}}")
    raise_all(problems)
    evaluation = Evaluation(model, names, quantities, readback)
    return Evaluator(
        function=evaluate,
        function_kwargs={"evaluation": evaluation},
        vectorized=True,
        max_workers=batch,
        executor=DummyExecutor(),  # the model runs a batch on workers of its own
    )
