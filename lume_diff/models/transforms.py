"""What torch.func transforms need, and questions about values that may be tensors or bunches."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import _functorch
from torch.utils import _pytree as pytree

from lume_diff.particles.bundle import TensorBundle


def in_transform() -> bool:
    """Tell whether the caller runs inside ``torch.func.grad``, ``vmap``, ``jvp`` and the like."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def buffers_kept(module: torch.nn.Module) -> Iterator[None]:
    """Put a module's buffers back after a call inside a transform, whose wrappers must not outlive it.

    BoTorch's input transforms assign theirs anew at every call.
    """
    if not in_transform():
        yield
        return
    kept = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    try:
        yield
    finally:
        for buffers, old in kept:
            buffers.update(old)


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
        # A bunch's leaves without the tree: this is asked of every input of every call.
        leaves = value._leaves().values() if isinstance(value, TensorBundle) else pytree.tree_leaves(value)
        for leaf in leaves:
            if isinstance(leaf, torch.Tensor):
                yield leaf


def map_tensors(function: Any, value: Any) -> Any:
    """Apply ``function`` to every tensor of a value and return the value rebuilt."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)


def mark(value: Any) -> Any:
    """Return what changes when a value is changed in place, or starts to require a gradient."""
    if isinstance(value, torch.Tensor):
        return -1 if value.is_inference() else 2 * value._version + value.requires_grad
    if value is None:
        return None
    return tuple([-1 if t.is_inference() else 2 * t._version + t.requires_grad for t in tensors_in(value)]) or None


def marks(values: Collection[Any]) -> tuple[Any, ...]:
    """Return the mark of every value, in their order."""
    try:
        return tuple([2 * v._version + v.requires_grad if isinstance(v, torch.Tensor) else mark(v) for v in values])
    except RuntimeError:  # a tensor made in inference mode has no version
        return tuple(map(mark, values))


def copied(value: Any) -> Any:
    """Return a tensor without a graph as a copy, anything else as it is."""
    if isinstance(value, torch.Tensor) and not value.requires_grad and not in_transform():
        return value.clone()
    return value


def owned(checked: Any, given: Any) -> Any:
    """Return a value that a memory can keep: what has a graph as it is, other tensors in memory of their own.

    Bunches, which are immutable, and parameters are kept as they are; tensors of inference mode, which autograd could
    not use later, become ordinary ones.
    """
    if any(tensor.is_inference() for tensor in tensors_in(checked)):
        with torch.inference_mode(False):
            return map_tensors(torch.clone, checked)
    if checked is not given or not isinstance(checked, torch.Tensor) or isinstance(checked, torch.nn.Parameter):
        return checked
    return checked if checked.requires_grad else checked.clone()


def without_graph(value: Any) -> Any:
    """Return a value cut from its graph in memory of its own; the same object where it has no graph."""
    if any(tensor.requires_grad for tensor in tensors_in(value)):
        return map_tensors(lambda tensor: tensor.detach().clone(), value)
    return value


def detached(*tables: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Return tables of values that can be copied and pickled: what hangs on a graph is cut from it, leaves stay.

    What was one object in the tables stays one.
    """
    done: dict[int, Any] = {}

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.is_leaf else tensor.detach().clone()

    def cut_once(value: Any) -> Any:
        if all(tensor.is_leaf for tensor in tensors_in(value)):
            return value
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
