"""Tensors that speak up when a derivative passes through them, backward or forward."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch._C import _functorch
from torch.autograd import forward_ad

from lume_diff.errors import GradientError, PhysicsWarning


def concrete(value: torch.Tensor) -> torch.Tensor:
    """Return the numbers below the wrappers of ``torch.func``, with the dimensions that ``vmap`` has taken away."""
    while _functorch.is_functorch_wrapped_tensor(value):
        value = _functorch.get_unwrapped(value)
    return value.detach()


def is_differentiated(value: torch.Tensor) -> bool:
    """Tell whether derivatives are being taken of a value: backward, forward or by ``torch.func``."""
    if value.requires_grad and torch.is_grad_enabled():
        return True
    while _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_gradtrackingtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def refuse_gradient(anchors: tuple[torch.Tensor, ...], message: str) -> torch.Tensor:
    """Return a zero that depends on the anchors: a derivative with respect to any of these raises.

    Add it to a value that depends on the anchors in a way that autograd does not see. In forward mode it raises here.

    Gradient:
        None; raises ``GradientError`` with the message.
    """
    return _Refuse.apply(message, *anchors)


def warn_of_gradient(values: tuple[torch.Tensor, ...], message: str) -> tuple[torch.Tensor, ...]:
    """Return the values; a derivative that passes through any of them warns with the message, once for all."""
    return _Warn.apply(message, *values)


class _Refuse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, *anchors: torch.Tensor) -> torch.Tensor:
        return anchors[0].new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:
        raise GradientError(ctx.message)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        raise GradientError(ctx.message)


class _Warn(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value.clone() for value in values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.message = inputs[0]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        warnings.warn(ctx.message, PhysicsWarning, stacklevel=2)
        return None, *gradients

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        warnings.warn(ctx.message, PhysicsWarning, stacklevel=2)
        return tuple(None if tangent is None else tangent.clone() for tangent in tangents)
