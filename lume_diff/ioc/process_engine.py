"""ProcessEngine: a served model in a process of its own, which may crash or hang."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, final

from lume_diff.errors import LumeDiffError, SimulatorError
from lume_diff.ioc.arena import Arena
from lume_diff.ioc.engine import Engine, Evaluated
from lume_diff.ioc.model_host import ModelHost
from lume_diff.models import LUMEModel
from lume_diff.processes.worker_process import WorkerLost, WorkerProcess, how_it_ended
from lume_diff.variables import TorchNDVariable, Variable

#: Makes the model; anything that cloudpickle takes, a pickled model among them.
Factory = Callable[[], LUMEModel]


class _Home(NamedTuple):
    """The process that the model lives in, and the memory that is shared with it."""

    worker: WorkerProcess
    arena: Arena


@final
class ProcessEngine(Engine):
    """Run a model in a process that is killed when it hangs, and started again when it is gone.

    A new process is brought to the last good set-points before it is used.

    Args:
        factory: makes the model in the process.
        variables: what that model takes and gives.
        names: the variables that are served.
        timeout: longest time of one evaluation [s], None for ever.
        start_timeout: longest time of making the model [s].
    """

    def __init__(
        self,
        factory: Factory,
        variables: Mapping[str, Variable],
        names: Sequence[str],
        timeout: float | None = None,
        start_timeout: float = 120.0,
    ) -> None:
        self._factory = factory
        self._variables = dict(variables)
        self._names = list(names)
        self._timeout, self._start_timeout = timeout, start_timeout
        self._shapes = {
            name: variable.shape
            for name in self._names
            if isinstance(variable := self._variables[name], TorchNDVariable)
        }
        self._home: _Home | None = None
        self._good: dict[str, Any] | None = None  # inputs of the last good evaluation that differ from the start

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the model takes and gives."""
        return self._variables

    @property
    def pid(self) -> int | None:
        """Number of the model's process, None where there is none."""
        return None if self._home is None else self._home.worker.pid

    def start(self) -> None:
        """Start the process and make the model.

        Raises:
            SimulatorError: if that fails or takes too long.
        """
        self._begin()

    def evaluate(self, values: Mapping[str, Any]) -> Evaluated:
        """Write inputs and read everything."""
        return self._evaluated("evaluate", dict(values))

    def reset(self) -> Evaluated:
        """Bring the inputs back to their baseline and read everything."""
        return self._evaluated("reset")

    def restore(self, snapshot: Mapping[str, Any]) -> Evaluated:
        """Write back a snapshot and read everything."""
        return self._evaluated("restore", dict(snapshot))

    def snapshot(self) -> dict[str, Any]:
        """Return the set-points of the last good evaluation as plain data."""
        return dict(self._good or {})

    def jacobian(self, outputs: Sequence[str], inputs: Sequence[str], at: Mapping[str, Any]) -> dict[str, Any]:
        """Return derivatives at plain inputs."""
        return dict(self._ask(self._running().worker, self._timeout, "jacobian", list(outputs), list(inputs), dict(at)))

    def stop(self) -> None:
        """End the process, politely if it listens."""
        home, self._home = self._home, None
        if home is not None:
            home.worker.ask_to_close()
            home.worker.wait_closed(1.0)
            home.arena.close()

    def interrupt(self) -> None:
        """Kill the process; safe from any thread."""
        home = self._home
        if home is not None:
            home.worker.kill_group()

    # -- talking ---------------------------------------------------------------------------------------------

    def _evaluated(self, verb: str, *args: Any) -> Evaluated:
        worker, arena = self._running()
        evaluated, moved, self._good = self._ask(worker, self._timeout, verb, *args)
        return Evaluated(arena.take(evaluated.values, moved), evaluated.seconds, evaluated.runs)

    def _running(self) -> _Home:
        """Return where the model lives, a new place where the last is gone."""
        if self._home is not None and self._home.worker.alive():
            return self._home
        self._bury()
        return self._begin()

    def _begin(self) -> _Home:
        arena = Arena(self._shapes)
        descriptors = [] if arena.descriptor is None else [arena.descriptor]
        host = functools.partial(RemoteHost, self._factory, self._names, self._shapes, arena.descriptor)
        worker = WorkerProcess(host, dict(os.environ), os.getcwd(), descriptors)
        self._home = home = _Home(worker, arena)
        try:
            self._answer(worker, self._start_timeout, "could not be made")
            if self._good:
                self._ask(worker, self._start_timeout, "restore", self._good)
        except BaseException:
            self._bury()  # it is not where it ought to be: the next request tries again, and does not use it
            raise
        return home

    def _ask(self, worker: WorkerProcess, limit: float | None, verb: str, *args: Any) -> Any:
        try:
            worker.send((verb, *args))
        except WorkerLost:
            raise self._lost("") from None
        return self._answer(worker, limit, "failed")

    def _answer(self, worker: WorkerProcess, limit: float | None, what: str) -> Any:
        try:
            reply = worker.receive(limit)
        except WorkerLost as error:
            raise self._lost(str(error)) from None
        worker.trim()
        if not reply.well:
            raise SimulatorError(f"the model {what}: {reply.value}")
        if isinstance(reply.value, LumeDiffError):
            raise reply.value
        return reply.value

    def _lost(self, phrase: str) -> SimulatorError:
        code, tail = self._bury()
        error = SimulatorError(
            f"the model {phrase or 'is gone: its process ' + how_it_ended(code)}; it is started anew at its last good "
            "set-points" + (f"; it printed last: {tail}" if tail else "")
        )
        error.exit_code, error.log = code, tail
        return error

    def _bury(self) -> tuple[int | None, str]:
        home, self._home = self._home, None
        if home is None:
            return None, ""
        home.arena.close()
        return home.worker.bury()


class RemoteHost:
    """Evaluate a model in the process where it lives, for a `ProcessEngine`.

    Args:
        factory, names: see there.
        shapes, descriptor: of the arena.
    """

    def __init__(
        self, factory: Factory, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], descriptor: int | None
    ) -> None:
        self._factory, self._names = factory, names
        self._arena = Arena(shapes, descriptor)
        self._host: ModelHost  # from `make` to `close`

    def make(self) -> None:
        """Make the model."""
        self._host = ModelHost(self._factory(), self._names)

    def close(self) -> None:
        """Let the model go."""
        del self._host

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Write inputs and read everything."""
        return self._told("evaluate", values)

    def reset(self) -> Any:
        """Bring the inputs back to their baseline and read everything."""
        return self._told("reset")

    def restore(self, snapshot: Mapping[str, Any]) -> Any:
        """Write back a snapshot and read everything."""
        return self._told("restore", snapshot)

    def jacobian(self, outputs: Sequence[str], inputs: Sequence[str], at: Mapping[str, Any]) -> Any:
        """Return derivatives at plain inputs."""
        try:
            return self._host.jacobian(outputs, inputs, at)
        except LumeDiffError as error:
            return _portable(error)

    def _told(self, verb: str, *args: Any) -> Any:
        try:
            found: Evaluated = getattr(self._host, verb)(*args)
        except LumeDiffError as error:
            return _portable(error)
        values, moved = self._arena.put(found.values)
        return Evaluated(values, found.seconds, found.runs), moved, self._host.snapshot()


def _portable(error: LumeDiffError) -> LumeDiffError:
    """Return an error of the package without what hangs on it."""
    return type(error)(str(error))
