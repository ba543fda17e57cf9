"""The default kind of variable: one real number, or a batch of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from lume_diff.variables.base import Variable
from lume_diff.variables.coercion import real_tensor
from lume_diff.variables.limits import (
    POLICIES,
    Limits,
    Range,
    default_scale,
    finite_bounds,
    finite_float,
    float_range,
    positive_float,
)

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_FLOAT64 = torch.float64


@final
class TorchScalarVariable(Variable):
    """Describe a real number; values are float tensors of shape ``(*batch,)``.

    Args:
        default_value: a number inside ``value_range`` [unit], or None.
        value_range: ``(low, high)`` [unit], ends included; None leaves an end open.
        warning_range: values outside it have the severity MINOR [unit].
        alarm_range: values outside it have the severity MAJOR [unit].
        precision: the number of digits after the decimal point on displays.
        scale: the size of a typical change [unit], positive. It sets finite-difference steps, optimiser scaling
            and prior widths. Default: a tenth of the width of ``value_range`` if that is finite, else
            ``max(|default_value|, 1) * 1e-2``.

    Raises:
        ValidationError: a field is unknown, missing or wrong, or ``default_value`` is outside ``value_range``.
        UnitError: the unit is not known.

    Example:
        >>> k1 = TorchScalarVariable(name="Q1.k1", unit="1/m^2", default_value=1.5, value_range=(-10, 10))
        >>> k1.validate_value(2), k1.scale
        (tensor(2., dtype=torch.float64), 2.0)
    """

    upstream_names: ClassVar[tuple[str, ...]] = ("ScalarVariable",)
    upstream_dtype: ClassVar[bool] = True

    default_value: Annotated[float | None, BeforeValidator(finite_float)] = None
    value_range: Annotated[Range, BeforeValidator(float_range)] = None
    warning_range: Annotated[Range, BeforeValidator(float_range)] = None
    alarm_range: Annotated[Range, BeforeValidator(float_range)] = None
    precision: Annotated[int | None, Field(ge=0, le=17, strict=True)] = None
    scale: Annotated[float | None, BeforeValidator(positive_float)] = None

    if TYPE_CHECKING:  # kept by `_complete`; ClassVar hides them from the signature that type checkers derive
        _low: ClassVar[float]
        _high: ClassVar[float]
        _limits: ClassVar[Limits]

    def _complete(self) -> None:
        low, high = self.value_range or (-math.inf, math.inf)
        limits = Limits(self.name, self.unit, low, high, self.default_validation_config, self.read_only)
        if self.default_value is not None:
            limits.refuse_default(self.default_value)
        finite_low, finite_high = finite_bounds(low, high, _FLOAT64, _FLOAT64)
        self._keep(_limits=limits, _low=finite_low, _high=finite_high)
        if self.scale is None:
            self._keep(scale=default_scale(self.value_range, self.default_value))

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Tensor:
        """Return a number, or a batch of numbers, as a float tensor, or raise.

        Args:
            value: a Python or numpy number, a tensor, an array or nested lists of numbers [unit], any shape.
            dtype: the dtype of the result.
            device: where the result goes; None leaves a tensor where it is.
            config: ``"error"``, ``"warn"`` or ``"none"`` for a value outside ``value_range``; None for the variable's.

        Returns:
            A tensor of shape ``(*batch,)`` [unit]; a tensor that fits is returned as it is.

        Raises:
            ValidationError: not a real number, not finite, or outside ``value_range`` under the policy "error".
            ShapeError: lists of unequal length.

        Gradient: exact.
        """
        kind = type(value)
        # The two cases that a model meets most often, without a tensor operation beyond reading one number.
        if config is None or config in POLICIES:
            if kind is float:
                if dtype is _FLOAT64 and self._low <= value <= self._high:
                    return torch.scalar_tensor(value, dtype=_FLOAT64, device=device)
            elif (
                (kind is Tensor or kind is torch.nn.Parameter)
                and value.dtype is _FLOAT64
                and dtype is _FLOAT64
                and not value.ndim
                and not _is_wrapped(value)
                and not value.is_meta
                and self._low <= value.item() <= self._high
            ):
                return value if device is None or value.device == device else value.to(device)
        tensor = real_tensor(self.name, value)
        self._limits.check(tensor, dtype, config)
        return tensor.to(dtype=dtype, device=device)

    @property
    def is_differentiable(self) -> bool:
        """True: values carry a gradient."""
        return True

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the shape of a value: all its dimensions are batch dimensions."""
        return value.shape if isinstance(value, Tensor) else real_tensor(self.name, value).shape

    def alarm_severity(self, value: Any) -> str:
        """Return the alarm severity of a value, or the worst one of a batch.

        Args:
            value: numbers [unit], any shape.

        Returns:
            ``"INVALID"`` if not finite, ``"MAJOR"`` outside ``alarm_range``, ``"MINOR"`` outside ``warning_range``,
            else ``"NO_ALARM"``. The ends of a range belong to it.

        Raises:
            ValidationError: not a real number.

        Gradient: none.

        Example:
            >>> TorchScalarVariable(name="T", unit="degC", warning_range=(None, 40)).alarm_severity(41.0)
            'MINOR'
        """
        tensor = real_tensor(self.name, value).detach().reshape(-1)
        if not bool(torch.isfinite(tensor).all()):
            return "INVALID"
        for limits, severity in ((self.alarm_range, "MAJOR"), (self.warning_range, "MINOR")):
            if limits is None:
                continue
            low, high = finite_bounds(*limits, tensor.dtype, _FLOAT64)
            if not bool(((tensor >= low) & (tensor <= high)).all()):
                return severity
        return "NO_ALARM"
