"""One run of a model, and what was read from it so far."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from lume_diff.models.transforms import graph_mode, in_transform, tensors_in

if TYPE_CHECKING:
    from lume_diff.models.base import LUMEModel

Fingerprint = tuple[tuple[int, int], ...]


def fingerprint(module: torch.nn.Module) -> Fingerprint:
    """Return identity and version of every parameter and buffer below ``module``.

    An in-place step of an optimiser changes a version, a replaced parameter changes an identity.
    """
    marks: list[tuple[int, int]] = []
    pending = [module]
    while pending:
        current = pending.pop()
        for tensor in current._parameters.values():
            if tensor is not None:
                marks.append((id(tensor), tensor._version))
        for buffer in current._buffers.values():
            if buffer is not None:
                marks.append((id(buffer), buffer._version))
        pending.extend(child for child in current._modules.values() if child is not None)
    return tuple(marks)


def versions(inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the in-place version of every tensor among the inputs."""
    marks = []
    for value in inputs.values():
        if isinstance(value, torch.Tensor):
            marks.append(value._version)
        else:
            marks.extend(tensor._version for tensor in tensors_in(value))
    return tuple(marks)


class Evaluation:
    """Hold the state of one run of a model together with the outputs read from it.

    An evaluation stays good while the inputs, the parameters and the grad mode are those it was made with,
    and until a backward frees its graph.
    """

    __slots__ = ("__weakref__", "_freed", "fingerprint", "inputs", "memo", "mode", "needs_graph", "state", "versions")

    def __init__(self, model: LUMEModel, inputs: dict[str, Any], state: Any) -> None:
        self.inputs = inputs
        self.state = state
        self.memo: dict[str, Any] = {}
        self.mode = graph_mode()
        self.versions = () if in_transform() else versions(inputs)
        self.fingerprint = fingerprint(model)
        self.needs_graph = any(t.requires_grad for value in inputs.values() for t in tensors_in(value)) or any(
            parameter.requires_grad for parameter in model.parameters()
        )
        self._freed = False

    @property
    def freed(self) -> bool:
        """Whether a backward has freed this graph, or one that it hangs on."""
        return self._freed or getattr(self.state, "freed", False)

    def is_current(self, model: LUMEModel, inputs: Mapping[str, Any]) -> bool:
        """Tell whether a run of ``model`` at ``inputs`` would give this evaluation again."""
        if self.inputs is not inputs:
            if self.inputs.keys() != inputs.keys():
                return False
            if any(self.inputs[name] is not value for name, value in inputs.items()):
                return False
        if self.mode != graph_mode() and (self.needs_graph or self.mode[1] or graph_mode()[1]):
            return False
        return self.versions == versions(inputs) and self.fingerprint == fingerprint(model) and not self.freed

    def read(self, model: LUMEModel, names: Iterable[str]) -> dict[str, Any]:
        """Return outputs, each computed from the state once."""
        missing = [name for name in names if name not in self.memo]
        if missing:
            values = model._checked_outputs(model._read(self.state, missing), missing)
            if self.needs_graph and self.mode[0] and not in_transform():
                self._watch(values)
            self.memo.update(values)
        return self.memo

    def _watch(self, values: Mapping[str, Any]) -> None:
        """Notice a backward through any of the values, because it frees what they share."""
        this = weakref.ref(self)

        def mark(_: Any) -> None:
            evaluation = this()
            if evaluation is not None and not torch._C._autograd._get_current_graph_task_keep_graph():
                evaluation._freed = True

        for value in values.values():
            for tensor in tensors_in(value):
                if tensor.grad_fn is not None:
                    tensor.grad_fn.register_prehook(mark)
