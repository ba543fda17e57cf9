"""Variables without a gradient: whole numbers, truth values, choices and text."""

from __future__ import annotations

import re
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, final

import torch
from pydantic import BeforeValidator, Field, field_validator
from torch import Tensor

from lume_diff.errors import OutOfRangeWarning, ValidationError, nearest_names, shortened
from lume_diff.variables.base import Variable
from lume_diff.variables.coercion import bool_tensor, integer_tensor, refuse
from lume_diff.variables.limits import INT64_ENDS, Limits, Range, int_range


class _WithoutGradient(Variable):
    """Say that values have no gradient; not for use outside this file."""

    @property
    def is_differentiable(self) -> bool:
        """False: values are no real numbers."""
        return False


class _Countable(_WithoutGradient):
    """Share what whole numbers and truth values have in common; not for use outside this file."""

    _limits: ClassVar[Limits | None] = None

    def validate_value(
        self,
        value: Any,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        config: str | None = None,
    ) -> Tensor:
        """Return a whole number or a truth value, or a batch of them, as an int64 or bool tensor, or raise.

        Args:
            value: an integer or a float without a fraction; or a bool, for which 0 and 1 are not taken; or an array,
                tensor or list of these, any shape.
            dtype: not used.
            device: where the result goes; None leaves a tensor where it is.
            config: ``"error"``, ``"warn"`` or ``"none"`` for a value outside ``value_range``; None for the variable's.

        Returns:
            A tensor of shape ``(*batch,)``.

        Raises:
            ValidationError: of another type, or outside ``value_range`` under the policy "error".
            ShapeError: lists of unequal length.

        Gradient: none.
        """
        policy = self._policy(config)
        tensor = self._tensor(value)
        if self._limits is not None:
            self._limits.check(tensor, tensor.dtype, policy)
        return tensor.to(device=device)

    def batch_shape(self, value: Any) -> torch.Size:
        """Return the shape of a value: all its dimensions are batch dimensions."""
        return value.shape if isinstance(value, Tensor) else self._tensor(value).shape

    @abstractmethod
    def _tensor(self, value: Any) -> Tensor:
        """Return a value as a tensor, or raise."""


def _only(tensor: Tensor) -> Any:
    """Return the value of a tensor of one element."""
    if tensor.numel() != 1:
        raise ValueError(f"expected one value, received shape {tuple(tensor.shape)}")
    return tensor.item()


@final
class IntVariable(_Countable):
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

    @field_validator("default_value", mode="before")
    @classmethod
    def _as_int(cls, value: Any) -> int | None:
        return None if value is None else int(_only(integer_tensor("default_value", value)))

    def _complete(self) -> None:
        low, high = self.value_range or INT64_ENDS
        limits = Limits(self.name, self.unit, low, high, self.default_validation_config, self.read_only)
        if self.default_value is not None:
            limits.refuse_default(self.default_value)
        self._keep(_limits=limits)

    def _tensor(self, value: Any) -> Tensor:
        return integer_tensor(self.name, value)


@final
class BoolVariable(_Countable):
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
        return None if value is None else bool(_only(bool_tensor("default_value", value)))

    def _tensor(self, value: Any) -> Tensor:
        return bool_tensor(self.name, value)


class _Word(_WithoutGradient):
    """Share what the two kinds of text have in common; not for use outside this file."""

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
            value: a string; the index of an option is refused.
            dtype, device: not used.
            config: ``"error"``, ``"warn"`` or ``"none"`` for a text of the wrong form; None for the variable's. What is
                no option is refused under every policy.

        Returns:
            The text.

        Raises:
            ValidationError: not a string, not an option, or of the wrong length or form under the policy "error"; the
                message has the nearest options.

        Gradient: none.
        """
        policy = self._policy(config)
        if not isinstance(value, str):
            raise refuse(self.name, value, "a string", self._fix())
        text = str.__str__(value)
        self._judge(text, policy)
        return text

    @abstractmethod
    def _judge(self, text: str, policy: str) -> None:
        """Raise or warn unless the text will do."""

    @abstractmethod
    def _fix(self) -> str:
        """Return what to do about a value that is no string."""


@final
class EnumVariable(_Word):
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

    def _judge(self, text: str, policy: str) -> None:
        if text not in self.options:
            raise ValidationError(
                f"variable {self.name!r}: {text!r} is not an option{nearest_names(text, self.options)}"
            )

    def _fix(self) -> str:
        return f"give one of {', '.join(map(repr, self.options[:8]))}"


@final
class StrVariable(_Word):
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

    def _judge(self, text: str, policy: str) -> None:
        expected = self._broken_rule(text)
        if expected is not None and policy != "none":
            message = f"variable {self.name!r}: {shortened(text, 80)!r} ({len(text)} characters), expected {expected}"
            if policy == "error":
                raise ValidationError(f"{message}; give such a text or set default_validation_config='warn'")
            warnings.warn(message, OutOfRangeWarning, stacklevel=3)

    def _fix(self) -> str:
        return "quote it, or convert it with str()"

    def _broken_rule(self, text: str) -> str | None:
        if self.min_length is not None and len(text) < self.min_length:
            return f"at least {self.min_length} characters"
        if self.max_length is not None and len(text) > self.max_length:
            return f"at most {self.max_length} characters"
        if self.pattern is not None and re.fullmatch(self.pattern, text) is None:
            return f"a text that matches {self.pattern!r}"
        return None
