"""A black box as a node of the graph: one autograd function that composes with all of torch.func."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.errors import GradientError


class Derivatives(Protocol):
    """What a node asks for: the value of a black box and its first two derivatives, at a batch of points."""

    n_in: int
    n_out: int

    def derivative(self, points: Tensor, order: int) -> Tensor:
        """Return order 0: ``(N, n_out)``, 1: ``(N, n_out, n_in)``, 2: ``(N, n_out, n_in, n_in)`` for ``(N, n_in)``."""


def black_box(x: Tensor, box: Derivatives) -> Tensor:
    """Evaluate a black box at ``x (*batch, n_in)``; returns ``(*batch, n_out)``.

    Gradient:
        Estimated, first and second; a third raises ``GradientError``. Reverse and forward mode, nested as one likes,
        and vmap, which only adds batch dimensions.
    """
    return _Derivative.apply(x, box, 0)


class _Derivative(torch.autograd.Function):
    """The derivative of order ``k`` of a black box: its own backward and jvp are made of order ``k + 1``."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, box: Derivatives, order: int) -> Tensor:
        if order > 2:
            raise GradientError(
                "a third derivative of a black box was asked for; differences give first and second derivatives only"
            )
        flat = x.detach().reshape(-1, x.shape[-1])
        found = box.derivative(flat, order)
        return found.reshape((*x.shape[:-1], *found.shape[1:])).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Derivatives, int], output: Tensor) -> None:
        x, ctx.box, ctx.order = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None, None
        (x,) = ctx.saved_tensors
        slope = _Derivative.apply(x, ctx.box, ctx.order + 1)
        batch = x.dim() - 1
        weighted = gradient.unsqueeze(-1) * slope
        return weighted.sum(tuple(range(batch, weighted.dim() - 1))), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        x, tangent = _primal(x), _primal(tangent)
        with _forward_gradients():
            slope = _Derivative.apply(x, ctx.box, ctx.order + 1)
            direction = tangent.reshape((*tangent.shape[:-1], *([1] * (ctx.order + 1)), tangent.shape[-1]))
            return (slope * direction).sum(-1)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None, None], x: Tensor, box: Derivatives, order: int) -> Any:
        dimension = in_dims[0]
        if dimension is None:
            return _Derivative.apply(x, box, order), None
        return _Derivative.apply(x.movedim(dimension, 0), box, order), 0


@contextlib.contextmanager
def _forward_gradients() -> Iterator[None]:
    """Let the tangent itself be differentiated in forward mode, which PyTorch switches off inside a jvp.

    Without it ``jacfwd(jacfwd(f))`` is zero, silently (pytorch issue 197867).
    """
    previous = torch._C._is_fwd_grad_enabled()
    torch._C._set_fwd_grad_enabled(True)
    try:
        yield
    finally:
        torch._C._set_fwd_grad_enabled(previous)


def _primal(value: Tensor) -> Tensor:
    """Return a value without the tangent of the level at work; outer levels keep theirs."""
    try:
        return forward_ad.unpack_dual(value).primal
    except RuntimeError:  # gradcheck's batched check has no level open
        return value
