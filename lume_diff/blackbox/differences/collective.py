"""A bunch whose particles act on each other: a whole perturbed bunch is pushed through, in forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.differences.bunch_rows import N_IN, N_OUT
from lume_diff.blackbox.differences.bunches import BunchBox
from lume_diff.blackbox.differences.memory import Column
from lume_diff.blackbox.differences.stencil import fitted
from lume_diff.blackbox.differences.steps import StepClass
from lume_diff.errors import GradientError

Array = np.ndarray

_NO_REVERSE = (
    "with collective forces the Jacobian of a bunch is no block a particle, so there is no reverse mode through it: "
    "use forward mode, torch.func.jvp or model.jacobian(mode='forward')"
)


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
        raise GradientError(_NO_REVERSE)

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
        return _along(box, *flat).reshape((*x.shape[:-1], N_OUT)).to(x.dtype)

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


def _along(box: BunchBox, points: Tensor, tangents: Tensor) -> Tensor:
    """Return the derivative of all rows along one direction of the whole bunch, by 2 runs a bunch."""
    found = []
    with box.memory.spending("jacobian"):
        pairs = zip(box.plain_bunches(points), box.plain_bunches(tangents), strict=True)
        for index, (bunch, direction) in enumerate(pairs):
            notes, key = box.notes_on(bunch, index), ("along", hash(direction.tobytes()))
            if key not in notes:
                notes[key] = _pushed(box, bunch, direction, index)
            found.append(notes[key])
    return torch.from_numpy(np.concatenate(found)).to(points.device)


def _pushed(box: BunchBox, bunch: Array, direction: Array, index: int) -> Array:
    rms = np.sqrt(np.mean(np.square(direction), axis=0))
    # Particles that cross a cell of the space-charge grid make kinks: a short way meets fewer of them.
    shifts = 0.1 * box.shifts(bunch, index)
    with np.errstate(divide="ignore"):
        step = float(np.where(rms > 0, shifts / rms, np.inf).min())
    if not np.isfinite(step):
        return np.zeros((len(bunch), N_OUT))
    scheme, step = fitted("central", step, _room(box.columns, bunch[0, N_IN:], direction[0, N_IN:]))
    part = StepClass(scheme, step, np.arange(N_OUT), np.full(N_OUT, np.nan))
    seen = box.good_runs([bunch + offset * direction for offset in part.offsets], index)
    slope = part.derivative(box.value_at(bunch, index), [rows for rows, _ in seen])
    through = box.notes_on(bunch, index)["alive"] & np.all([alive for _, alive in seen], axis=0)
    return np.where(through[:, None], slope, 0.0)


def _room(columns: Sequence[Column], numbers: Array, direction: Array) -> tuple[float, float]:
    """Return how many times a direction fits between the machine's numbers and their limits, backwards and forwards."""
    back = forth = np.inf
    for column, here, way in zip(columns, numbers, direction, strict=True):
        if way != 0.0:
            below, above = (distance / abs(way) for distance in column.room(float(here)))
            back, forth = min(back, below if way > 0.0 else above), min(forth, above if way > 0.0 else below)
    return back, forth
