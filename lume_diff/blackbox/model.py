"""BlackBoxModel: any simulator as a model whose gradient is estimated, with known cost and known error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.blackbox.difference import FiniteDifference
from lume_diff.blackbox.engine import Column, DifferenceBox, Memory
from lume_diff.blackbox.node import black_box
from lume_diff.blackbox.runner import InProcess, Runner
from lume_diff.blackbox.simulator import FunctionSimulator, Simulator
from lume_diff.errors import ShapeError, SimulatorError, ValidationError
from lume_diff.models import GradientEntry, GradientReport, LUMEModel
from lume_diff.models.derivatives import component_shape
from lume_diff.models.evaluation import Evaluation
from lume_diff.models.transforms import in_transform, is_wrapped
from lume_diff.variables import TorchScalarVariable, Variable


class BlackBoxModel(LUMEModel):
    """Make a simulator without gradients a node of the graph.

    Forward runs it once. A gradient runs it again, only when it is asked for, only along the inputs that need one, all
    points in one batch, and never twice at the same point. ``runs`` counts every run, ``gradient_report()`` tells
    step, noise and estimated error of every derivative.

    Args:
        factory: makes the simulator; called again for a fresh one after a failure.
        variables: inputs and outputs; ``read_only`` tells the outputs.
        gradient: how derivatives are taken; None for a box that raises ``GradientError`` when differentiated.
        dtype, device, validation: see ``LUMEModel``.

    Raises:
        SimulatorError: from any evaluation, if the simulator fails twice at a point; with the inputs that did it.

    Gradient:
        Estimated; first and second order, forward and reverse, at 2 runs an input and order of noise (central).

    Source:
        J. J. Moré and S. M. Wild, ACM Trans. Math. Softw. 38, 19 (2012), doi:10.1145/2168773.2168777.

    Example:
        >>> import torch
        >>> from lume_diff.variables import TorchScalarVariable
        >>> model = BlackBoxModel.from_function(
        ...     lambda a, b: {"y": a * b**2},
        ...     inputs=[TorchScalarVariable(name=n, default_value=1.0) for n in "ab"],
        ...     outputs=[TorchScalarVariable(name="y")],
        ... )
        >>> b = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        >>> model({"a": 2.0, "b": b})["y"].backward()
        >>> round(float(b.grad), 6)
        12.0
    """

    def __init__(
        self,
        factory: Callable[[], Simulator],
        variables: Iterable[Variable],
        gradient: FiniteDifference | None = FiniteDifference(),  # noqa: B008 - immutable
        *,
        initial: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(variables, initial=initial, dtype=dtype, device=device, validation=validation)
        self._runner: Runner = InProcess(factory)
        self._gradient = gradient
        self._memory = Memory()
        self._entries: dict[tuple[str, str], GradientEntry] = {}
        self._differentiable = [n for n in self._input_names if self._variables[n].is_differentiable]

    @classmethod
    def from_function(
        cls,
        function: Callable[..., Any],
        inputs: Sequence[Variable],
        outputs: Sequence[Variable],
        **options: Any,
    ) -> BlackBoxModel:
        """Build a model from a plain function of keyword arguments that returns ``{output: value}``.

        Args:
            function: takes plain numbers, arrays and strings.
            inputs, outputs: their variables.
            **options: of ``BlackBoxModel``.
        """
        read_only = [variable.model_copy(update={"read_only": True}) for variable in outputs]
        writable = [variable.model_copy(update={"read_only": False}) for variable in inputs]
        names = [variable.name for variable in read_only]
        return cls(lambda: FunctionSimulator(function, names), [*writable, *read_only], **options)

    # -- running ---------------------------------------------------------------------------------------------

    def _evaluate(
        self, inputs: dict[str, Any], outputs: Sequence[str], previous: Evaluation | None, share_graphs: bool = True
    ) -> Evaluation:
        # One run gives everything, so what is remembered has everything.
        return super()._evaluate(inputs, self._output_names, previous, share_graphs)

    def _counted_run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        return self._run(inputs, outputs)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        unset = [name for name, value in inputs.items() if value is None]
        if unset:
            raise ValidationError(f"input {unset[0]!r} has no value: set it or pass it")
        call = _Call(self, inputs, outputs)
        return call.outputs()

    def _simulate(self, points: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[Any]:
        """Run a batch of points, counted; a failure stands in the list as an error."""
        self._runs += len(points)
        return list(self._runner.run_many(points, outputs))

    # -- derivatives -----------------------------------------------------------------------------------------

    def _note(self, entry: GradientEntry) -> None:
        self._entries[entry.output, entry.input] = entry

    def gradient_report(self) -> GradientReport:
        """Return step, noise, estimated error and runs of every derivative taken so far."""
        self._report.entries = list(self._entries.values())
        measured = sum(calibration.runs for calibration in self._memory.calibrations.values())
        self._report.notes = [f"noise and curvature of {len(self._memory.calibrations)} inputs took {measured} runs"]
        return self._report

    # -- the simulator ---------------------------------------------------------------------------------------

    @property
    def simulator(self) -> Any:
        """The simulator; call ``refresh()`` after changing it."""
        return self._runner.simulator

    def refresh(self) -> None:
        """Forget results, noise and curvature, because the simulator was changed by hand."""
        super().refresh()
        self._memory.clear()
        self._entries.clear()

    def _reset_simulator(self) -> None:
        self._runner.reset()

    def close(self) -> None:
        """Give up the simulator and its processes."""
        self._runner.close()

    def __enter__(self) -> BlackBoxModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_memory"] = Memory()
        state["_memory"].calibrations.update(self._memory.calibrations)
        return state


class _Call:
    """One evaluation: which inputs are differentiated, which stay, and how points become runs."""

    def __init__(self, model: BlackBoxModel, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
        self.model = model
        self.variables = model.supported_variables
        self.wanted = list(outputs)
        self.inputs = inputs
        self.active = [n for n in model._differentiable if _wants_gradient(inputs[n])]
        self.batch = self._batch(inputs)
        self.fixed = self._fixed_points(inputs)
        self.numbers = [n for n in self.wanted if self.variables[n].is_differentiable]
        self.shapes = {n: component_shape(self.variables[n]) for n in self.numbers}
        self.raw: dict[int, dict[str, Any]] = {}

    def _batch(self, inputs: Mapping[str, Any]) -> tuple[int, ...]:
        shapes = [self.variables[n].batch_shape(value) for n, value in inputs.items()]
        return tuple(torch.broadcast_shapes(*shapes)) if shapes else ()

    def _fixed_points(self, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return, for each batch member, the inputs that are not differentiated, as plain values."""
        points: list[dict[str, Any]] = [{} for _ in range(math.prod(self.batch))]
        for name, value in inputs.items():
            if name in self.active:
                continue
            if not isinstance(value, Tensor):
                for point in points:
                    point[name] = value
                continue
            shape = tuple(value.shape[len(self.variables[name].batch_shape(value)) :])
            with torch._C._DisableFuncTorch():  # what a transform has not wrapped is a constant to it
                rows = value.detach().expand((*self.batch, *shape)).reshape((-1, *shape)).cpu().numpy()
            for point, row in zip(points, rows, strict=True):
                point[name] = _plain(row)
        return points

    def columns(self) -> list[Column]:
        """Return the numbers that are differentiated."""
        found = []
        for name in self.active:
            variable = self.variables[name]
            low, high = getattr(variable, "value_range", None) or (-math.inf, math.inf)
            size = math.prod(component_shape(variable))
            for index in range(size):
                entry = None if isinstance(variable, TorchScalarVariable) else index
                found.append(Column(name, entry, variable.scale, low, high))  # type: ignore[attr-defined]
        return found

    def outputs(self) -> dict[str, Any]:
        """Evaluate."""
        labels = [n for n in self.numbers for _ in range(math.prod(self.shapes[n]))]
        keys = [tuple(_key(value) for value in point.values()) for point in self.fixed]
        model = self.model
        box = DifferenceBox(
            self.evaluate, self.columns(), labels, model._gradient, model._memory, keys, model._note
        )
        pieces = []
        for name in self.active:
            value, shape = self.inputs[name], component_shape(self.variables[name])
            pieces.append(value.expand((*self.batch, *shape)).reshape((*self.batch, math.prod(shape))))
        if pieces:
            x = torch.cat(pieces, dim=-1)
        else:
            x = torch.zeros((*self.batch, 0), dtype=model.dtype, device=model.device)
        y = black_box(x, box) if self.active else self._without_gradient(box, len(labels))
        found: dict[str, Any] = {}
        start = 0
        for name in self.numbers:
            size = math.prod(self.shapes[name])
            part = y[..., start : start + size].to(model.dtype)
            found[name] = part.reshape((*part.shape[:-1], *self.shapes[name]))
            start += size
        if len(found) < len(self.wanted):
            found.update(self._plain_outputs(x, box))
        return found

    def _without_gradient(self, box: DifferenceBox, count: int) -> Tensor:
        points = torch.zeros((len(self.fixed), 0), dtype=torch.float64)
        return box.derivative(points, 0).reshape((*self.batch, count)).to(self.model.device)

    def _plain_outputs(self, x: Tensor, box: DifferenceBox) -> dict[str, Any]:
        """Return the outputs that are not floats, from the runs that were made anyway."""
        if in_transform():
            return {}
        rows = x.detach().reshape((len(self.fixed), x.shape[-1]))
        missing = [i for i in range(len(rows)) if i not in self.raw]
        if missing:  # the numbers came from memory
            for found in self.evaluate(rows[missing].cpu().double().numpy(), missing):
                if isinstance(found, SimulatorError):
                    raise found
        found_plain = {}
        for name in self.wanted:
            if name in self.numbers:
                continue
            values = [self.raw[i][name] for i in range(len(rows))]
            if not self.batch:
                found_plain[name] = self.variables[name].validate_value(values[0], config="none")
            elif isinstance(values[0], str):
                raise ShapeError(f"output {name!r} is a string, which has no batch: evaluate the points one by one")
            else:
                found_plain[name] = torch.tensor(np.array(values)).reshape(self.batch)
        return found_plain

    def evaluate(self, rows: np.ndarray, owners: Sequence[int]) -> list[np.ndarray | SimulatorError]:
        """Run rows of the differentiated numbers at the fixed inputs of their batch members."""
        points = [self._point(row, owner) for row, owner in zip(rows, owners, strict=True)]
        results = self.model._simulate(points, self.wanted)
        found: list[np.ndarray | SimulatorError] = []
        for owner, result in zip(owners, results, strict=True):
            if isinstance(result, SimulatorError):
                found.append(result)
                continue
            self.raw.setdefault(owner % len(self.fixed), result)
            found.append(self._row(result))
        return found

    def _point(self, row: np.ndarray, owner: int) -> dict[str, Any]:
        point = dict(self.fixed[owner % len(self.fixed)])
        start = 0
        for name in self.active:
            shape = component_shape(self.variables[name])
            size = math.prod(shape)
            point[name] = _plain(row[start : start + size].reshape(shape))
            start += size
        return {name: point[name] for name in self.inputs}

    def _row(self, result: Mapping[str, Any]) -> np.ndarray:
        parts = []
        for name in self.numbers:
            value = np.asarray(result[name], dtype=float)
            if value.shape != self.shapes[name]:
                raise ShapeError(
                    f"the simulator returned {name!r} of shape {value.shape}; its variable says {self.shapes[name]}"
                )
            parts.append(value.reshape(-1))
        return np.concatenate(parts) if parts else np.zeros(0)


def _wants_gradient(value: Any) -> bool:
    """Tell whether a value takes part in differentiation now, in whatever mode."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    if is_wrapped(value):
        return True
    if value.requires_grad and torch.is_grad_enabled():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None


def _plain(value: np.ndarray) -> Any:
    return value.copy() if value.shape else value.item()


def _key(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


