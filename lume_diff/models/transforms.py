"""Questions about torch.func transforms and about values that may be tensors or bunches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch._C import _functorch
from torch.utils import _pytree as pytree


def in_transform() -> bool:
    """Tell whether the caller runs inside ``torch.func.grad``, ``vmap``, ``jvp`` and the like."""
    return _functorch.peek_interpreter_stack() is not None


def in_vmap(value: torch.Tensor) -> bool:
    """Tell whether ``value`` hides a batch dimension that ``vmap`` has taken away."""
    while _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of a value: itself, or the leaves of a bunch."""
    if isinstance(value, torch.Tensor):
        yield value
    elif value is not None and not isinstance(value, (str, int, float, bool)):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, torch.Tensor):
                yield leaf


def map_tensors(function: Any, value: Any) -> Any:
    """Apply ``function`` to every tensor of a value and return the value rebuilt."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)


def detached(*tables: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return tables of values cut from every graph; what was one object stays one, leaves stay leaves."""
    done: dict[int, Any] = {}

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, torch.nn.Parameter):
            return tensor
        keep = tensor.requires_grad and tensor.is_leaf
        return tensor.detach().clone().requires_grad_(keep)

    def cut_once(value: Any) -> Any:
        if id(value) not in done:
            done[id(value)] = map_tensors(cut, value)
        return done[id(value)]

    return tuple({name: cut_once(value) for name, value in table.items()} for table in tables)


def graph_mode() -> tuple[bool, bool]:
    """Return (grad enabled, inference mode): what a result's graph depends on besides its inputs."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def is_wrapped(value: torch.Tensor) -> bool:
    """Tell whether a ``torch.func`` transform has wrapped a tensor, so that its derivative may be wanted."""
    return bool(_functorch.is_functorch_wrapped_tensor(value))
