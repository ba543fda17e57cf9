"""ExecutorRunner: simulators in the workers of somebody else's executor, such as Dask's, MPI's or a process pool."""

from __future__ import annotations

import itertools
import pickle
import threading
import uuid
import weakref
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from lume_diff.blackbox.runners.errand import Errand, Order, WorkerName, forget
from lume_diff.blackbox.runners.host import Answer, Change, Reference
from lume_diff.blackbox.runners.pool import packed
from lume_diff.blackbox.runners.proxy import SimulatorProxy, identity_with
from lume_diff.blackbox.runners.runner import Factory, Inputs, Jacobian, Result, Runner, run_error
from lume_diff.errors import SimulatorError, ValidationError


class ExecutorRunner(Runner):
    """Run a simulator in the workers of any ``concurrent.futures.Executor``; each makes it once and keeps it.

    A run that fails is tried once more on a fresh simulator. A run that hangs is not stopped, and what becomes of a
    worker that dies is up to the executor: with ``ProcessPoolExecutor`` all its runs fail, Dask starts another.
    ``WorkerPool`` does better at both. A thread counts as a worker, so a code that can live only once in a process
    needs one thread per process. The executor stays open, and its processes keep their simulators until they end
    or need room for others.

    Args:
        factory: makes a simulator; lambdas and local classes will do. It is sent to the workers as it is now.
        executor: a thread or process pool, ``mpi4py.futures.MPIPoolExecutor``, Dask's ``client.get_executor()``.
            ``lume_diff`` must be installed where it runs.

    Raises:
        ValidationError: if it is no executor or the factory cannot be pickled.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from lume_diff.blackbox.simulator import FunctionSimulator
        >>> with ThreadPoolExecutor(2) as executor:
        ...     runner = ExecutorRunner(lambda: FunctionSimulator(lambda a: {"y": a**2}, ["y"]), executor)
        ...     runner.run_many([{"a": 2.0}, {"a": 3.0}], ["y"])
        [{'y': 4.0}, {'y': 9.0}]
    """

    def __init__(self, factory: Factory, executor: Executor) -> None:
        if not isinstance(executor, Executor):
            raise ValidationError(
                f"the executor is {executor!r}; expected a concurrent.futures.Executor; of a Dask client take "
                "client.get_executor()"
            )
        self._payload = packed(factory)
        self._executor = executor
        self._lock = threading.RLock()
        self._token = uuid.uuid4().hex
        self._version = 0
        self._serials = itertools.count(1)
        self._changes: list[Change] = []
        self._informed: set[WorkerName] = set()
        weakref.finalize(self, forget, self._token)

    # -- running ---------------------------------------------------------------------------------------------

    def run_many(self, points: Sequence[Inputs], outputs: Sequence[str]) -> list[Result | SimulatorError]:
        """Run all points.

        Raises:
            KeyboardInterrupt: on Ctrl-C; what has not begun is cancelled, what runs goes on to its end.
        """
        with self._lock:
            found = self._try([dict(point) for point in points], outputs, fresh=False)
            failed = [index for index, result in enumerate(found) if isinstance(result, SimulatorError)]
            again = self._try([dict(points[index]) for index in failed], outputs, fresh=True)
            for index, result in zip(failed, again, strict=True):
                found[index] = result
            return found

    def jacobians(
        self, points: Sequence[Inputs], outputs: Sequence[str], wrt: Sequence[str]
    ) -> list[Jacobian | SimulatorError]:
        """Ask at all points, once each."""
        with self._lock:
            asked = [(dict(point), list(outputs), False, list(wrt)) for point in points]
            return self._told([point for point, *_ in asked], self._do("jacobian", asked))

    def _try(self, points: list[dict[str, Any]], outputs: Sequence[str], fresh: bool) -> list[Result | SimulatorError]:
        self.runs_made += len(points)
        return self._told(points, self._do("run", [(point, list(outputs), fresh) for point in points]))

    @staticmethod
    def _told(points: list[dict[str, Any]], found: list[Any]) -> list[Any]:
        """Return answers with errors that say at which inputs they came."""
        for index, (point, answer) in enumerate(zip(points, found, strict=True)):
            if isinstance(answer, Exception) and not hasattr(answer, "inputs"):
                ours = isinstance(answer, SimulatorError)
                what = str(answer) if ours else f"the executor failed: {type(answer).__name__}: {answer}"
                found[index] = run_error(what, point)
                found[index].__cause__ = answer
        return found

    def _do(self, verb: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Have the executor do something for each set of arguments; what fails gives an exception in its place."""
        return Errand(self._executor, self._payload, self._informed).run(
            [Order(self._token, self._version, verb, self._changes, args) for args in calls]
        )

    # -- one or all simulators -------------------------------------------------------------------------------

    def identity(self) -> str:
        """Return the simulator's identity, with what was changed through the proxy."""
        with self._lock:
            return identity_with(self._ask("identity"), self._changes)

    def reset(self) -> None:
        """Have every worker make its simulator anew; what was changed through the proxy is undone."""
        with self._lock:
            self._changes.clear()
            self._renew()

    def close(self) -> None:
        """Close the simulators that live in this process, in threads; the executor is not ours to shut down."""
        with self._lock:
            self._renew()
            forget(self._token)

    @property
    def simulator(self) -> SimulatorProxy:
        """What stands for the simulators of all workers."""
        return SimulatorProxy(self)

    @property
    def changes(self) -> list[Change]:
        """What was changed through the proxy."""
        return self._changes

    def read(self, kind: str, reference: Reference, *args: Any) -> Any:
        """Ask one simulator; see ``Host.read``."""
        with self._lock:
            return self._ask("read", kind, reference, *args)

    def change(self, on: Reference, do: str, *args: Any, **kwargs: Any) -> Answer:
        """Change one simulator now and the others when they are used next; see ``WorkerPool.change``."""
        with self._lock:
            change = Change(next(self._serials), on, do, args, kwargs)
            try:
                answer = self._ask("change", change)
            except BaseException:
                self._renew()  # one of them may have it half
                raise
            self._changes.append(change)
            return answer

    def _ask(self, verb: str, *args: Any) -> Any:
        (answer,) = self._do(verb, [args])
        if isinstance(answer, (AttributeError, LookupError, TypeError)) and verb == "read":
            raise answer
        if isinstance(answer, BaseException):
            raise SimulatorError(f"{verb} failed in the executor: {answer}") from answer
        return answer

    def _renew(self) -> None:
        self._version += 1
        self._informed.clear()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a black box that runs in a foreign executor cannot be pickled: build another there")

    def __deepcopy__(self, memo: dict[int, Any]) -> ExecutorRunner:
        twin = ExecutorRunner(pickle.loads(self._payload), self._executor)
        twin._changes = list(self._changes)
        twin._serials = itertools.count(next(self._serials))
        twin.runs_made = self.runs_made
        return twin
