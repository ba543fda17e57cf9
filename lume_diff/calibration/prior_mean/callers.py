"""Who calls a mean: Xopt hands over columns without their names, and sometimes in another space, and does not say so.

A mean that guesses is silently wrong, so the caller's frame is looked at: the one place where it can be known. Where
nothing is found there, a mean refuses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import gpytorch
from xopt.generators.bayesian.base_model import ModelConstructor
from xopt.generators.bayesian.models.prior_mean import CustomMean

from lume_diff.errors import ValidationError

#: How far up a build is looked for: a deep copy of nested containers takes a few frames each.
_DEPTH = 16


def names_in_build() -> Sequence[str] | None:
    """Return the columns' names if an Xopt constructor is building a model right now, further up the stack."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return None
        found = frame.f_locals
        if frame.f_code.co_name == "build_model" and isinstance(found.get("self"), ModelConstructor):
            return found.get("input_names")
        frame = frame.f_back
    return None


def check_caller(mean: Any, is_named: bool) -> None:
    """Raise if the function that called ``mean(x)`` hands over inputs that the mean cannot take for physical ones.

    Raises:
        ValidationError: if a GP with transforms calls the mean itself, or Xopt's wrapper calls one that was never told
            the names of the columns.
    """
    caller = sys._getframe(2).f_locals.get("self")
    if isinstance(caller, gpytorch.models.GP) and getattr(caller, "mean_module", None) is mean:
        transforms = [n for n in ("input_transform", "outcome_transform") if getattr(caller, n, None) is not None]
        if transforms:
            raise ValidationError(
                f"a {type(caller).__name__} with {' and '.join(transforms)} calls this ModelMean directly, as with "
                "Xopt's BatchedModelConstructor: inputs are scaled to [0, 1] and its targets standardised, of which "
                "the model knows nothing; use PriorMeanModelConstructor or StandardModelConstructor"
            )
    if isinstance(caller, CustomMean) and not is_named:
        raise ValidationError(
            "Xopt calls this ModelMean without having told the order of its variables; use PriorMeanModelConstructor, "
            "or call mean.bind(vocs.variable_names) first"
        )
