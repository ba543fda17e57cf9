"""SimulatorProxy: what stands for the simulator where several live in other processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import cloudpickle
import numpy as np

from lume_diff.blackbox.runners.host import Answer, Change, Reference

Record = dict[str, Any]


class ProxyOwner(Protocol):
    """Who carries a proxy's wishes to the simulators."""

    @property
    def changes(self) -> Sequence[Change]:
        """What was changed so far."""

    def change(self, on: Reference, do: str, *args: Any, **kwargs: Any) -> Answer:
        """Change every simulator, those to come too."""

    def read(self, kind: str, reference: Reference, *args: Any) -> Any:
        """Ask one simulator."""


class SimulatorProxy:
    """Stand for the simulators of several workers, or for an object inside them.

    Attributes and items are read from one worker: numbers, strings and tuples of them come as they are, anything else
    as a proxy again; ``fetch(proxy)`` copies the object whole. Setting or deleting an attribute or an item, and **every
    call**, counts as a change: it is made on every worker, made again on each one that starts later, and part of
    ``log``, on which the identity of the runs depends. ``ask(proxy.method, ...)`` calls what only reads.

    Names that begin with an underscore are not reached, nor is what the simulators themselves call ``log``.

    Args:
        owner: carries reads and changes to the simulators.
        reference: what it stands for; the simulator itself by default.

    Example:
        >>> from lume_diff.blackbox.simulator import FunctionSimulator
        >>> from lume_diff.blackbox.runners.pool import WorkerPool
        >>> with WorkerPool(lambda: FunctionSimulator(lambda a: a + 1, ["y"]), workers=2) as pool:
        ...     pool.simulator.outputs[0] = "z"
        ...     print(pool.run_many([{"a": 1.0}], ["z"]), pool.simulator.log)
        [{'z': 2.0}] [{'do': 'set item', 'on': 'simulator.outputs', 'args': [0, 'z']}]
    """

    __slots__ = ("_owner", "_reference")

    def __init__(self, owner: ProxyOwner, reference: Reference = Reference()) -> None:  # noqa: B008 - immutable
        object.__setattr__(self, "_owner", owner)
        object.__setattr__(self, "_reference", reference)

    @property
    def log(self) -> list[Record]:
        """What was changed so far, in order, as plain records."""
        return records(self._owner.changes)

    # -- reads -----------------------------------------------------------------------------------------------

    def _wrap(self, answer: Answer, reference: Reference) -> Any:
        return answer.value if answer.type_name is None else SimulatorProxy(self._owner, reference)

    def _step(self, kind: str, key: Any) -> Any:
        reference = self._reference.step(kind, key)
        return self._wrap(self._owner.read("get", reference), reference)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private to the simulator: a proxy does not reach it")
        return self._step("attribute", name)

    def __getitem__(self, key: Any) -> Any:
        return self._step("item", key)

    def __len__(self) -> int:
        return self._owner.read("length", self._reference)

    def __iter__(self) -> Iterator[Any]:
        keys = self._owner.read("keys", self._reference)
        return iter(keys) if keys is not None else (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return self._owner.read("contains", self._reference, value)

    def __bool__(self) -> bool:
        return self._owner.read("truth", self._reference)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(fetch(self), dtype=dtype)

    def __repr__(self) -> str:
        return f"<proxy of {self._owner.read('text', self._reference)}>"

    def __dir__(self) -> list[str]:
        return [name for name in self._owner.read("names", self._reference) if not name.startswith("_")] + ["log"]

    # -- changes ---------------------------------------------------------------------------------------------

    def _change(self, do: str, *args: Any, **kwargs: Any) -> Answer:
        given = [value._reference if isinstance(value, SimulatorProxy) else value for value in args]
        named = {k: v._reference if isinstance(v, SimulatorProxy) else v for k, v in kwargs.items()}
        return self._owner.change(self._reference, do, *given, **named)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = self._change("call", *args, **kwargs)
        return self._wrap(answer, Reference(answer.serial))

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise AttributeError(f"{name!r} is private to the simulator: a proxy does not reach it")
        self._change("setattr", name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._change("setitem", key, value)

    def __delattr__(self, name: str) -> None:
        self._change("delattr", name)

    def __delitem__(self, key: Any) -> None:
        self._change("delitem", key)


def fetch(proxy: SimulatorProxy) -> Any:
    """Return a copy of the object that a proxy stands for; what is done to the copy reaches no simulator."""
    return proxy._owner.read("copy", proxy._reference)


def ask(proxy: SimulatorProxy, *args: Any, **kwargs: Any) -> Any:
    """Call a method that only reads, on one worker, and return a copy of the result; it is not taken for a change."""
    return proxy._owner.read("ask", proxy._reference, args, kwargs)


def consult(method: Any, *args: Any) -> Any:
    """Call a method that only reads, of a simulator or of a proxy."""
    return ask(method, *args) if isinstance(method, SimulatorProxy) else method(*args)


def last_change(proxy: SimulatorProxy) -> int:
    """Return the number of the last change made through a proxy, 0 before the first; none is used twice."""
    changes = proxy._owner.changes
    return changes[-1].serial if changes else 0


_NAMES = {"setattr": "set", "delattr": "delete", "setitem": "set item", "delitem": "delete item", "call": "call"}


def records(changes: Sequence[Change]) -> list[Record]:
    """Return changes as plain records that do not depend on serial numbers."""
    places = {change.serial: place for place, change in enumerate(changes)}

    def plain(value: Any) -> Any:
        return _text(value, places) if isinstance(value, Reference) else value

    found = []
    for change in changes:
        record: Record = {
            "do": _NAMES[change.do],
            "on": _text(change.on, places),
            "args": list(map(plain, change.args)),
        }
        if change.kwargs:
            record["kwargs"] = {name: plain(value) for name, value in change.kwargs.items()}
        found.append(record)
    return found


def _text(reference: Reference, places: Mapping[int, int]) -> str:
    start = "simulator" if reference.start is None else f"result_{places.get(reference.start, 'lost')}"
    return start + "".join(f".{key}" if kind == "attribute" else f"[{key!r}]" for kind, key in reference.path)


def identity_with(identity: str, changes: Sequence[Change]) -> str:
    """Return a simulator's identity with what was changed from afar."""
    if not changes:
        return identity
    digest = hashlib.sha256()
    _absorb(digest, records(changes))
    return f"{identity}+changes:{digest.hexdigest()[:16]}"


def _absorb(digest: Any, value: Any) -> None:
    """Hash a value by its content; an object that is none of the plain kinds by its pickle."""
    if isinstance(value, dict):
        digest.update(b"{%d" % len(value))
        for key, entry in value.items():
            _absorb(digest, key)
            _absorb(digest, entry)
    elif isinstance(value, (list, tuple)):
        digest.update(b"[%d" % len(value))
        for entry in value:
            _absorb(digest, entry)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"{value.dtype.str}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
        text = f"{type(value).__name__}:{value!r};"
        digest.update(f"{len(text)}:{text}".encode())
    else:
        digest.update(cloudpickle.dumps(value))
