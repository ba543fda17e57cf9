"""GPModel: a Gaussian process that was fitted with BoTorch or GPyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lume_diff.errors import ShapeError, ValidationError
from lume_diff.models.base import LUMEModel
from lume_diff.models.surrogates.processes import processes
from lume_diff.models.surrogates.spread import SUFFIX, with_spread
from lume_diff.variables import TorchScalarVariable, Variable


class GPModel(LUMEModel):
    """Predict with a fitted Gaussian process: mean and standard deviation of its posterior.

    Every output ``<name>`` is the posterior's mean, and ``<name>.std`` its standard deviation, without the noise of a
    measurement. Both carry a gradient, and compose with ``torch.func``, which GPyTorch's own prediction does not. The
    process stays as it was fitted, and the work on its data is done once, here.

    Args:
        fitted: BoTorch's ``SingleTaskGP``, a ``ModelListGP`` of these, or an ``ExactGP`` of GPyTorch, with the kernels
            ``RBFKernel``, ``MaternKernel``, ``RQKernel`` and ``LinearKernel``, scaled, summed and multiplied; a copy of
            it is taken. Its own transforms of inputs and outputs are applied, the latter if they are linear.
        input_variables: its inputs, scalars in the order of the columns.
        output_variables: its outputs, scalars in the order of the processes.
        dtype: of the numbers; by default that of the data of the fit.
        device, validation: see ``LUMEModel``.

    Raises:
        ValidationError: for another model, kernel or transform, or variables that do not fit.
        ShapeError: if the numbers of variables are not those of the model.

    Gradient:
        Exact.

    Source:
        C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning" (2006), algorithm 2.1.
    """

    def __init__(
        self,
        fitted: Any,
        input_variables: Iterable[Variable],
        output_variables: Iterable[Variable],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        inputs = [variable.replace(read_only=False) for variable in input_variables]
        outputs = list(output_variables)
        wrong = [repr(v.name) for v in (*inputs, *outputs) if not isinstance(v, TorchScalarVariable)]
        if wrong or not inputs or not outputs:
            raise ValidationError(
                f"a Gaussian process has scalar inputs and outputs, at least one of each; received {wrong or 'none'}"
            )
        first = next(iter(getattr(fitted, "parameters", lambda: iter(()))()), None)
        own = torch.float64 if first is None else first.dtype
        parts = list(processes(fitted, dtype or own))
        columns = {part.columns for part in parts}
        if columns != {len(inputs)} or sum(part.outputs for part in parts) != len(outputs):
            raise ShapeError(
                f"the model has {max(columns)} inputs and {sum(part.outputs for part in parts)} outputs, but there are "
                f"{len(inputs)} input and {len(outputs)} output variables: give one for each"
            )
        super().__init__([*inputs, *with_spread(outputs)], dtype=dtype or own, device=device, validation=validation)
        self.processes = nn.ModuleList(parts).to(self.device)
        self._fitted = (fitted,)
        self._columns = [variable.name for variable in inputs]
        self._estimates = [variable.name for variable in outputs]
        self.eval()

    @property
    def simulator(self) -> Any:
        """The model that was given; predictions use a copy."""
        return self._fitted[0]

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, torch.Tensor]:
        del outputs
        unset = [repr(name) for name in self._columns if inputs[name] is None]
        if unset:
            raise ValidationError(f"{', '.join(unset)} without a value: give a default, or set or pass a value")
        x = torch.stack(torch.broadcast_tensors(*(inputs[name] for name in self._columns)), dim=-1)
        answers = [part(x.reshape(-1, x.shape[-1])) for part in self.processes]
        found: dict[str, torch.Tensor] = {}
        for suffix, values in zip(("", SUFFIX), zip(*answers, strict=True), strict=True):
            rows = torch.cat(values).reshape(len(self._estimates), *x.shape[:-1])
            found |= {name + suffix: row for name, row in zip(self._estimates, rows, strict=True)}
        return found
