"""LUMEModel: the one contract of every model, differentiable or not."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lume_diff.errors import (
    GradientError,
    LumeDiffError,
    ReadOnlyError,
    ShapeError,
    SimulatorError,
    UnknownVariableError,
    ValidationError,
    unknown_variable,
)
from lume_diff.models.derivatives import TensorFunction, jacobian
from lume_diff.models.evaluation import Evaluation
from lume_diff.models.report import GradientReport
from lume_diff.models.snapshot import from_plain, to_plain
from lume_diff.models.transforms import detached, in_transform, map_tensors, tensors_in
from lume_diff.variables import Variable


class LUMEModel(nn.Module, ABC):
    """Give a simulator, a network or a chain of them one differentiable interface.

    A model has named variables: inputs, which can be written, and outputs, which cannot. ``forward`` maps
    inputs to outputs and keeps the graph; ``set`` and ``get`` do the same with a memory, as a machine has one.

    A subclass passes its variables to ``__init__`` and writes ``_run``, the expensive part, and ``_read``,
    the cheap part that turns its result into outputs. Both are pure in inputs and parameters.

    Args:
        variables: what the model takes and gives; ``read_only`` tells the outputs.
        initial: values of inputs that have no ``default_value``, a bunch for instance.
        dtype: floating-point type of every value, ``torch.float64`` unless asked otherwise.
        device: where the values live.
        validation: ``{name: "error" | "warn" | "none"}``, what a value outside its limits does; for variables
            that are not named, writes raise and outputs warn.

    Raises:
        ValidationError: for a name that appears twice or a default outside its limits.
    """

    def __init__(
        self,
        variables: Iterable[Variable],
        *,
        initial: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._variables: dict[str, Variable] = {}
        for variable in variables:
            if variable.name in self._variables:
                raise ValidationError(f"variable {variable.name!r} is given twice: every name must be unique in a model")
            self._variables[variable.name] = variable
        self._input_names = tuple(name for name, v in self._variables.items() if not v.read_only)
        self._output_names = tuple(name for name, v in self._variables.items() if v.read_only)
        self._validation = dict(validation or {})
        for name in self._validation:
            self._variable(name)
        self.dtype = dtype
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self._lock = threading.RLock()
        self._evaluation: Evaluation | None = None
        self._runs = 0
        self._report = GradientReport()
        defaults = {name: self._variables[name].default_value for name in self._input_names}
        defaults.update(initial or {})
        for name in initial or {}:
            if name not in self._input_names:
                raise unknown_variable(name, self._input_names, f"the inputs of {self._title()}")
        self._baseline = {
            name: None if value is None else self._checked_input(name, value) for name, value in defaults.items()
        }
        self._setpoints = dict(self._baseline)

    # -- what a subclass writes ------------------------------------------------------------------------------

    @abstractmethod
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Run the simulation at ``inputs`` and return its state, from which any output can be read.

        ``outputs`` tells which ones are wanted at least. Must not change the model: two calls with the same
        inputs and parameters give the same state.
        """

    def _read(self, state: Any, outputs: Sequence[str]) -> dict[str, Any]:
        """Return the named outputs from a state; by default the state is the dictionary of all outputs."""
        return {name: state[name] for name in outputs}

    def _reset_simulator(self) -> None:
        """Bring a simulator that has a memory back to its start; nothing to do for a pure one."""

    # -- variables -------------------------------------------------------------------------------------------

    @property
    def supported_variables(self) -> Mapping[str, Variable]:
        """All variables by name, as a view that cannot be changed."""
        return MappingProxyType(self._variables)

    @property
    def input_names(self) -> list[str]:
        """Names of the variables that can be written."""
        return list(self._input_names)

    @property
    def output_names(self) -> list[str]:
        """Names of the variables that can only be read."""
        return list(self._output_names)

    def _title(self) -> str:
        return type(self).__name__

    def _variable(self, name: str) -> Variable:
        try:
            return self._variables[name]
        except (KeyError, TypeError):
            raise unknown_variable(name, self._variables, self._title()) from None

    # -- evaluation ------------------------------------------------------------------------------------------

    def forward(self, inputs: Mapping[str, Any] | None = None, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Compute outputs from inputs, keep the graph, and write nothing.

        Args:
            inputs: values by name, each with leading batch dimensions if wanted; the current set-points stand in
                for inputs that are not passed.
            outputs: names of what to compute; all outputs if None. Under a ``torch.func`` transform None means all
                outputs that are tensors of floats.

        Returns:
            Values by name, in the units of their variables, with shapes ``(*batch, *shape)``.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for input that does not fit.
            SimulatorError: if the run fails.

        Gradient:
            Exact for differentiable models, estimated for black boxes; see ``gradient_report``.
        """
        checked = self._checked_inputs(inputs or {})
        wanted = self._wanted(outputs)
        with self._lock:
            setpoints, committed = self._setpoints, self._evaluation
        merged = {**setpoints, **checked} if checked else dict(setpoints)
        own = [name for name in wanted if name in self._output_names]
        values: dict[str, Any] = {}
        if own:
            self._check_batches(merged)
            values = self._evaluate(merged, own, committed, share_graphs=False).read(self, own)
        return {name: values[name] if name in values else merged[name] for name in wanted}

    def set(self, values: Mapping[str, Any]) -> None:
        """Write inputs as one transaction: validate all, run, commit.

        If anything fails, inputs, outputs and simulator are exactly as they were.

        Args:
            values: input values by name. Tensors that require a gradient keep their graph; others are copied.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for input that does not fit.
            SimulatorError: if the run fails.
            GradientError: inside a ``torch.func`` transform, where a memory would leak the transform's values.
        """
        if in_transform():
            raise GradientError(
                f"{self._title()}.set was called inside a torch.func transform, which must not write; "
                "call model(inputs) or model.tensor_function(...) there"
            )
        checked = self._checked_inputs(values)
        with self._lock:
            merged = {**self._setpoints, **checked}
            self._check_batches(merged)
            evaluation = self._evaluate(merged, self._output_names, self._evaluation)
            self._setpoints, self._evaluation = merged, evaluation

    def get(self, names: str | Iterable[str] | None = None) -> Any:
        """Read variables at the set-points.

        An output is computed from the committed run once; a run whose graph a backward has freed, or whose
        parameters have changed since, is made again.

        Args:
            names: one name, several names, or None for everything.

        Returns:
            The value for one name, a dictionary for several.

        Raises:
            UnknownVariableError: for a name the model does not have.
        """
        if isinstance(names, str):
            return self._get((names,))[names]
        return self._get(tuple(self._variables) if names is None else tuple(names))

    def _get(self, names: tuple[str, ...]) -> dict[str, Any]:
        with self._lock:
            inputs = self._setpoints
            outputs = [name for name in names if name not in inputs]
            for name in outputs:
                self._variable(name)
            if not outputs:
                return {name: inputs[name] for name in names}
            evaluation = self._evaluation
            if evaluation is None or not evaluation.is_current(self, inputs):
                self._check_batches(inputs)
                evaluation = self._evaluate(inputs, outputs, evaluation)
                if not in_transform():
                    self._evaluation = evaluation
            values = evaluation.read(self, outputs)
            return {name: inputs[name] if name in inputs else values[name] for name in names}

    def get_value(self, name: str) -> Any:
        """Read one variable; the same as ``get(name)``."""
        return self.get(name)

    def set_value(self, name: str, value: Any) -> None:
        """Write one input; the same as ``set({name: value})``."""
        self.set({name: value})

    def reset(self) -> None:
        """Bring inputs back to their baseline and the simulator to its start."""
        with self._lock:
            self._reset_simulator()
            self._setpoints = dict(self._baseline)
            self._evaluation = None

    def _evaluate(
        self,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        previous: Evaluation | None,
        share_graphs: bool = True,
    ) -> Evaluation:
        """Run once.

        ``previous`` is an evaluation whose parts a chain may use again where they still hold; without
        ``share_graphs`` only those without a graph, so that a pure call never frees what the memory needs.
        """
        del previous, share_graphs
        return Evaluation(self, inputs, self._counted_run(inputs, outputs))

    def _counted_run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        self._runs += 1
        try:
            return self._run(inputs, outputs)
        except (LumeDiffError, NotImplementedError, KeyboardInterrupt):
            raise
        except (ArithmeticError, OSError) as error:
            raise SimulatorError(f"{self._title()} failed: {error}") from error

    # -- checks ----------------------------------------------------------------------------------------------

    def _checked_input(self, name: str, value: Any) -> Any:
        variable = self._variable(name)
        config = self._validation.get(name)
        checked = variable.validate_value(value, dtype=self.dtype, device=self.device, config=config)
        if isinstance(checked, torch.Tensor) and not checked.requires_grad and checked is value and not in_transform():
            return checked.clone()
        return checked

    def _checked_inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            raise ValidationError(f"inputs must be a mapping of names to values, got {type(values).__name__}")
        unknown = [name for name in values if name not in self._variables]
        if unknown:
            raise unknown_variable(unknown[0], self._input_names, f"the inputs of {self._title()}")
        for name in values:
            if self._variables[name].read_only:
                raise ReadOnlyError(f"{name!r} is an output of {self._title()} and cannot be written")
        return {name: self._checked_input(name, value) for name, value in values.items()}

    def _check_batches(self, inputs: Mapping[str, Any]) -> None:
        """Raise where the batch dimensions of the inputs do not broadcast."""
        batch: tuple[int, ...] = ()
        seen = ""
        for name, value in inputs.items():
            shape = self._variables[name].batch_shape(value) if value is not None else ()
            if not shape or shape == batch:
                continue
            try:
                batch = tuple(torch.broadcast_shapes(batch, shape))
            except RuntimeError:
                raise ShapeError(
                    f"batch dimensions {tuple(shape)} of {name!r} do not broadcast with {batch} of {seen!r}: "
                    "give both the same leading shape, or 1"
                ) from None
            seen = seen or name

    def _checked_outputs(self, values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        """Complain about outputs outside their declared limits, as the policy says."""
        missing = [name for name in names if name not in values]
        if missing:
            raise SimulatorError(f"{self._title()} did not return its output {missing[0]!r}; it returned {list(values)}")
        if in_transform():
            return values
        for name in names:
            variable = self._variables[name]
            if getattr(variable, "value_range", None) is not None:
                variable.validate_value(
                    values[name], dtype=self.dtype, device=self.device, config=self._validation.get(name, "warn")
                )
        return values

    def _wanted(self, outputs: Sequence[str] | None) -> list[str]:
        if isinstance(outputs, str):
            raise ValidationError(f"outputs must be a list of names, got the string {outputs!r}: write [{outputs!r}]")
        if outputs is None:
            return [n for n in self._output_names if not in_transform() or self._variables[n].is_differentiable]
        for name in outputs:
            self._variable(name)
        return list(outputs)

    # -- derivatives -----------------------------------------------------------------------------------------

    def jacobian(
        self,
        outputs: Sequence[str],
        inputs: Sequence[str],
        at: Mapping[str, Any] | None = None,
        mode: str = "auto",
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Compute the derivatives of outputs with respect to inputs.

        Args:
            outputs: names of scalar or array outputs.
            inputs: names of scalar or array inputs.
            at: inputs other than the set-points.
            mode: ``"reverse"`` (a backward per output component), ``"forward"`` (a jvp per input component) or
                ``"auto"``, the cheaper one; ``gradient_report`` tells which was taken and what it cost.

        Returns:
            ``{output: {input: (*batch, *out_shape, *in_shape)}}`` in output unit per input unit, detached.

        Raises:
            GradientError: for variables without a derivative (integers, strings, bunches).
        """
        return jacobian(self, outputs, inputs, at, mode)

    def tensor_function(self, inputs: Sequence[str], outputs: Sequence[str]) -> TensorFunction:
        """Return the model as a module from one tensor to one tensor, ``(..., n_in) -> (..., n_out)``.

        Columns are the named variables in that order, array variables flattened. All leading dimensions are batch
        dimensions. It composes with autograd and ``torch.func``; other inputs are at the set-points.
        """
        return TensorFunction(self, inputs, outputs)

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``(*batch,)``, without tracking.

        Raises:
            UnknownVariableError: if the model knows no elements, or not these.
        """
        raise UnknownVariableError(
            f"{self._title()} has no beamline elements, so it cannot give the reference energy at {list(elements)}; "
            "name an energy variable or a constant instead"
        )

    @property
    def runs(self) -> int:
        """How many times the simulation has run."""
        return self._runs

    def gradient_report(self) -> GradientReport:
        """Return how good the gradients are and what the last Jacobian cost; printable as a table."""
        return self._report

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def simulator(self) -> Any:
        """The native object behind the model for hybrid use, or None; call ``refresh()`` after changing it."""
        return None

    def refresh(self) -> None:
        """Read again what was changed on the native object."""
        with self._lock:
            self._evaluation = None

    def snapshot(self) -> dict[str, Any]:
        """Return the set-points as plain numbers, lists and strings, fit for YAML.

        Bunches are written in full only where they are not the baseline's.
        """
        with self._lock:
            setpoints, baseline = self._setpoints, self._baseline

        def is_baseline_bunch(name: str, value: Any) -> bool:
            return value is baseline[name] and not isinstance(value, (torch.Tensor, str))

        return {
            name: to_plain(value)
            for name, value in setpoints.items()
            if value is not None and not is_baseline_bunch(name, value)
        }

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Write back a snapshot as one transaction; inputs that it leaves out go to their baseline.

        Raises:
            UnknownVariableError, ValidationError, ShapeError: if the snapshot does not fit this model.
        """
        values = {name: from_plain(self._variable(name), value, self.dtype) for name, value in snapshot.items()}
        checked = self._checked_inputs(values)
        with self._lock:
            merged = {**self._baseline, **checked}
            self._check_batches(merged)
            evaluation = self._evaluate(merged, self._output_names, None)
            self._setpoints, self._evaluation = merged, evaluation

    def detach_(self) -> LUMEModel:
        """Cut the set-points from their graphs, in place."""
        with self._lock:
            self._setpoints = {n: map_tensors(torch.Tensor.detach, v) for n, v in self._setpoints.items()}
            self._evaluation = None
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> LUMEModel:
        """Carry ``.to()``, ``.double()``, ``.cuda()`` to the values too."""
        super()._apply(fn, recurse)
        with self._lock:
            probe = fn(torch.zeros((), dtype=self.dtype, device=self.device))
            self.dtype, self.device = probe.dtype, probe.device
            moved = {
                id(v): v if isinstance(v, nn.Parameter) else map_tensors(fn, v)
                for table in (self._setpoints, self._baseline)
                for v in table.values()
            }
            self._setpoints = {name: moved[id(value)] for name, value in self._setpoints.items()}
            self._baseline = {name: moved[id(value)] for name, value in self._baseline.items()}
            self._evaluation = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = dict(self.__dict__)
        del state["_lock"]
        state["_evaluation"] = None
        state["_setpoints"], state["_baseline"] = detached(self._setpoints, self._baseline)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        graph = any(t.requires_grad for value in self._setpoints.values() for t in tensors_in(value))
        return (
            f"{self._title()}({len(self._input_names)} inputs, {len(self._output_names)} outputs, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device}{', with graph' if graph else ''})"
        )
