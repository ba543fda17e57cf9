"""A bunch whose particles act on each other: a whole perturbed bunch is pushed through, in forward mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lume_diff.blackbox.differences.bunch_rows import N_OUT
from lume_diff.blackbox.differences.bunches import NO_REVERSE, BunchBox
from lume_diff.errors import GradientError


def collective_bunch(x: Tensor, box: BunchBox) -> Tensor:
    """Evaluate a bunch with collective forces, ``(*batch, n, 6 + p) -> (*batch, n, 7)``.

    Gradient:
        Forward mode only, 2 runs a direction; reverse mode raises ``GradientError``.
    """
    return _Collective.apply(x, box)


class _Collective(torch.autograd.Function):
    """The value of a bunch, whose forward mode pushes a whole perturbed bunch through."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, box: BunchBox) -> Tensor:
        found = box.derivative(x.detach().reshape(-1, x.shape[-1]), 0)
        return found.reshape((*x.shape[:-1], N_OUT)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, BunchBox], output: Tensor) -> None:
        x, ctx.box = inputs
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise GradientError(NO_REVERSE)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        return _Along.apply(x, tangent, ctx.box)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, box: BunchBox) -> Any:
        if in_dims[0] is None:
            return _Collective.apply(x, box), None
        return _Collective.apply(x.movedim(in_dims[0], 0), box), 0


class _Along(torch.autograd.Function):
    """The derivative along a direction; it has none itself."""

    generate_vmap_rule = False

    @staticmethod
    def forward(x: Tensor, tangent: Tensor, box: BunchBox) -> Tensor:
        x, tangent = torch.broadcast_tensors(x, tangent)
        flat = (value.detach().reshape(-1, value.shape[-1]) for value in (x, tangent))
        return box.along(*flat).reshape((*x.shape[:-1], N_OUT)).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise GradientError("a second derivative through collective forces is not available")

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, tangent: Tensor, box: BunchBox) -> Any:
        moved = [
            value.unsqueeze(0) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((x, tangent), in_dims[:2], strict=True)
        ]
        return _Along.apply(*moved, box), 0
