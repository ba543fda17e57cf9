"""LUMEModel: the one contract of every model, differentiable or not."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch

from lume_diff.errors import GradientError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.models.cost import DerivativeCost, Question
from lume_diff.models.derivatives import TensorFunction, jacobian
from lume_diff.models.evaluation import Evaluation, check_batches, fits, guarded
from lume_diff.models.memory import Memory
from lume_diff.models.report import GradientReport
from lume_diff.models.snapshot import from_plain
from lume_diff.models.transforms import copied, in_transform, marks, owned
from lume_diff.variables import Variable

_COUNTING = threading.Lock()


class LUMEModel(Memory, ABC):
    """Give a simulator, a network or a chain of them one differentiable interface.

    A model has named variables: inputs, which can be written, and outputs, which cannot. ``forward`` maps
    inputs to outputs and keeps the graph; ``set`` and ``get`` do the same with a memory, as a machine has one.

    A subclass passes its variables to ``__init__`` and writes ``_run``, the expensive part, and ``_read``,
    the cheap part that turns its result into outputs. Both are pure in inputs and parameters. ``_run`` may be called
    from several threads at once; whatever exception it raises reaches the user as a ``SimulatorError`` that names
    the inputs, except this package's own errors and warnings, which pass.

    Args:
        variables: what the model takes and gives; ``read_only`` tells the outputs.
        initial: values of inputs that have no ``default_value``, a bunch for instance.
        dtype: floating-point type of every value, ``torch.float64`` unless asked otherwise.
        device: where the values live.
        validation: ``{name: "error" | "warn" | "none"}``, what a value outside its limits does, where it is not what
            the variable's ``default_validation_config`` says (by default writes raise and outputs warn).

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
        super().__init__(variables, initial=initial, dtype=dtype, device=device, validation=validation)
        self._runs = 0
        self._report = GradientReport()

    # -- what a subclass writes ------------------------------------------------------------------------------

    @abstractmethod
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        """Run the simulation at ``inputs`` and return its state, from which any output can be read.

        ``outputs`` tells which ones are wanted at least. Must not change the model: two calls with the same
        inputs and parameters give the same state.
        """

    def _read(self, state: Any, outputs: Sequence[str]) -> Mapping[str, Any]:
        """Return the named outputs, or more, from a state; by default the state is the dictionary of all outputs."""
        return state

    #: Outputs that a run makes only when it is asked for them: a write leaves them out, and reading one runs again.
    _on_request: Container[str] = frozenset()

    def _reset_simulator(self) -> None:
        """Bring a simulator that has a memory back to its start; nothing to do for a pure one."""

    # -- evaluation ------------------------------------------------------------------------------------------

    def forward(self, inputs: Mapping[str, Any] | None = None, outputs: Iterable[str] | None = None) -> dict[str, Any]:
        """Compute outputs from inputs, keep the graph, and write nothing.

        Args:
            inputs: values by name, each with leading batch dimensions if wanted; the current set-points, read once,
                stand in for inputs that are not passed.
            outputs: names of what to compute, inputs among them are passed on; all outputs if None. Under a
                ``torch.func`` transform only those made of floats are returned, and numbers are not looked at.

        Returns:
            Values by name, in the units of their variables, with shapes ``(*batch, *shape)``.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for input that does not fit.
            SimulatorError: if the run fails; with the inputs that did it.

        Gradient:
            Exact for differentiable models, estimated for black boxes; see ``gradient_report``.
        """
        wanted = self._wanted(outputs)
        checked = self._checked_inputs({} if inputs is None else inputs)
        return self._compute(self._merged(checked), wanted)

    def _compute(self, inputs: dict[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
        """Compute at inputs that have been checked already, and write nothing."""
        own = [name for name in wanted if name not in inputs]
        values: Mapping[str, Any] = {}
        if own:
            check_batches(self._variables, inputs)
            # Shares no graph with the memory, so that a backward here frees nothing there.
            values = self._evaluate(inputs, own, self._evaluation, share_graphs=False).read(self, own)
        return {name: copied(inputs[name]) if name in inputs else values[name] for name in wanted}

    def set(self, values: Mapping[str, Any]) -> None:
        """Write inputs as one transaction: validate all, run, commit.

        If anything fails, inputs, outputs and simulator are exactly as they were.

        Args:
            values: input values by name. Tensors that require a gradient are kept with their graph, so that an
                optimiser's step acts on the model; bunches are kept too; other tensors and arrays are copied.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError, ShapeError: for input that does not fit.
            SimulatorError: if the run fails; with the inputs that did it.
            GradientError: inside a ``torch.func`` transform, where a memory would leak the transform's values.
        """
        self._refuse_transform("set")
        checked = {name: owned(value, values[name]) for name, value in self._checked_inputs(values).items()}
        with self._lock:
            self._commit(self._merged(checked), {n: self._source(values[n], value) for n, value in checked.items()})

    def _commit(self, inputs: dict[str, Any], sources: Mapping[str, tuple[Any, Any] | None]) -> None:
        """Run at new set-points and, when that has worked, remember them."""
        check_batches(self._variables, inputs)
        before = marks(inputs.values())
        outputs = [name for name in self._output_names if name not in self._on_request]
        evaluation = self._evaluate(inputs, outputs, self._evaluation)
        # Past Module.__setattr__, which takes longer than a small model.
        self.__dict__.update(_setpoints=inputs, _evaluation=evaluation, _checked=(inputs, before))
        if sources or self._sources:
            self._sources = {
                name: source for name, source in {**self._sources, **sources}.items() if source is not None
            }
        self._tell_listeners()

    def get(self, names: str | Iterable[str] | None = None) -> Any:
        """Read variables at the set-points.

        An output is computed from the committed run once. The run is made again, and counted, when a backward has freed
        its graph, parameters or set-points have changed in place (an optimiser's step), or gradients were switched on
        or off. A set-point that such a step takes out of its limits is treated as if it were written.

        Args:
            names: one name, several names, or None for everything.

        Returns:
            The value for one name, a dictionary for several; a copy of inputs without a graph. Later reads may give the
            same tensors: copy an array that shares their memory (``.numpy()``) before you write into it.

        Raises:
            UnknownVariableError: for a name the model does not have.
            ValidationError: for a set-point that was changed in place to a value outside its limits.
            SimulatorError: if a run fails.
        """
        if isinstance(names, str):
            return self._get((names,))[names]
        return self._get(tuple(self._variables) if names is None else self._names(names))

    def _get(self, names: tuple[str, ...]) -> dict[str, Any]:
        self._follow_sources()
        inputs, values = self._setpoints, dict[Any, Any]()
        outputs = [name for name in names if name not in inputs]
        if outputs:
            for name in outputs:
                self._variable(name)
            evaluation = self._committed(outputs)
            inputs, values = evaluation.inputs, evaluation.read(self, outputs)
        shown = self._shown(inputs, [name for name in names if name in inputs])
        return {name: shown[name] if name in shown else values[name] for name in names}

    def _committed(self, outputs: Sequence[str]) -> Evaluation:
        """Return the committed run, made again where it does not hold any more."""
        evaluation = self._evaluation
        if evaluation is not None and evaluation.holds(self, self._setpoints, outputs):
            return evaluation
        with self._lock:
            inputs, evaluation = self._merged({}), self._evaluation
            if evaluation is None or not evaluation.holds(self, inputs, outputs):
                check_batches(self._variables, inputs)
                evaluation = self._evaluate(inputs, outputs, evaluation, share_graphs=not in_transform())
                if evaluation.lasting:
                    self._evaluation = evaluation
            return evaluation

    def get_value(self, name: str) -> Any:
        """Read one variable; the same as ``get(name)``."""
        return self.get(name)

    def set_value(self, name: str, value: Any) -> None:
        """Write one input; the same as ``set({name: value})``."""
        self.set({name: value})

    def reset(self) -> None:
        """Bring inputs back to their baseline and the simulator to its start; the next ``get`` runs it."""
        with self._lock:
            self._reset_simulator()
            self._setpoints, self._evaluation = dict(self._baseline), None
            self._checked, self._sources = None, {}
            self._tell_listeners()

    def _evaluate(
        self,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        previous: Evaluation | None,
        share_graphs: bool = True,
    ) -> Evaluation:
        """Run once.

        ``previous`` is an evaluation whose parts a chain may use again where they still hold; without ``share_graphs``
        only those without a graph, so that a pure call never frees what the memory needs.
        """
        del previous
        before = marks(inputs.values()) if share_graphs else ()
        return Evaluation(self, inputs, self._counted_run(inputs, outputs), before, share_graphs, outputs)

    def _take(self, evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
        """Read outputs from a run, and from another one those that it was not asked for and does not make unasked."""
        absent = [name for name in names if name in self._on_request and name not in evaluation.asked]
        parts = [(evaluation.state, [name for name in names if name not in absent])]
        if absent:
            parts.append((self._counted_run(evaluation.inputs, absent), absent))
        found: dict[str, Any] = {}
        for state, wanted in parts:
            if wanted:
                found.update(guarded(self, evaluation.inputs, self._read, state, wanted))
        return found

    def _counted_run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        with _COUNTING:
            self._runs += 1
        return guarded(self, inputs, self._run, inputs, outputs)

    # -- checks ----------------------------------------------------------------------------------------------

    def _checked_outputs(self, values: Mapping[str, Any], names: Sequence[str], inputs: Any) -> dict[str, Any]:
        """Return outputs at some inputs as their variables describe them.

        Numbers are looked at where the variable has a range, or the variable or the model a policy; NaN is outside.
        """
        found = {}
        for name in names:
            if name not in values:
                raise SimulatorError(f"{self._title()} did not return its output {name!r}; it returned {list(values)}")
            value, variable = values[name], self._variables[name]
            if not (name in self._unlimited and fits(variable, value, self.dtype)):
                policy = "none" if name in self._unlimited else self._validation.get(name)
                dtype, device = self._where(name)
                value = variable.validate_value(value, dtype=dtype, device=device, config=policy)
            found[name] = value
        return found

    def _wanted(self, outputs: Iterable[str] | None) -> list[str]:
        if isinstance(outputs, str):
            raise ValidationError(f"outputs must be a list of names, got the string {outputs!r}: write [{outputs!r}]")
        wanted = list(self._output_names if outputs is None else self._names(outputs))
        for name in wanted:
            self._variable(name)
        return [n for n in wanted if self._variables[n].is_differentiable] if in_transform() else wanted

    def _refuse_transform(self, what: str) -> None:
        if in_transform():
            raise GradientError(
                f"{self._title()}.{what} was called inside a torch.func transform, which must not write; "
                "call model(inputs) or model.tensor_function(...) there"
            )

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
            at: values of any inputs that are not to be those of the set-points.
            mode: ``"reverse"`` (a backward per output component), ``"forward"`` (a jvp per input component),
                ``"collective"`` (the same, but whole perturbed bunches go through black boxes, 2 runs a component, as
                forces between particles need it) or ``"auto"``: of those that are correct for this model the one with
                the fewest simulator runs, then with the fewest passes. ``gradient_report().jacobian`` tells which was
                taken, what it cost, and what the others would have cost.

        Returns:
            ``{output: {input: (*batch, *out_shape, *in_shape)}}`` in output unit per input unit, detached.

        Raises:
            GradientError: for variables without a derivative (integers, strings, bunches), where the mode does not
                work (no reverse mode through collective forces), and inside a transform.

        Gradient:
            Exact for differentiable models; for black boxes estimated, see ``gradient_report``.
        """
        return jacobian(self, outputs, inputs, at, mode)

    def tensor_function(self, inputs: Sequence[str], outputs: Sequence[str]) -> TensorFunction:
        """Return the model as a module from one tensor to one tensor, ``(..., n_in) -> (..., n_out)``.

        It composes with autograd and ``torch.func``; other inputs are at the set-points.

        Args:
            inputs: names of scalar or array inputs, the columns of what it takes, arrays flattened.
            outputs: names of scalar or array outputs, the columns of what it returns.

        Returns:
            The module; all leading dimensions of its argument are batch dimensions.

        Raises:
            UnknownVariableError, ValidationError: for a name the model does not have, and an input that is there twice.
            GradientError: for a variable that has no components, such as a bunch.

        Gradient:
            As the model's.
        """
        return TensorFunction(self, inputs, outputs)

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``(*batch,)``, without tracking.

        Args:
            inputs: values that are not those of the set-points, by name; None for none.
            elements: names of elements of the line.

        Returns:
            The total energy [eV] by element, ``(*batch,)``, differentiable in the inputs.

        Raises:
            UnknownVariableError: if the model knows no elements, or not these.
        """
        raise UnknownVariableError(
            f"{self._title()} has no beamline elements, so it cannot give the reference energy at {list(elements)}; "
            "name an energy variable or a constant instead"
        )

    def _derivative_cost(self, question: Question) -> DerivativeCost:
        """Return the simulator runs that derivatives take, without making one; none for a differentiable model.

        What a model wraps is asked under the same names; a model that renames variables overrides this.
        """
        return sum((m._derivative_cost(question.within(m._variables)) for m in self._wrapped()), DerivativeCost())

    def _spent(self) -> tuple[int, int]:
        """Return how many runs simulators without derivatives have made, and how many of them for noise and checks."""
        spent = [model._spent() for model in self._wrapped()]
        return sum(runs for runs, _ in spent), sum(learning for _, learning in spent)

    def _wrapped(self) -> list[LUMEModel]:
        return [child for child in self.children() if isinstance(child, LUMEModel)]

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
            self._evaluation, self._revision = None, self._revision + 1

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Write back a snapshot as one transaction; inputs that it leaves out go to their baseline.

        Raises:
            UnknownVariableError, ValidationError, ShapeError: if the snapshot does not fit this model.
            GradientError: inside a ``torch.func`` transform.
        """
        self._refuse_transform("restore")
        values = {n: from_plain(self._variable(n), v, self._where(n)[0]) for n, v in snapshot.items()}
        checked = {name: owned(value, values[name]) for name, value in self._checked_inputs(values).items()}
        with self._lock:
            self._commit({**self._baseline, **checked}, dict.fromkeys(self._sources))
