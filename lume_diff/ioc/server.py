"""Server: a model, its runtime, and the control systems that show it."""

from __future__ import annotations

import contextlib
import functools
import gc
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal, Self

from lume_diff.control.readings import Reading
from lume_diff.errors import LumeDiffError, SimulatorError, ValidationError, unknown_variable
from lume_diff.ioc.engine import Engine
from lume_diff.ioc.image_sizes import image_sizes
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.plain import to_plain
from lume_diff.ioc.process_engine import ProcessEngine
from lume_diff.ioc.response_matrix import ResponseMatrix
from lume_diff.ioc.runtime import Runtime
from lume_diff.ioc.served import ControlServer, Served
from lume_diff.ioc.service import Service
from lume_diff.ioc.thread_engine import ThreadEngine
from lume_diff.models import LUMEModel
from lume_diff.registry import plugin

Isolation = Literal["thread", "process"]


class Server:
    """Serve a model to control systems.

    Args:
        model: any model, at the set-points that it is to begin with.
        prefix: put before every variable's name.
        protocols: names of servers, ``"pva"`` and ``"ca"`` among them.
        isolation: ``"thread"``: the model stays in this process, and what is written to it here shows too.
            ``"process"``: a copy of it lives in a process of its own, where it may crash or hang.
        timeout: longest time of one evaluation [s]; with ``"process"`` only.
        ordered: whether every write is evaluated in turn, as a record does, and not together with those that wait.
        names: variables to serve; all if None.
        changeable_limits: names whose limits clients may change.
        interface: address to listen on; only this machine unless told otherwise.
        read_only: whether all writes are refused.
        settings: of the protocols, such as ``{"EPICS_PVAS_SERVER_PORT": "5085"}``; what is not there is taken from the
            environment.
        longest_text: that may be written to a text [bytes].
        response_matrix: whether to keep the derivatives of the scalar outputs with respect to the scalar inputs up to
            date, in time that the model is idle; of a black box that takes many runs.

    Raises:
        ValidationError: for an unknown isolation or protocol, or a timeout that cannot be kept.
        UnknownVariableError: for a name that the model does not have.
        MissingExtraError: for a protocol whose package is not installed.

    Example:
        with Server(machine, prefix="VA:", protocols=("pva", "ca")) as server:
            server.wait_ready()
    """

    def __init__(
        self,
        model: LUMEModel,
        prefix: str = "",
        protocols: Sequence[str] = ("pva", "ca"),
        *,
        isolation: Isolation = "thread",
        timeout: float | None = None,
        ordered: bool = False,
        names: Iterable[str] | None = None,
        changeable_limits: Iterable[str] = (),
        interface: str = "127.0.0.1",
        read_only: bool = False,
        settings: Mapping[str, str] | None = None,
        longest_text: int = 1 << 16,
        response_matrix: bool = False,
    ) -> None:
        variables = model.supported_variables
        served = list(variables if names is None else names)
        for name in served:
            if name not in variables:
                raise unknown_variable(name, variables, "the model to serve")
        chosen = {name: variables[name] for name in served}
        inputs = [name for name in served if not variables[name].read_only]
        setpoints = {name: to_plain(variables[name], value) for name, value in model.get(inputs).items()}
        service = Service(_information(model, served), image_sizes(chosen))
        self.limits = LimitStore({**chosen, **service.variables}, changeable_limits)
        engine = _engine(model, served, isolation, timeout)
        self.runtime = Runtime(engine, served, self.limits, ordered, setpoints, service)
        self.response = ResponseMatrix(self.runtime) if response_matrix else None
        if self.response is not None:
            self.runtime.add(self.response)
        self._served = Served(
            self.runtime, self.limits, prefix, interface, read_only, dict(settings or {}), longest_text, self.response
        )
        with uncollected():
            self._servers: list[ControlServer] = [plugin("servers", name)(self._served) for name in protocols]
        self._began = False

    def start(self) -> Self:
        """Go online and evaluate the model for the first time; returns when the PVs are there.

        Raises:
            SimulatorError: if it was started before.
        """
        if self._began:
            raise SimulatorError("this server has been started before: make a new one")
        self._began = True
        try:
            with uncollected():
                for server in self._servers:
                    server.start()
                    self.runtime.add(server)
        except BaseException:
            self._end_servers()
            raise
        self.runtime.start()
        return self

    def stop(self) -> None:
        """Go offline, finish what is under way and end the model's process; may be called again."""
        self.runtime.stop()
        self._end_servers()

    def _end_servers(self) -> None:
        for server in self._servers:
            server.stop()

    def __enter__(self) -> Self:
        return self if self._began else self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def set(self, values: Mapping[str, Any], timeout: float | None = None) -> int:
        """Write inputs as one, as a client does, and wait until they are published.

        Args:
            values: by name, without the prefix.
            timeout: how long to wait [s], None for ever.

        Returns:
            The number of the cycle that published them.

        Raises:
            LumeDiffError: what the runtime refuses, or what went wrong in the model.
            TimeoutError: if it takes longer; the values may still be written.
        """
        finished = threading.Event()
        outcome: list[tuple[Exception | None, int]] = []

        def done(error: Exception | None, cycle: int) -> None:
            outcome.append((error, cycle))
            finished.set()

        self.runtime.write(values, "this process", done)
        if not finished.wait(timeout):
            raise TimeoutError(f"{', '.join(values)} not written within {timeout} s; the model is still busy")
        error, cycle = outcome[0]
        if error is not None:
            raise error if isinstance(error, LumeDiffError) else SimulatorError(str(error))
        return cycle

    def get(self, name: str) -> Reading:
        """Return what is shown of a variable."""
        if name not in self._served.variables:
            raise unknown_variable(name, self._served.variables, "the served model")
        return self.runtime.reading(name)

    def wait_ready(self, timeout: float | None = None) -> Self:
        """Wait until the first cycle is published.

        Raises:
            TimeoutError: if it takes longer than ``timeout`` [s].
        """
        if not self.runtime.first_cycle.wait(timeout):
            raise TimeoutError(f"no cycle within {timeout} s; the model is still being started")
        return self


def serve(model: LUMEModel, prefix: str = "", protocols: Sequence[str] = ("pva", "ca"), **options: Any) -> Server:
    """Serve a model, and return its running server; see `Server` for the arguments.

    Example:
        with serve(machine, prefix="VA:", protocols=("pva",)) as server:
            machine.set({"Q1.k1": 1.5})  # published too
    """
    return Server(model, prefix, protocols, **options).start()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking at all of torch again and again while thousands of PVs are made."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _engine(model: LUMEModel, names: Sequence[str], isolation: Isolation, timeout: float | None) -> Engine:
    if isolation == "thread":
        if timeout is not None:
            raise ValidationError(
                f"timeout={timeout} needs isolation='process': a model that hangs in this process cannot be ended"
            )
        return ThreadEngine(model, names)
    if isolation == "process":
        if timeout is not None and not timeout > 0.0:
            raise ValidationError(f"timeout={timeout}; expected a positive number of seconds, or None")
        return ProcessEngine(functools.partial(_itself, model), model.supported_variables, names, timeout)
    raise ValidationError(f"isolation={isolation!r}; expected 'thread' or 'process'")


def _information(model: LUMEModel, served: Sequence[str]) -> dict[str, Any]:
    """Return what a client may want to know of the model."""
    inputs = sum(1 for name in served if not model.supported_variables[name].read_only)
    versions = {package: version(package) for package in ("lume-diff", "torch")}
    return {"model": type(model).__name__, "inputs": inputs, "outputs": len(served) - inputs, "versions": versions}


def _itself(model: LUMEModel) -> LUMEModel:
    return model
