"""Identities that speak up when a gradient passes through them."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lume_diff.errors import GradientError, PhysicsWarning
from lume_diff.models.transforms import in_transform


def refuse_gradient(value: torch.Tensor, anchor: torch.Tensor, message: str, lost: torch.Tensor) -> torch.Tensor:
    """Return ``value``; a gradient of it raises ``GradientError`` where ``lost`` is positive.

    ``anchor`` is what the value depends on in a way that autograd does not see.
    """
    return _Guard.apply(value, anchor, lost, message, True)


def warn_of_gradient(value: torch.Tensor, message: str, lost: torch.Tensor) -> torch.Tensor:
    """Return ``value``; a gradient through it warns where ``lost`` is positive."""
    return _Guard.apply(value, None, lost, message, False)


def _speak(lost: torch.Tensor, message: str, refuse: bool) -> None:
    if not in_transform() and not torch._C._functorch.is_functorch_wrapped_tensor(lost):
        fraction = lost.max()
        if not fraction > 0:
            return
        message = f"{message} (lost fraction {fraction:.3g})"
    if refuse:
        raise GradientError(message)
    warnings.warn(message, PhysicsWarning, stacklevel=3)


class _Guard(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: torch.Tensor, anchor: torch.Tensor | None, lost: torch.Tensor, message: str, refuse: bool
    ) -> torch.Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        _, anchor, ctx.lost, ctx.message, ctx.refuse = inputs
        ctx.anchor_shape = None if anchor is None else anchor.shape

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        _speak(ctx.lost, ctx.message, ctx.refuse)
        anchor = None if ctx.anchor_shape is None else gradient.new_zeros(ctx.anchor_shape)
        return gradient, anchor, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor | None, *_: Any) -> torch.Tensor | None:  # type: ignore[override]
        _speak(ctx.lost, ctx.message, ctx.refuse)
        return None if tangent is None else tangent.clone()
