"""Limits: which numbers a variable lets pass, and the words when one does not.

One comparison answers everything at once: the bounds used are always finite, so a NaN, an infinity
and a value outside the range all fail it, and only a failure pays for finding out which it was.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lume_diff.errors import OutOfRangeWarning, ValidationError

Policy = Literal["none", "warn", "error"]

Range = Any
"""A range as given: two numbers, None for an open end. Read back, it is ``(low, high)`` without None, or None."""

POLICIES: tuple[str, ...] = ("none", "warn", "error")

INT64 = torch.iinfo(torch.int64)
INT64_ENDS = (INT64.min, INT64.max)

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def has_values(tensor: Tensor) -> bool:
    """Return whether numbers can be read from a tensor: not inside a torch.func transform, not meta or fake."""
    if _is_wrapped(tensor) or tensor.is_meta:
        return False
    if type(tensor) is Tensor or type(tensor) is torch.nn.Parameter:
        return True
    from torch._subclasses.fake_tensor import is_fake

    return not is_fake(tensor)


def check_policy(name: str, config: str) -> None:
    """Raise ValidationError if ``config`` is none of the policies."""
    if config not in POLICIES:
        raise ValidationError(f"variable {name!r}: config={config!r} is no policy; use one of {', '.join(POLICIES)}")


@lru_cache(maxsize=8192)
def finite_bounds(low: float, high: float, source: torch.dtype, target: torch.dtype) -> tuple[float, float]:
    """Return finite bounds that a number of dtype ``source`` must meet to be in range and finite in ``target``.

    The bounds are rounded to ``source`` first: 0.3 in single precision is not above an upper end of 0.3.
    """
    largest = torch.finfo(target).max if target.is_floating_point else torch.iinfo(target).max
    if source.is_floating_point:
        largest = min(largest, torch.finfo(source).max)
        if source is not torch.float64:
            low, high = (torch.tensor(end, dtype=torch.float64).to(source).item() for end in (low, high))
    return max(low, -largest), min(high, largest)


@dataclass(frozen=True, slots=True)
class Limits:
    """Hold the limits of one variable and judge tensors by them.

    Args:
        name: the variable's name, for messages.
        unit: its unit, for messages.
        low: the lower end, ``-inf`` where there is none.
        high: the upper end, ``inf`` where there is none.
        policy: what to do with a value outside, unless the caller says.
        read_only: whether the variable is an output; then the policy also covers NaN and infinity.
        element_dims: the number of trailing dimensions that belong to one value.
    """

    name: str
    unit: str
    low: float
    high: float
    policy: str
    read_only: bool
    element_dims: int = 0

    def check(self, tensor: Tensor, target: torch.dtype, config: str | None) -> None:
        """Judge every element of ``tensor``, which is still in the dtype that it came in.

        Args:
            tensor: the value, any shape.
            target: the dtype that it will be cast to.
            config: the policy, None for the variable's own.

        Raises:
            ValidationError: an element is not finite, or outside the range under the policy "error".
        """
        if config is None:
            config = self.policy
        check_policy(self.name, config)
        if not has_values(tensor) or tensor.numel() == 0:
            return
        low, high = finite_bounds(self.low, self.high, tensor.dtype, target)
        if tensor.ndim == 0:
            smallest = largest = tensor.item()
        else:
            extremes = tensor.detach().aminmax()
            smallest, largest = extremes.min.item(), extremes.max.item()
        if not (low <= smallest and largest <= high):
            self._report(tensor.detach(), target, config)

    def _report(self, tensor: Tensor, target: torch.dtype, config: str) -> None:
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            self._act(tensor, ~finite, "not finite", "give finite numbers", "error", config)
            return
        numbers = tensor.to(torch.float64)
        low, high = finite_bounds(-math.inf, math.inf, tensor.dtype, target)
        excess = torch.maximum(low - numbers, numbers - high)
        if bool((excess > 0).any()):
            self._act(tensor, excess, f"too large for {target}", "use a wider dtype or another unit", "error", config)
            return
        low, high = finite_bounds(self.low, self.high, tensor.dtype, target)
        excess = torch.maximum(low - numbers, numbers - high)
        expected = f"outside value_range {self.words()}"
        fix = "give a value inside, widen value_range, or set default_validation_config='warn'"
        self._act(tensor, excess, expected, fix, config, config)

    def _act(self, tensor: Tensor, badness: Tensor, what: str, fix: str, writable: str, config: str) -> None:
        """Raise, warn or pass; ``badness`` is largest at the worst element and positive at every bad one."""
        policy = config if self.read_only else writable
        if policy == "none":
            return
        worst = int(badness.to(torch.float64).argmax())
        value = tensor.reshape(-1)[worst].item()
        count = int((badness > 0).sum())
        where = self._where(tuple(int(i) for i in np.unravel_index(worst, tensor.shape)) if tensor.ndim else ())
        others = f" ({count} of {tensor.numel()} elements are)" if count > 1 else ""
        message = f"variable {self.name!r}: {value!r}{self._unit()}{where} is {what}{others}"
        if policy == "error":
            raise ValidationError(f"{message}; {fix}")
        warnings.warn(message, OutOfRangeWarning, stacklevel=5)

    def _where(self, index: tuple[int, ...]) -> str:
        split = len(index) - self.element_dims
        batch, element = index[:split], index[split:]
        words = [f"batch index {batch}"] if batch else []
        words += [f"element {element}"] if element else []
        return f" at {', '.join(words)}" if words else ""

    def words(self) -> str:
        """Return the range with its unit, for a message."""
        return f"[{end_words(self.low)}, {end_words(self.high)}]{self._unit()}"

    def refuse_default(self, default: float) -> None:
        """Raise ValidationError if a declared default value is outside."""
        if not self.low <= default <= self.high:
            raise ValidationError(
                f"variable {self.name!r}: default_value={default!r} is outside value_range {self.words()}; "
                "correct one of the two"
            )

    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


def plain_float(value: Any) -> float | None:
    """Return a finite or infinite number as a Python float, None as None; refuse bool, complex and text."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if isinstance(value, Tensor):
            value = value.detach().cpu()
        if math.prod(value.shape) != 1:
            raise ValueError(f"expected one number, received shape {tuple(value.shape)}")
        value = value.item()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a real number, received {type(value).__name__} {value!r}")
    try:
        number = float(value)
    except OverflowError:
        raise ValueError("the number is too large for a float") from None
    if math.isnan(number):
        raise ValueError("NaN is not a number that can be declared")
    return number


def finite_float(value: Any) -> float | None:
    """Return a finite number as a Python float, None as None."""
    number = plain_float(value)
    if number is not None and math.isinf(number):
        raise ValueError("expected a finite number")
    return number


def positive_float(value: Any) -> float | None:
    """Return a positive finite number as a Python float, None as None."""
    number = finite_float(value)
    if number is not None and number <= 0.0:
        raise ValueError("expected a positive number")
    return number


def float_range(value: Any) -> tuple[float, float] | None:
    """Return ``(low, high)`` as floats, an open end as an infinity, None as None."""
    if value is None:
        return None
    low, high = (plain_float(end) for end in _two_ends(value))
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    if ends[0] > ends[1] or ends[0] == math.inf or ends[1] == -math.inf:
        raise ValueError("the lower end must not exceed the upper end; give (low, high)")
    return ends


def int_range(value: Any) -> tuple[int, int] | None:
    """Return ``(low, high)`` as integers, an open end as that of int64, None as None."""
    if value is None:
        return None
    low, high = (_whole_end(end, open_end) for end, open_end in zip(_two_ends(value), INT64_ENDS, strict=True))
    if low > high:
        raise ValueError("the lower end must not exceed the upper end; give (low, high)")
    return low, high


def _whole_end(end: Any, open_end: int) -> int:
    """Return an end as an integer of int64; one that is there already does not go through a float."""
    if isinstance(end, int) and not isinstance(end, bool):
        return min(max(end, INT64.min), INT64.max)
    number = plain_float(end)
    if number is None or number == math.copysign(math.inf, open_end):
        return open_end
    if not number.is_integer():
        raise ValueError("expected whole numbers (low, high); None leaves an end open")
    return min(max(int(number), INT64.min), INT64.max)


def end_words(end: float) -> str:
    """Return an end of a range for a message."""
    if end in INT64_ENDS and isinstance(end, int):
        return "-inf" if end < 0 else "inf"
    return str(end) if isinstance(end, int) else f"{end:.12g}"


def _two_ends(value: Any) -> tuple[Any, Any]:
    is_list = hasattr(value, "__len__") and not isinstance(value, str | bytes | dict | set)
    if not is_list or getattr(value, "shape", (2,)) != (2,) or len(value) != 2:
        raise ValueError("expected two numbers (low, high); None leaves an end open")
    return value[0], value[1]


def default_scale(value_range: tuple[float, float] | None, default: float | None) -> float:
    """Return the size of a typical change where none is declared: a tenth of the range, else 1 % of the default."""
    if value_range is not None:
        width = value_range[1] - value_range[0]
        if 0.0 < width < math.inf and width / 10.0 > 0.0:
            return width / 10.0
    return max(abs(default or 0.0), 1.0) * 1e-2
