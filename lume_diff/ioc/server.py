"""Server: a model, its runtime, and the control systems that show it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

from lume_diff.control.readings import Reading
from lume_diff.errors import LumeDiffError, SimulatorError, ValidationError, unknown_variable
from lume_diff.ioc.access import Access
from lume_diff.ioc.autosave import Autosave
from lume_diff.ioc.engine import Engine
from lume_diff.ioc.health import HealthProbe, pages
from lume_diff.ioc.image_sizes import image_sizes
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.plain import to_plain
from lume_diff.ioc.process_engine import ProcessEngine
from lume_diff.ioc.response_matrix import ResponseMatrix
from lume_diff.ioc.restoring import saved, write_each
from lume_diff.ioc.runtime import Runtime
from lume_diff.ioc.served import ControlServer, Served
from lume_diff.ioc.service import Command, Service
from lume_diff.ioc.settling import Settling, SettlingEngine
from lume_diff.ioc.shots import ShotClock
from lume_diff.ioc.thread_engine import ThreadEngine
from lume_diff.ioc.together import start_together, stop_together
from lume_diff.ioc.write_log import WriteLog
from lume_diff.models import LUMEModel
from lume_diff.registry import plugin
from lume_diff.variables import IntVariable, Variable

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
        read_only: whether all writes of clients are refused.
        allow: ``{"hosts": [...], "users": [...]}`` that may write, everybody if None. Clients say themselves who they
            are: this guards against mistakes and not against attackers.
        largest_array: elements of an array that is taken from a client.
        autosave: file that keeps the set-points, within a second of every change.
        restore: ``"last"``: begin with the set-points of that file, as far as they are still accepted; ``"default"``.
        write_log: file of all writes, accepted and refused, as JSON lines.
        settling: how set-points are reached, by name, where that takes time.
        rate_hz: of a shot clock that draws noise anew and publishes every output [Hz]; none if None.
        shot_counter: input that counts its shots, where the model has one of this name.
        health_port: of an HTTP probe; 0 for any that is free, none if None.
        search: how long other servers with the same names are looked for before going online [s]; 0 for not at all.
        settings: of the protocols, such as ``{"EPICS_PVAS_SERVER_PORT": "5085"}``; what is not there is taken from the
            environment.
        longest_text: that may be written to a text [bytes].
        response_matrix: whether to keep the derivatives of the scalar outputs with respect to the scalar inputs up to
            date, in time that the model is idle; of a black box that takes many runs.
        status: further variables about the server, with the values that they begin with; ``runtime.show`` changes them.
        commands: what a write to one of these does, by its name.

    Raises:
        ValidationError: for an unknown isolation or protocol, or options that do not go together.
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
        allow: Mapping[str, Iterable[str] | None] | None = None,
        largest_array: int = 10_000_000,
        autosave: str | Path | None = None,
        restore: Literal["last", "default"] = "default",
        write_log: str | Path | None = None,
        settling: Mapping[str, Settling] | None = None,
        rate_hz: float | None = None,
        shot_counter: str = "SHOT",
        health_port: int | None = None,
        search: float = 0.5,
        settings: Mapping[str, str] | None = None,
        longest_text: int = 1 << 16,
        response_matrix: bool = False,
        status: Sequence[tuple[Variable, Any]] = (),
        commands: Mapping[str, Command] | None = None,
    ) -> None:
        _check_together(restore, autosave)
        wanted = _known(model, names)
        engine = _engine(model, wanted, isolation, timeout)
        if settling:
            engine = SettlingEngine(engine, settling)
            wanted += [name for name in engine.variables if name not in model.supported_variables]
        inputs = [name for name in wanted if not engine.variables[name].read_only]
        setpoints = {name: to_plain(engine.variables[name], value) for name, value in model.get(inputs).items()}
        self._saved = saved(Path(autosave), setpoints) if autosave is not None and restore == "last" else {}
        shown = {name: value for name, value in setpoints.items() if name not in self._saved}
        chosen = {name: engine.variables[name] for name in wanted}
        information = _information(model, len(inputs), len(wanted) - len(inputs))
        service = Service(information, chosen, [*image_sizes(chosen), *status], commands=commands)
        self.limits = LimitStore({**chosen, **service.variables}, changeable_limits)
        access = Access.of(read_only, allow, largest_array)
        self._writes = WriteLog(None if write_log is None else Path(write_log), prefix)
        changeable = [name for name in inputs if self.limits.changeable(name)]

        def baseline() -> dict[str, Any]:
            return {name: to_plain(chosen[name], model.baseline(name)) for name in changeable}

        self.runtime = Runtime(engine, wanted, self.limits, ordered, shown, service, access, self._writes, baseline)
        self.response = ResponseMatrix(self.runtime) if response_matrix else None
        if self.response is not None:
            self.runtime.add(self.response)
        self.served = Served(
            self.runtime, self.limits, prefix, interface, access, dict(settings or {}), longest_text, self.response
        )
        self.protocols, self.model_names = list(protocols), wanted
        self.fronts: list[ControlServer] = [plugin("servers", name)(self.served) for name in protocols]
        self.search = search
        self._autosave = None if autosave is None else Autosave(Path(autosave), self.runtime.setpoints)
        counter = shot_counter if isinstance(chosen.get(shot_counter), IntVariable) else None
        self._clock = None if rate_hz is None else ShotClock(self.runtime, rate_hz, counter)
        self.health = None if health_port is None else HealthProbe(pages(self.runtime), health_port, interface)
        self._began = False

    def start(self) -> Self:
        """Go online and evaluate the model for the first time; returns when the PVs are there.

        Raises:
            SimulatorError: if it was started before.
            ControlError: if another server has some of the names.
        """
        start_together([self])
        return self

    def begin(self) -> None:
        """Note that the server is being started; `start` does it.

        Raises:
            SimulatorError: if it was before.
        """
        if self._began:
            raise SimulatorError("this server has been started before: make a new one")
        self._began = True

    def run(self) -> None:
        """Begin to evaluate, once the fronts are online; `start` does it."""
        for front in self.fronts:
            self.runtime.add(front)
        if self._autosave is not None:
            self.runtime.add(self._autosave)
            write_each(self.runtime, self._saved, self._autosave.begin)
        self.runtime.start()
        for part in (self._clock, self.health):
            if part is not None:
                part.start()

    def stop(self) -> None:
        """Go offline, finish what is under way and end the model's process; may be called again."""
        stop_together([self])

    def halt(self) -> None:
        """Evaluate no more, and save what there is to save; `stop` does it."""
        if self._clock is not None:
            self._clock.stop()
        self.runtime.stop()
        if self._autosave is not None:
            self._autosave.stop()

    def close(self) -> None:
        """Go offline; `stop` does it."""
        for front in self.fronts:
            front.stop()
        if self.health is not None:
            self.health.stop()
        self._writes.close()

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
        if name not in self.served.variables:
            raise unknown_variable(name, self.served.variables, "the served model")
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


def _check_together(restore: str, autosave: object) -> None:
    if restore not in ("last", "default"):
        raise ValidationError(f"restore={restore!r}; expected 'last' or 'default'")
    if restore == "last" and autosave is None:
        raise ValidationError("restore='last' needs autosave, a file that set-points are restored from")


def _known(model: LUMEModel, names: Iterable[str] | None) -> list[str]:
    """Return the variables to serve."""
    wanted = list(model.supported_variables if names is None else names)
    for name in wanted:
        if name not in model.supported_variables:
            raise unknown_variable(name, model.supported_variables, "the model to serve")
    return wanted


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
        return ProcessEngine(lambda: model, model.supported_variables, names, timeout)
    raise ValidationError(f"isolation={isolation!r}; expected 'thread' or 'process'")


def _information(model: LUMEModel, inputs: int, outputs: int) -> dict[str, Any]:
    """Return what a client may want to know of the model."""
    versions = {package: version(package) for package in ("lume-diff", "torch")}
    return {"model": type(model).__name__, "inputs": inputs, "outputs": outputs, "versions": versions}
