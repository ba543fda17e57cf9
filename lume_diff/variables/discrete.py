"""Variables without a gradient: whole numbers, truth values, choices and text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, final

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from lume_diff.errors import OutOfRangeWarning, ValidationError, nearest_names
from lume_diff.variables.base import Variable
from lume_diff.variables.coercion import bool_tensor, integer_tensor, refuse
from lume_diff.variables.limits import INT64, Limits, Range, check_policy, int_range


@final
class IntVariable(Variable):
    """Describe a whole number; values are int64 tensors of shape ``(*batch,)``.

    Args:
        default_value: a whole number inside ``value_range``, or None.
        value_range: ``(low, high)``, ends included; None leaves an end open.

    Raises:
        ValidationError: a field is unknown, missing or wrong, or ``default_value`` is outside ``value_range``.

    Example:
        >>> IntVariable(name="n_bunches", default_value=1, value_range=(1, None)).validate_value(3)
        tensor(3)
    """

    default_value: Any = None
    value_range: Annotated[Range, BeforeValidator(int_range)] = None

    if TYPE_CHECKING:  # kept by `_complete`; ClassVar hides it from the signature that type checkers derive
        _limits: ClassVar[Limits]

    @field_validator("default_value", mode="before")
    @classmethod
    def _as_int(cls, value: Any) -> int | None:
        return None if value is None else int(integer_tensor("default_value", value).item())

    def _complete(self) -> None:
        low, high = self.value_range or (INT64.min, INT64.max)
        limits = Limits(self.name, self.unit, low, high, self.default_validation_config, self.read_only)
        if self.default_value is not None:
            limits.refuse_default(self.default_value)
        self._keep(_limits=limits)

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Tensor:
        """Return a whole number, or a batch of them, as an int64 tensor, or raise.

        Args:
            value: an integer, a float without a fraction, or an array, tensor or list of them, any shape.
            dtype: not used, whole numbers are int64.
            device: where the result goes; None leaves a tensor where it is.
            config: ``"error"``, ``"warn"`` or ``"none"`` for a value outside ``value_range``; None for the variable's.

        Returns:
            An int64 tensor of shape ``(*batch,)``.

        Raises:
            ValidationError: not a whole number, or outside ``value_range`` under the policy "error".
            ShapeError: lists of unequal length.

        Gradient: none.
        """
        tensor = integer_tensor(self.name, value)
        self._limits.check(tensor, torch.int64, config)
        return tensor.to(device=device)

    @property
    def is_differentiable(self) -> bool:
        """False: values are integers."""
        return False

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the shape of a value: all its dimensions are batch dimensions."""
        return value.shape if isinstance(value, Tensor) else integer_tensor(self.name, value).shape


@final
class BoolVariable(Variable):
    """Describe a truth value; values are bool tensors of shape ``(*batch,)``.

    Args:
        default_value: True, False or None.

    Raises:
        ValidationError: a field is unknown, missing or wrong.

    Example:
        >>> BoolVariable(name="space_charge", default_value=False).validate_value(True)
        tensor(True)
    """

    default_value: Any = None

    @field_validator("default_value", mode="before")
    @classmethod
    def _as_bool(cls, value: Any) -> bool | None:
        return None if value is None else bool(bool_tensor("default_value", value).item())

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Tensor:
        """Return a truth value, or a batch of them, as a bool tensor, or raise.

        Args:
            value: a bool, or an array, tensor or list of bools, any shape; 0 and 1 are refused.
            dtype: not used.
            device: where the result goes; None leaves a tensor where it is.
            config: not used, a bool has no limits.

        Returns:
            A bool tensor of shape ``(*batch,)``.

        Raises:
            ValidationError: not of a bool type.
            ShapeError: lists of unequal length.

        Gradient: none.
        """
        check_policy(self.name, config or "none")
        return bool_tensor(self.name, value).to(device=device)

    @property
    def is_differentiable(self) -> bool:
        """False: values are bools."""
        return False

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the shape of a value: all its dimensions are batch dimensions."""
        return value.shape if isinstance(value, Tensor) else bool_tensor(self.name, value).shape


def _text(name: str, value: Any, fix: str) -> str:
    if not isinstance(value, str):
        raise refuse(name, value, "a string", fix)
    return str.__str__(value)


@final
class EnumVariable(Variable):
    """Describe a choice among named options; values are strings and have no batch dimensions.

    Args:
        options: the names, in the order of a control system's indices; at least one, each once.
        default_value: one of them, or None.

    Raises:
        ValidationError: a field is unknown, missing or wrong, or ``default_value`` is no option.

    Example:
        >>> EnumVariable(name="SCR1.state", options=["OUT", "IN"], default_value="OUT").validate_value("IN")
        'IN'
    """

    options: Sequence[str]
    default_value: Any = None

    @field_validator("options", mode="before")
    @classmethod
    def _check_options(cls, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError("expected a list of at least one option")
        if not all(isinstance(option, str) for option in value):
            raise ValueError("expected strings as options; quote them, or declare an IntVariable or a BoolVariable")
        if len(set(value)) < len(value):
            raise ValueError("an option is there twice; give each once")
        return tuple(str.__str__(option) for option in value)

    def _complete(self) -> None:
        self._check_default()

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> str:
        """Return the option, or raise.

        Args:
            value: one of ``options``; an index is refused.
            dtype: not used.
            device: not used.
            config: not used, anything that is no option is refused under every policy.

        Returns:
            The option.

        Raises:
            ValidationError: not one of ``options``; the message has the nearest ones.

        Gradient: none.
        """
        check_policy(self.name, config or "none")
        text = _text(self.name, value, f"give one of {', '.join(map(repr, self.options[:8]))}")
        if text not in self.options:
            raise ValidationError(
                f"variable {self.name!r}: {text!r} is not an option{nearest_names(text, self.options)}"
            )
        return text

    @property
    def is_differentiable(self) -> bool:
        """False: values are strings."""
        return False


@final
class StrVariable(Variable):
    """Describe a text, such as a file name; values are strings and have no batch dimensions.

    Args:
        pattern: a regular expression that the whole text matches, or None.
        min_length: the least number of characters, or None.
        max_length: the largest number of characters, or None.
        default_value: a text that meets these, or None.

    Raises:
        ValidationError: a field is unknown, missing or wrong, or ``default_value`` does not meet them.

    Example:
        >>> StrVariable(name="run", pattern="[a-z]+[0-9]*", default_value="run1").validate_value("test12")
        'test12'
    """

    upstream_fields: ClassVar[dict[str, str]] = {**Variable.upstream_fields, "regex": "pattern"}

    pattern: str | None = None
    min_length: Annotated[int | None, Field(ge=0, strict=True)] = None
    max_length: Annotated[int | None, Field(ge=0, strict=True)] = None
    default_value: Any = None

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    def _complete(self) -> None:
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            raise ValidationError(
                f"variable {self.name!r}: min_length={self.min_length} exceeds max_length={self.max_length}; swap them"
            )
        self._check_default()

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> str:
        """Return the text, or raise.

        Args:
            value: a string.
            dtype: not used.
            device: not used.
            config: ``"error"``, ``"warn"`` or ``"none"`` for a text of the wrong form; None for the variable's.

        Returns:
            The text.

        Raises:
            ValidationError: not a string, or of the wrong length or form under the policy "error".

        Gradient: none.
        """
        policy = self.default_validation_config if config is None else config
        check_policy(self.name, policy)
        text = _text(self.name, value, "quote it, or convert it with str()")
        expected = self._broken_rule(text)
        if expected is not None and policy != "none":
            shown = text if len(text) <= 80 else text[:77] + "..."
            message = f"variable {self.name!r}: {shown!r} ({len(text)} characters), expected {expected}"
            if policy == "error":
                raise ValidationError(f"{message}; give such a text or set default_validation_config='warn'")
            warnings.warn(message, OutOfRangeWarning, stacklevel=2)
        return text

    def _broken_rule(self, text: str) -> str | None:
        if self.min_length is not None and len(text) < self.min_length:
            return f"at least {self.min_length} characters"
        if self.max_length is not None and len(text) > self.max_length:
            return f"at most {self.max_length} characters"
        if self.pattern is not None and re.fullmatch(self.pattern, text) is None:
            return f"a text that matches {self.pattern!r}"
        return None

    @property
    def is_differentiable(self) -> bool:
        """False: values are strings."""
        return False
