"""ModelMean: what a model says of the objective, as the prior mean of a Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from gpytorch.means import Mean
from torch import Tensor

from lume_diff.calibration.fit.parameters import InputParameter, Parameter, acted_inputs
from lume_diff.calibration.prior_mean.calibrated import (
    Learned,
    MeanParameters,
    OutputOffset,
    OutputScale,
    checked_parameters,
)
from lume_diff.calibration.prior_mean.callers import check_caller, names_in_build
from lume_diff.calibration.prior_mean.checks import checked_inputs, checked_outputs, matching_problems, raise_all
from lume_diff.calibration.prior_mean.emulator import Emulator, EmulatorReport, emulated
from lume_diff.calibration.prior_mean.storing import packed, unpacked
from lume_diff.calibration.prior_mean.surface import Surface
from lume_diff.errors import ShapeError, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.models.derivatives import component_shape
from lume_diff.models.transforms import in_transform
from lume_diff.variables import TorchScalarVariable

_UNLIMITED = (-math.inf, math.inf)

#: From inputs ``(..., n_in)`` to outputs ``(..., n_out)``, both in the model's units.
Response = Callable[[Tensor], Tensor]


class ModelMean(Mean):
    """Expect of the objective what a model says.

    The columns of what it is called with are the inputs in the order given, in the model's units. Xopt has an order of
    its own; a mean inside Xopt learns it by name when a GP is built, and refuses where it cannot. A point beyond the
    model's limits is refused; where a learned scale leads from a point inside them beyond, the model is asked at its
    limit.

    The model stays outside the GP: it is neither copied nor trained nor cast with it. What may be learned are
    ``trainable`` parameters, and only while the mean is listed in ``trainable_mean_keys``.

    Args:
        model: any model; its other inputs stay at their set-points.
        inputs: names of scalar inputs: the VOCS's variables, in any order.
        output: name of the output that is the objective, or names of those that ``transform`` makes it from.
        transform: function of the outputs, each ``(*batch, *shape)``, that returns the objective, ``(*batch,)``.
        trainable: what may be learned (``Scale``, ``Offset``, ``Value``, ``OutputScale``, ``OutputOffset``...); a scale
            of 1 ± 0.2 for each input if None.
        emulate: True, or an ``Emulator`` with a bound on the runs, for a model that is too slow to be asked thousands
            of times in every step: the mean answers from a local differentiable emulator, see ``emulation``. Without,
            batches go to the model, to its workers if it has some, and its gradients are used as they are.

    Raises:
        UnknownVariableError: for names that the model does not have.
        ValidationError, ShapeError: for inputs or outputs of the wrong kind, and a transform that returns the wrong
            shape; all that is wrong at once.

    Gradient:
        As the model's, to inputs and to trainable parameters; exactly that of the emulator where there is one.

    Example:
        >>> import torch
        >>> from lume_diff import TorchModel
        >>> from lume_diff.variables import TorchScalarVariable as Scalar
        >>> variables = [Scalar(name="a", default_value=0.0)], [Scalar(name="size", read_only=True)]
        >>> model = TorchModel(torch.nn.Softplus(), *variables)
        >>> mean = ModelMean(model, inputs=["a"], output="size", transform=torch.log10)
        >>> mean(torch.zeros(4, 3, 1, dtype=torch.float64)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        model: LUMEModel,
        inputs: Sequence[str],
        output: str | Sequence[str],
        transform: Callable[..., Tensor] | None = None,
        trainable: Sequence[Parameter] | None = None,
        emulate: bool | Emulator = False,
    ) -> None:
        super().__init__()
        self.input_names = checked_inputs(model, inputs)
        self.output_names = checked_outputs(model, output, transform)
        self.transform = transform
        self.calibration = MeanParameters(checked_parameters(trainable, self.input_names, model))
        self._asked = list(dict.fromkeys([*self.input_names, *self.calibration.touched]))
        # In a tuple: not a part of this module, so that neither the GP's optimiser nor its dtype reaches the model.
        self._outside: tuple[LUMEModel, Response] = (model, model.tensor_function(self._asked, self.output_names))
        self._columns: list[str] | None = None
        self._limits = _limits(model, self._asked)
        self._emulator = emulated(emulate, model, self._asked, self._limits)
        self._surface: Surface | None = None  # of the emulator when a GP was built, for that GP

    # -- the model -------------------------------------------------------------------------------------------

    @property
    def model(self) -> LUMEModel:
        """The model that is asked."""
        return self._outside[0]

    @property
    def response(self) -> Response:
        """What answers for the model, ``(..., n_in) -> (..., n_out)`` in the model's units.

        The model's own ``tensor_function`` unless something that is faster has been put in its place.
        """
        return self._outside[1]

    @response.setter
    def response(self, response: Response) -> None:
        self._outside = (self.model, response)

    @property
    def emulation(self) -> EmulatorReport | None:
        """What the emulator has cost and how good it is; None without one."""
        return None if self._emulator is None else self._emulator.report()

    # -- names -----------------------------------------------------------------------------------------------

    @property
    def columns(self) -> list[str]:
        """Names of the columns that the mean takes: Xopt's variables once bound, else the inputs as given."""
        return list(self._columns or self.input_names)

    def bind(self, columns: Sequence[str], bounds: Mapping[str, Sequence[float]] | None = None) -> ModelMean:
        """Take columns in this order from now on.

        Args:
            columns: names of the VOCS's variables, in its order.
            bounds: their ranges, to be held against the model's limits [the inputs' units].

        Raises:
            ValidationError: for variables that the mean does not take, inputs that are no variables, and ranges beyond
                the model's limits; all at once.
        """
        raise_all(matching_problems(self.input_names, self._limits, columns, bounds))
        self._columns = list(columns)
        if self._emulator is not None and bounds is not None:
            self._emulator.narrow(bounds)
        return self

    def check(self, vocs: Any) -> None:
        """Raise unless variables and ranges of a VOCS are this mean's.

        Raises:
            ValidationError: see ``bind``.
        """
        bounds = {name: getattr(variable, "domain", None) for name, variable in vocs.variables.items()}
        given = {name: domain for name, domain in bounds.items() if domain is not None}
        raise_all(matching_problems(self.input_names, self._limits, vocs.variable_names, given))

    # -- the mean --------------------------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the model says of the objective: see ``forward``."""
        check_caller(self, self._columns is not None)
        return super().__call__(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the model says of the objective, ``(*batch, n)``, at points ``(*batch, n, d)``."""
        return self.at(x, self.calibration.coordinates)

    def at(self, x: Tensor, coordinates: Tensor) -> Tensor:
        """Return the objective if the trainable parameters have other values.

        Args:
            x: points, ``(*batch, n, d)`` [the inputs' units].
            coordinates: of the parameters, in standard deviations of their priors, ``(*c, p)``; ``c`` broadcasts with
                ``batch``.

        Returns:
            ``(*batch, n)`` [unit of the objective], in the dtype and on the device of ``x``.

        Raises:
            ShapeError: for another number of columns.
        """
        columns = self.columns
        if x.shape[-1] != len(columns):
            raise ShapeError(f"x has shape {tuple(x.shape)}; expected (*batch, n, {len(columns)}) for {columns}")
        model = self.model
        point = x.to(dtype=model.dtype, device=model.device)
        if not in_transform():
            _check_inside(point, columns, self._limits)
        pairs = self.calibration.pairs(coordinates if coordinates.dtype == point.dtype else coordinates.to(point))
        asked = self._asked_columns(point, [(p, v) for p, v in pairs if isinstance(p, InputParameter)])
        objective = self._answer(asked)
        if objective.shape != asked.shape[:-1]:
            raise ShapeError(
                f"transform of {self.output_names} returned shape {tuple(objective.shape)}; expected "
                f"{tuple(asked.shape[:-1])}: one number for each point, without looking at other points"
            )
        for parameter, value in pairs:
            if isinstance(parameter, (OutputScale, OutputOffset)):
                objective = parameter.on_objective(objective, value)
        return objective.to(dtype=x.dtype, device=x.device)

    def _asked_columns(self, point: Tensor, pairs: Sequence[tuple[Parameter, Tensor]]) -> Tensor:
        """Return what the model is asked at, ``(*batch, n, n_in)``: the machine's values, within the model's limits."""
        columns = self.columns
        if pairs:
            values = dict(zip(columns, point.unbind(-1), strict=True))
            changed = acted_inputs(pairs, values, self.model)
            parts = [changed[name] for name in self._asked]
            is_alike = all(part.shape == parts[0].shape for part in parts)
            asked = torch.stack(parts if is_alike else list(torch.broadcast_tensors(*parts)), dim=-1)
        elif columns == self._asked:
            asked = point
        else:
            rest = self.model.get([name for name in self._asked if name not in columns])
            parts = [
                point[..., columns.index(name)] if name in columns else rest[name].expand(point.shape[:-1])
                for name in self._asked
            ]
            asked = torch.stack(parts, dim=-1)
        edges = [self._limits[name] for name in self._asked]
        if all(edge == _UNLIMITED for edge in edges):
            return asked
        low, high = asked.new_tensor(edges).unbind(-1)
        return asked.clamp(low, high)

    def _answer(self, asked: Tensor) -> Tensor:
        """Return the objective at the model's inputs, from the emulator if there is one."""
        if self._emulator is None:
            return self._truth(asked)
        return self._emulator(asked, self._truth, self._surface)

    def _truth(self, asked: Tensor) -> Tensor:
        return self._objective(self.response(asked))

    def _objective(self, flat: Tensor) -> Tensor:
        """Return the objective from the outputs' columns, ``(*batch, n_out)``."""
        variables = self.model.supported_variables
        shapes = [component_shape(variables[name]) for name in self.output_names]
        if not any(shapes):
            parts = flat.unbind(-1)
            return parts[0] if self.transform is None else self.transform(*parts)
        parts = flat.split([max(1, torch.Size(shape).numel()) for shape in shapes], dim=-1)
        values = [part.reshape(*flat.shape[:-1], *shape) for part, shape in zip(parts, shapes, strict=True)]
        return values[0] if self.transform is None else self.transform(*values)

    def learned(self) -> list[Learned]:
        """Return the trainable parameters as they stand, in physical units."""
        return self.calibration.learned()

    def __getstate__(self) -> dict[str, Any]:
        return packed(self, ["_outside", "_emulator", "transform"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(unpacked(state))

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelMean:
        """Copy everything but the model, which only answers; learn the columns' names if Xopt copies for a build."""
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update({k: v if k == "_outside" else deepcopy(v, memo) for k, v in self.__dict__.items()})
        names = names_in_build()
        if names is None:
            return new
        if new._emulator is not None:
            new._surface = new._emulator.refined(new._truth)
        return new.bind(names)


def _limits(model: LUMEModel, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return a model's limits of scalar inputs [their units], infinite where it has none."""
    found = {}
    for name in names:
        variable = model.supported_variables[name]
        low, high = (variable.value_range if isinstance(variable, TorchScalarVariable) else None) or (None, None)
        least, most = _UNLIMITED
        found[name] = (least if low is None else float(low), most if high is None else float(high))
    return found


def _check_inside(point: Tensor, columns: Sequence[str], limits: Mapping[str, tuple[float, float]]) -> None:
    """Raise for points ``(*batch, n, d)`` outside the model's limits by more than rounding."""
    if not point.numel() or all(limits[name] == _UNLIMITED for name in columns):
        return
    outside = []
    for i, name in enumerate(columns):
        low, high = limits[name]
        if (low, high) == _UNLIMITED:
            continue
        value = point[..., i]
        scale = max(abs(edge) for edge in (low, high) if math.isfinite(edge))
        slack = 1e-6 * (scale or float(value.detach().abs().max()))
        beyond = (value < low - slack) | (value > high + slack)
        if bool(beyond.any()):
            outside.append(f"{name!r} is {float(value[beyond][0]):g}; its limits are {low:g} and {high:g}")
    if outside:
        raise ValidationError("the mean was asked beyond the model's limits: " + "; ".join(outside))
