"""One run of a model, what was read from it so far, and how long it holds."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import GradientError, LumeDiffError, ShapeError, SimulatorError
from lume_diff.models.transforms import graph_mode, in_transform, marks, tensors_in
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import (
    MomentsVariable,
    ParticleGroupVariable,
    TorchNDVariable,
    TorchScalarVariable,
    Variable,
)

if TYPE_CHECKING:
    from lume_diff.models.base import LUMEModel

#: What a run may raise as it is: our own errors, warnings that were made errors, and a machine without memory.
PASSED = (LumeDiffError, Warning, MemoryError, torch.OutOfMemoryError)

#: Words by which torch says that it was the transform and not the simulation that failed.
_TRANSFORM_WORDS = ("vmap", "functorch", "forward AD", "forward mode")

# Private, so looked up with care: where torch does not tell, every backward counts as one that frees its graph.
_keep_graph: Callable[[], bool] | None = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)


class ModuleMarks:
    """Remember which parameters, buffers and submodules a module has, and in what state.

    An in-place step of an optimiser changes a version, a replaced parameter an identity; ``requires_grad_()``,
    ``train()`` and the ``refresh()`` of a model count as changes too.
    """

    __slots__ = ("_marks", "_modules", "_tensors", "trainable")

    def __init__(self, module: torch.nn.Module) -> None:
        found: list[Tensor | None] = []
        self._modules: list[tuple[int, bool, int]] = []
        pending = [module]
        while pending:
            current = pending.pop()
            self._modules.append((id(current), current.training, current.__dict__.get("_revision", 0)))
            found += current._parameters.values()
            found += current._buffers.values()
            pending += [child for child in current._modules.values() if child is not None]
        # Held, so that no other tensor can take over an identity.
        self._tensors = [tensor for tensor in found if tensor is not None]
        self._marks = marks(self._tensors)
        self.trainable = any(tensor.requires_grad for tensor in self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModuleMarks):
            return NotImplemented
        if self._marks != other._marks or self._modules != other._modules:
            return False
        return all(a is b for a, b in zip(self._tensors, other._tensors, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Evaluation:
    """Hold the state of one run of a model together with the outputs read from it.

    A lasting evaluation holds while inputs, parameters and grad mode are those it was made with, and until a
    backward frees its graph. One that is not lasting serves a single pure call.

    Args:
        model: what has run.
        inputs: what it ran with.
        state: what ``_run`` returned.
        before: marks of the inputs, taken before the run.
        lasting: whether it will be asked again.
        asked: outputs that the run was asked for.
    """

    __slots__ = (
        *("__weakref__", "_freed", "_lock", "_marks", "_module_marks", "_seen"),
        *("asked", "inputs", "lasting", "memo", "mode", "needs_graph", "state"),
    )

    def __init__(
        self,
        model: LUMEModel,
        inputs: dict[str, Any],
        state: Any,
        before: tuple[Any, ...] = (),
        lasting: bool = True,
        asked: Sequence[str] = (),
    ) -> None:
        self.inputs = inputs
        self.state = state
        self.asked = frozenset(asked)
        self.memo: dict[Any, Any] = {}
        self.lasting = lasting and not in_transform()
        self.mode = graph_mode()
        self.needs_graph = False
        self._freed = False
        self._seen: dict[str, Any] = {}
        self._lock = threading.RLock()
        if self.lasting:
            self._marks = before or marks(inputs.values())
            self._module_marks = ModuleMarks(model)
            self.needs_graph = self._module_marks.trainable or any(
                tensor.requires_grad for value in inputs.values() for tensor in tensors_in(value)
            )

    @property
    def freed(self) -> bool:
        """Whether a backward has freed this graph, or one that it hangs on."""
        return self._freed or getattr(self.state, "freed", False)

    def holds(self, model: LUMEModel, inputs: Mapping[str, Any], names: Sequence[str] = ()) -> bool:
        """Tell whether a run of ``model`` at ``inputs`` would give this evaluation again.

        ``names`` are the outputs that will be read. Outputs that somebody has written into since do not hold. Inside a
        transform nothing new can be computed, because what is computed there carries the transform's wrappers.
        """
        if not self.lasting or self.freed:
            return False
        if self.inputs is not inputs and (
            self.inputs.keys() != inputs.keys() or any(self.inputs[name] is not v for name, v in inputs.items())
        ):
            return False
        mode = graph_mode()
        if self.mode != mode and (self.needs_graph or self.mode[1] or mode[1]):
            return False
        known = [name for name in names if name in self._seen]
        if marks([self.memo[name] for name in known]) != tuple([self._seen[name] for name in known]):
            return False
        if in_transform() and len(known) < len(names):
            return False
        return self._marks == marks(inputs.values()) and self._module_marks == ModuleMarks(model)

    def read(self, model: LUMEModel, names: Sequence[str]) -> dict[Any, Any]:
        """Return outputs, each computed from the state once."""
        if any(name not in self.memo for name in names):
            with self._lock:
                missing = [name for name in dict.fromkeys(names) if name not in self.memo]
                if not missing:  # another thread has read them meanwhile
                    return self.memo
                values = model._checked_outputs(model._take(self, missing), missing, self.inputs)
                self._watch(values)
                self.memo.update(values)
                if self.lasting:
                    self._seen.update(zip(values, marks(values.values()), strict=True))
        return self.memo

    def _watch(self, values: Mapping[str, Any]) -> None:
        """Notice a backward through any of the values, because it frees what they share."""
        if not (self.needs_graph and self.mode[0]):
            return
        this = weakref.ref(self)

        def notice(_: Any) -> None:
            evaluation = this()
            if evaluation is not None and (_keep_graph is None or not _keep_graph()):
                evaluation._freed = True

        nodes = (tensor.grad_fn for value in values.values() for tensor in tensors_in(value))
        for node in {id(node): node for node in nodes if node is not None}.values():
            node.register_prehook(notice)


def guarded(model: LUMEModel, inputs: Mapping[str, Any], function: Callable[..., Any], *args: Any) -> Any:
    """Call a part of a simulation; what it raises becomes a ``SimulatorError`` that names the inputs.

    Raises:
        SimulatorError: for any exception that is not ours, a warning, or about memory.
        GradientError: where a ``torch.func`` transform is what failed.
    """
    try:
        return function(*args)
    except PASSED:
        raise
    except Exception as error:
        title, what = model._title(), f"{type(error).__name__}: {error}"
        is_torch = isinstance(error, NotImplementedError) or any(words in str(error) for words in _TRANSFORM_WORDS)
        if in_transform() and is_torch:
            raise GradientError(
                f"{title} cannot pass this torch.func transform ({what}); instead of vmap give the inputs a leading "
                "batch dimension, model({name: values of shape (batch,)}), and instead of jvp take reverse mode"
            ) from error
        raise SimulatorError(f"{title} failed: {what}; the inputs were {words_of(inputs, model._baseline)}") from error


def words_of(inputs: Mapping[str, Any], baseline: Mapping[str, Any], count: int = 8) -> str:
    """Return inputs in words, those that are not at the baseline first."""
    order = sorted(inputs, key=lambda name: inputs[name] is baseline.get(name))
    words = []
    for name in order[:count]:
        value = inputs[name]
        if not isinstance(value, Tensor):
            words.append(f"{name}={value!r}")
        elif value.numel() == 1 and not in_transform() and not value.is_meta:
            words.append(f"{name}={value.item()!r}")
        else:
            words.append(f"{name} of shape {tuple(value.shape)}")
    return (", ".join(words) or "none") + (f" and {len(order) - count} more" if len(order) > count else "")


def check_batches(variables: Mapping[str, Variable], inputs: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the common batch dimensions of the inputs.

    Raises:
        ShapeError: for two inputs whose batch dimensions do not broadcast, with both names.
    """
    batch: tuple[int, ...] = ()
    seen: dict[str, tuple[int, ...]] = {}
    for name, value in inputs.items():
        if value is None or (isinstance(value, Tensor) and not value.ndim):
            continue
        shape = variables[name].batch_shape(value)
        if not shape:
            continue
        try:
            batch = tuple(torch.broadcast_shapes(batch, shape)) if batch and shape != batch else tuple(shape)
        except RuntimeError:
            other = next(n for n, taken in seen.items() if not _broadcast(taken, shape))
            raise ShapeError(
                f"batch dimensions {tuple(shape)} of {name!r} do not broadcast with {seen[other]} of {other!r}: "
                "give both the same leading shape, or 1"
            ) from None
        seen[name] = tuple(shape)
    return batch


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


def fits(variable: Variable, value: Any, dtype: torch.dtype) -> bool:
    """Tell whether an output has the type, dtype and shape that its variable describes."""
    if getattr(value, "dtype", None) is not dtype:
        return False
    if isinstance(variable, TorchScalarVariable):
        return isinstance(value, Tensor)
    if isinstance(variable, TorchNDVariable):
        shape = variable.shape
        return isinstance(value, Tensor) and value.shape[max(value.dim() - len(shape), 0) :] == shape
    if isinstance(variable, ParticleGroupVariable):
        return isinstance(value, TorchParticleGroup)
    return isinstance(variable, MomentsVariable) and isinstance(value, TorchMoments)
