"""Host: a simulator where it lives, with the changes made to it from afar; used in workers and executors."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lume_diff.blackbox.runners.runner import Factory, Inputs, Jacobian, Result, attempt, attempt_jacobian
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import SimulatorError

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, np.generic)


class Reference(NamedTuple):
    """Where an object is found beside a simulator.

    Attributes:
        start: serial number of the change whose result the path starts from; None for the simulator itself.
        path: steps from there, ``("attribute", name)`` or ``("item", key)``.
    """

    start: int | None = None
    path: tuple[tuple[str, Any], ...] = ()

    def step(self, kind: str, key: Any) -> Reference:
        """Return the reference one step further."""
        return Reference(self.start, (*self.path, (kind, key)))


class Change(NamedTuple):
    """Something done to a simulator from afar, which is done again on every other one.

    Attributes:
        serial: its number, never used twice.
        on: what it is done to.
        do: ``"call"``, ``"setattr"``, ``"setitem"``, ``"delattr"`` or ``"delitem"``.
        args, kwargs: with what; a ``Reference`` among them stands for the object.
    """

    serial: int
    on: Reference
    do: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}


class Answer(NamedTuple):
    """What a read or a change gave.

    Attributes:
        value: a copy, if it is immutable.
        type_name: of an object that stays where it is; None with a copy.
        serial: of the change that was made.
    """

    value: Any
    type_name: str | None
    serial: int | None = None


def unpacked(payload: bytes) -> Factory:
    """Return a factory that was packed, a new copy of it for every simulator.

    So what a simulator leaves with its factory, such as the changes made to it by hand, which the host makes again by
    itself, does not reach the next one.
    """
    return lambda: pickle.loads(payload)()


def packed_host(payload: bytes, changes: Sequence[Change]) -> Host:
    """Return the host of a simulator whose factory was packed."""
    return Host(unpacked(payload), changes)


class Host:
    """Keep one simulator and the changes made to it.

    Args:
        factory: makes a simulator as if none had been made before.
        changes: made to it before anything else.
    """

    def __init__(self, factory: Factory, changes: Sequence[Change] = ()) -> None:
        self._factory = factory
        self._changes = list(changes)
        self._simulator: Simulator | None = None
        self._results: dict[int, Any] = {}

    @property
    def simulator(self) -> Simulator:
        """The simulator with all changes, made when first wanted."""
        if self._simulator is None:
            self._simulator = self._factory()
            try:
                for change in self._changes:
                    self._apply(change)
            except BaseException:
                self.close()
                raise
        return self._simulator

    def make(self) -> None:
        """Make the simulator now."""
        _ = self.simulator

    def run(self, point: Inputs, outputs: Sequence[str], fresh: bool) -> Result | SimulatorError:
        """Run once, on a fresh simulator if wanted."""
        if fresh:
            self.close()
        return attempt(self.simulator, point, outputs)

    def jacobian(
        self, point: Inputs, outputs: Sequence[str], fresh: bool, wrt: Sequence[str]
    ) -> Jacobian | SimulatorError:
        """Ask for derivatives that the simulator has of its own, a fresh one if wanted."""
        if fresh:
            self.close()
        return attempt_jacobian(self.simulator, point, outputs, wrt)

    def identity(self) -> str:
        """Return the simulator's identity."""
        return self.simulator.identity()

    def reset(self) -> None:
        """Bring the simulator back to its start; one that was changed from afar is made anew."""
        if self._changes:
            self._changes.clear()
            self.close()
        elif self._simulator is not None:
            self._simulator.reset()

    def close(self) -> None:
        """Close the simulator, which may fail: the next use makes a new one all the same."""
        simulator, self._simulator, self._results = self._simulator, None, {}
        if simulator is not None:
            with contextlib.suppress(Exception):
                simulator.close()

    # -- from afar -------------------------------------------------------------------------------------------

    def change(self, change: Change) -> Answer:
        """Make a change and remember it."""
        self.make()  # with the changes so far
        result = self._apply(change)
        self._changes.append(change)
        return _answer(result, change.serial)

    def catch_up(self, changes: Sequence[Change]) -> None:
        """Make those of the changes that have not been made here."""
        for change in changes[len(self._changes) :]:
            self.change(change)

    def read(self, kind: str, reference: Reference, *args: Any) -> Any:
        """Look at an object.

        Args:
            kind: ``"get"`` for an ``Answer``, ``"copy"`` for the whole object, ``"ask"`` for what a call of it returns,
                ``"length"``, ``"keys"`` (None for a sequence), ``"contains"``, ``"truth"``, ``"text"`` or ``"names"``.
            reference: to the object.
            *args: what ``"contains"`` asks for, or the arguments of the call and those by name.
        """
        found = self._resolve(reference)
        match kind:
            case "get":
                return _answer(found)
            case "copy":
                return found
            case "ask":
                return found(*args[0], **args[1])
            case "length":
                return len(found)
            case "keys":
                return list(found) if isinstance(found, Mapping) else None
            case "contains":
                return args[0] in found
            case "truth":
                return bool(found)
            case "text":
                return repr(found)
            case "names":
                return dir(found)
        raise ValueError(f"there is no read of kind {kind!r}")

    def _resolve(self, reference: Reference) -> Any:
        found: Any = self.simulator
        if reference.start is not None:
            if reference.start not in self._results:
                raise LookupError("the object is of a simulator that was reset since: take it from the proxy again")
            found = self._results[reference.start]
        for kind, key in reference.path:
            found = getattr(found, key) if kind == "attribute" else found[key]
        return found

    def _apply(self, change: Change) -> Any:
        found = self._resolve(change.on)
        args = [self._resolve(value) if isinstance(value, Reference) else value for value in change.args]
        kwargs = {k: self._resolve(v) if isinstance(v, Reference) else v for k, v in change.kwargs.items()}
        match change.do:
            case "call":
                result = found(*args, **kwargs)
                if not _immutable(result):
                    self._results[change.serial] = result
                return result
            case "setattr":
                setattr(found, *args)
            case "setitem":
                found[args[0]] = args[1]
            case "delattr":
                delattr(found, *args)
            case "delitem":
                del found[args[0]]
            case _:
                raise ValueError(f"there is no change of kind {change.do!r}")
        return None


def _immutable(value: Any) -> bool:
    return isinstance(value, _IMMUTABLE) or (type(value) is tuple and all(map(_immutable, value)))


def _answer(value: Any, serial: int | None = None) -> Answer:
    return Answer(value, None, serial) if _immutable(value) else Answer(None, type(value).__name__, serial)
