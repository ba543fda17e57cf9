"""BlackBoxModel: any simulator as a model whose gradient is estimated, with known cost and known error."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import torch

from lume_diff.archive import RunArchive
from lume_diff.blackbox.call import Call
from lume_diff.blackbox.cost import derivative_cost
from lume_diff.blackbox.differences.memory import BlackBoxMemory
from lume_diff.blackbox.differences.method import FiniteDifference, method_of
from lume_diff.blackbox.plain import plain_point, plain_run
from lume_diff.blackbox.runners.archived import Archived
from lume_diff.blackbox.runners.executors import ExecutorRunner
from lume_diff.blackbox.runners.pool import WorkerPool
from lume_diff.blackbox.runners.runner import InProcess, Runner
from lume_diff.blackbox.simulator import FunctionSimulator, Simulator
from lume_diff.errors import ValidationError, unknown_variable
from lume_diff.models import GradientEntry, GradientReport, LUMEModel
from lume_diff.models.cost import DerivativeCost, Question
from lume_diff.models.evaluation import Evaluation
from lume_diff.models.guards import concrete, is_differentiated, refuse_gradient
from lume_diff.particles import TorchParticleGroup, parse_key
from lume_diff.variables import ParticleGroupVariable, Variable

#: Statistics that losses change although no coordinate does.
_COUNTS = ("charge", "average_current", "n_alive", "n_dead")


class BlackBoxModel(LUMEModel):
    """Make a simulator without gradients a node of the graph.

    Forward runs it once. A gradient runs it again, only when it is asked for, only along the inputs that need one, all
    points in one batch, and never twice at the same point. ``runs`` counts every run, ``gradient_report()`` tells
    step, noise and estimated error of every derivative.

    Args:
        factory: makes the simulator; called again for a fresh one after a failure.
        variables: inputs and outputs; ``read_only`` tells the outputs.
        gradient: how derivatives are taken; ``"native"`` for those that the code has itself, each checked once, with
            differences for the rest; None for a box that raises ``GradientError`` when differentiated.
        derived: outputs that are statistics of a bunch the simulator returns, ``{name: (bunch output, openPMD key)}``;
            they are computed here, of the living, with exact derivatives.
        initial: values of inputs that have no ``default_value``, the bunch for instance.
        workers: how many processes of its own the simulator runs in; 0 for this process. What is changed on
            ``simulator`` is replayed in all of them.
        timeout: how long a run may take [s]; needs workers.
        executor: a ``concurrent.futures.Executor`` to run in instead (Dask's, MPI's), without timeout.
        archive: path of a file that keeps every run, so that none is made twice, and what was measured of noise and
            curvature; or a ``RunArchive``.
        dtype, device, validation: see ``LUMEModel``.

    Raises:
        ValidationError: for options that do not go together.
        UnknownVariableError: for a step in ``gradient`` of something that is no input, and a ``derived`` output that is
            not among the variables, or of a statistic that there is not.
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
        gradient: FiniteDifference | str | None = FiniteDifference(),  # noqa: B008 - immutable
        *,
        derived: Mapping[str, tuple[str, str]] | None = None,
        initial: Mapping[str, Any] | None = None,
        workers: int = 0,
        timeout: float | None = None,
        executor: Executor | None = None,
        archive: str | os.PathLike[str] | RunArchive | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(variables, initial=initial, dtype=dtype, device=device, validation=validation)
        self._runner = _runner(factory, workers, timeout, executor, archive)
        self._memory = BlackBoxMemory(self._runner)
        self._entries: dict[tuple[str, str], GradientEntry] = {}
        self._derived = dict(derived or {})
        self._bunch_inputs = [n for n in self._input_names if isinstance(self._variables[n], ParticleGroupVariable)]
        numbers = [n for n in self._input_names if self._variables[n].is_differentiable and n not in self._bunch_inputs]
        self._gradient = method_of(gradient, numbers)
        outputs = [self._variables[name] for name in self._output_names]
        floats = frozenset(v.name for v in outputs if v.is_differentiable)
        self._bunch_outputs = frozenset(v.name for v in outputs if isinstance(v, ParticleGroupVariable))
        self._bunches = self._bunch_outputs | self._derived.keys()
        self._numbers = floats - self._bunches
        self._output_references: dict[str, tuple[float, float]] = {}
        self._was_changed = False  # by hand, since the simulator's start
        self._check_derived()
        if len(self._bunch_inputs) > 1:
            raise ValidationError(f"a black box takes one bunch, got variables {self._bunch_inputs}")

    def _check_derived(self) -> None:
        for name, (bunch, key) in self._derived.items():
            if name not in self._output_names:
                raise unknown_variable(name, self._output_names, "the outputs, and derived says how it is computed")
            if bunch not in self._bunch_outputs:
                raise ValidationError(
                    f"derived output {name!r} is a statistic of {bunch!r}; expected an output that is a bunch: "
                    f"{', '.join(map(repr, sorted(self._bunch_outputs))) or 'there is none'}"
                )
            parse_key(key)

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
        # One run gives everything, so what is remembered has everything. A pure call leaves out what would be
        # differentiated in vain: all numbers, or all bunches, which share their runs among each other.
        wanted: Sequence[str] = self._output_names
        if not share_graphs and self._bunch_outputs:
            unused = [part for part in (self._numbers, self._bunches) if part.isdisjoint(outputs)]
            wanted = [name for name in wanted if not any(name in part for part in unused)]
        return super()._evaluate(inputs, wanted, previous, share_graphs)

    def _counted_run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Any:
        return self._run(inputs, outputs)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        unset = [name for name, value in inputs.items() if value is None]
        if unset:
            raise ValidationError(f"input {unset[0]!r} has no value: set it or pass it")
        simulated = self._simulated(outputs)
        found = plain_run(self, inputs, simulated)
        if found is None:
            found = Call(self, inputs, simulated).outputs()
        for name in outputs:
            if name in self._derived:
                bunch, key = self._derived[name]
                found[name] = self._statistic(name, found[bunch], key)
        return found

    def _simulated(self, outputs: Sequence[str]) -> list[str]:
        """Return what the simulator must give for some outputs."""
        return list(dict.fromkeys(self._derived[name][0] if name in self._derived else name for name in outputs))

    def _statistic(self, name: str, bunch: TorchParticleGroup, key: str) -> torch.Tensor:
        """Return a statistic of the living; what only counts the lost has no gradient, and says so."""
        value = bunch.alive_only[key]
        differentiated = is_differentiated(bunch.x)
        if key in _COUNTS and differentiated and bool((concrete(bunch.alive) < 1.0).any()):
            message = (
                f"{name!r} depends on the settings only through the particles at the edge of an aperture inside the "
                "black box: it has no gradient"
            )
            return value + refuse_gradient((bunch.x,), message)
        return value

    def _simulate(self, points: Sequence[Mapping[str, Any]], outputs: Sequence[str]) -> list[Any]:
        """Run a batch of points; a failure stands in the list as an error."""
        before = self._runner.runs_made
        try:
            return list(self._runner.run_many(points, outputs))
        finally:
            self._memory.count(self._runner.runs_made - before)

    @property
    def runs(self) -> int:
        """How many times the simulator has run, second tries included; runs from the archive do not count."""
        return self._runner.runs_made

    def archived_points(self, names: Sequence[str]) -> torch.Tensor:
        """Return where the archive has runs of this simulator that are at the set-points but for some inputs.

        Args:
            names: of the inputs that may differ, scalars.

        Returns:
            ``(n, len(names))`` [the inputs' units]; none without an archive, or with a bunch that comes in.

        Raises:
            UnknownVariableError: for a name that is no input.
        """
        for name in names:
            if name not in self._input_names:
                raise unknown_variable(name, self._input_names, "the inputs")
        with torch.no_grad():
            point = plain_point(self._variables, self.get(self._input_names))
        known = self._runner.known_points(point, names) if isinstance(self._runner, Archived) and point else []
        return torch.tensor(known, dtype=self.dtype, device=self.device).reshape(len(known), len(names))

    # -- derivatives -----------------------------------------------------------------------------------------

    def _derivative_cost(self, question: Question) -> DerivativeCost:
        return derivative_cost(self, question)

    def _spent(self) -> tuple[int, int]:
        return self.runs, self._memory.learning_runs

    def _note(self, entry: GradientEntry) -> None:
        self._entries[entry.output, entry.input] = entry

    def gradient_report(self) -> GradientReport:
        """Return step, noise, estimated error and runs of every derivative taken so far, and what all runs were for."""
        self._report.entries = list(self._entries.values())
        self._report.notes = self._memory.notes()
        return self._report

    # -- the simulator ---------------------------------------------------------------------------------------

    @property
    def simulator(self) -> Any:
        """The simulator; call ``refresh()`` after changing it."""
        return self._runner.simulator

    def refresh(self) -> None:
        """Forget results, noise and curvature, because the simulator was changed by hand."""
        super().refresh()
        self._forget()
        self._was_changed = True

    def _forget(self) -> None:
        self._memory.clear()
        self._entries.clear()
        self._output_references.clear()

    def _reset_simulator(self) -> None:
        self._runner.reset()
        if self._was_changed:  # what was changed by hand is undone, and results of it hold no longer
            self._forget()
            self._was_changed = False

    def close(self) -> None:
        """Give up the simulator and its processes."""
        self._runner.close()

    def __enter__(self) -> BlackBoxModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _runner(
    factory: Callable[[], Simulator],
    workers: int,
    timeout: float | None,
    executor: Executor | None,
    archive: str | os.PathLike[str] | RunArchive | None,
) -> Runner:
    """Return who runs the simulator."""
    if timeout is not None and (not workers or executor is not None):
        raise ValidationError(
            f"timeout is {timeout!r}, but only worker processes can be stopped: give workers=1 or more, and no executor"
        )
    if workers and executor is not None:
        raise ValidationError(f"workers is {workers!r} and an executor is given: choose one of them")
    runner: Runner
    if executor is not None:
        runner = ExecutorRunner(factory, executor)
    elif workers:
        runner = WorkerPool(factory, workers, timeout)
    else:
        runner = InProcess(factory)
    if archive is None:
        return runner
    kept = archive if isinstance(archive, RunArchive) else RunArchive(archive)
    return Archived(runner, kept, chunk=1 if executor is None and not workers else max(workers, 8))
