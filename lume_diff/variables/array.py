"""Variables with a shape: images, waveforms, matrices and vectors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import numpy as np
import torch
from pydantic import BeforeValidator, field_validator
from torch import Tensor

from lume_diff.errors import ShapeError
from lume_diff.variables.base import Variable
from lume_diff.variables.coercion import real_tensor
from lume_diff.variables.limits import Limits, Range, default_scale, float_range, positive_float


def _shape(value: Any) -> tuple[int, ...]:
    items = (value,) if isinstance(value, int | np.integer) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError("expected the lengths of one or more dimensions; a number is a TorchScalarVariable")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | np.integer) or item < 1:
            raise ValueError("expected positive whole numbers as lengths")
    return tuple(int(item) for item in items)


def _pixel_size(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    sizes = [positive_float(part) for part in value] if isinstance(value, list | tuple) else []
    if len(sizes) != 2 or sizes[0] is None or sizes[1] is None:
        raise ValueError("expected (x, y), two positive lengths in metres")
    return sizes[0], sizes[1]


@final
class TorchNDVariable(Variable):
    """Describe an array of real numbers; values are float tensors of shape ``(*batch, *shape)``.

    Args:
        shape: the shape of one value; batch dimensions come before it and are not declared.
        default_value: an array of that shape [unit], or None; kept as a read-only float64 numpy array.
        value_range: ``(low, high)`` for every element [unit], ends included; None leaves an end open.
        scale: the size of a typical change of an element [unit], positive. Default: a tenth of the width of
            ``value_range`` if that is finite, else ``max(max|default_value|, 1) * 1e-2``.
        pixel_size: of an image, width and height of a pixel ``(x, y)`` [m], as the model is built; None if not known.

    Raises:
        ValidationError: a field is unknown, missing or wrong, or ``default_value`` is outside ``value_range``.
        ShapeError: ``default_value`` does not have the shape.
        UnitError: the unit is not known.

    Example:
        >>> image = TorchNDVariable(name="SCR1.image", shape=(2, 3), unit="counts", read_only=True)
        >>> image.batch_shape(image.validate_value(torch.zeros(5, 2, 3)))
        torch.Size([5])
    """

    upstream_names: ClassVar[tuple[str, ...]] = ("NDVariable",)
    upstream_dtype: ClassVar[bool] = True

    shape: Annotated[tuple[int, ...], BeforeValidator(_shape)]
    default_value: Any = None
    value_range: Annotated[Range, BeforeValidator(float_range)] = None
    scale: Annotated[float | None, BeforeValidator(positive_float)] = None
    pixel_size: Annotated[tuple[float, float] | None, BeforeValidator(_pixel_size)] = None

    if TYPE_CHECKING:  # kept by `_complete`; ClassVar hides it from the signature that type checkers derive
        _limits: ClassVar[Limits]

    @field_validator("default_value", mode="before")
    @classmethod
    def _as_array(cls, value: Any) -> np.ndarray | None:
        if value is None:
            return None
        array = np.array(real_tensor("default_value", value).detach().cpu().to(torch.float64).numpy(), copy=True)
        if not np.isfinite(array).all():
            raise ValueError("expected finite numbers")
        array.flags.writeable = False
        return array

    def _complete(self) -> None:
        low, high = self.value_range or (-math.inf, math.inf)
        limits = Limits(
            self.name, self.unit, low, high, self.default_validation_config, self.read_only, len(self.shape)
        )
        self._keep(_limits=limits)
        default = self.default_value
        if default is not None:
            if default.shape != self.shape:
                raise ShapeError(
                    f"variable {self.name!r}: default_value has shape {default.shape}, expected {self.shape}; "
                    "correct one of the two"
                )
            limits.refuse_default(float(default.min()))
            limits.refuse_default(float(default.max()))
        if self.scale is None:
            largest = None if default is None else float(np.abs(default).max())
            self._keep(scale=default_scale(self.value_range, largest))

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Tensor:
        """Return an array, or a batch of arrays, as a float tensor, or raise.

        Args:
            value: a tensor, an array or nested lists of numbers [unit], shape ``(*batch, *shape)``.
            dtype: the dtype of the result.
            device: where the result goes; None leaves a tensor where it is.
            config: ``"error"``, ``"warn"`` or ``"none"`` for elements outside ``value_range``; None for the variable's.

        Returns:
            A tensor of shape ``(*batch, *shape)`` [unit]; a tensor that fits is returned as it is.

        Raises:
            ValidationError: not real numbers, not finite, or outside ``value_range`` under the policy "error".
            ShapeError: the shape does not end with the declared one.

        Gradient: exact.
        """
        tensor = real_tensor(self.name, value)
        if tensor.shape[max(tensor.ndim - len(self.shape), 0) :] != self.shape:
            raise ShapeError(
                f"variable {self.name!r}: received shape {tuple(tensor.shape)}, expected {self._expected()}; "
                "reshape the value, batch dimensions first"
            )
        self._limits.check(tensor, dtype, config)
        return tensor.to(dtype=dtype, device=device)

    @property
    def is_differentiable(self) -> bool:
        """True: values carry a gradient."""
        return True

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the dimensions of a value before its own shape."""
        shape = value.shape if isinstance(value, Tensor) else real_tensor(self.name, value).shape
        return torch.Size(shape[: len(shape) - len(self.shape)])

    def _expected(self) -> str:
        return f"(*batch, {', '.join(map(str, self.shape))})"
