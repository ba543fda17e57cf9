"""LumeSimulator: one of LUME's models, written and read whole."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import pickle
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from lume_diff.blackbox.codes.plain_bunches import INCOMING, OUTGOING
from lume_diff.blackbox.lume.variables import Translation, lume, translated
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import ValidationError

#: Models that several simulators may share, with the lock that keeps a write and its read together.
_LOCKS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


def lock_of(native: Any) -> Any:
    """Return the lock of a model, the same for all who share it."""
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(native, threading.RLock())


class LumeSimulator(Simulator):
    """Write and read one of LUME's models.

    A LUME model has a memory: every run writes all inputs, so that nothing of an earlier run stays.

    Args:
        source: the model, or a function that makes one.
        controls: names of the inputs.
        units: of variables, where they are not what the model declares.
    """

    def __init__(self, source: Any, controls: Sequence[str] = (), units: Mapping[str, str] | None = None) -> None:
        self.native = model_from(source)
        self._controls, self._units = list(controls), dict(units or {})
        self._variables = variables_of(self.native)
        self._translations: dict[str, Translation] = {}
        self._written = self._inputs()
        self.look_anew()

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Write the inputs and read the outputs, with nobody in between.

        Raises:
            ValidationError: for numbers that are not finite.
        """
        values = {}
        for name, value in inputs.items():
            if isinstance(value, (float, np.floating, np.ndarray)) and not np.isfinite(value).all():
                raise ValidationError(f"{name!r} is {value!r}, which not every model would refuse")
            values[name] = self._translation(name).theirs(value)
        with lock_of(self.native):
            try:
                self._write(values)
                self._written = dict(inputs)
                found = self._read(outputs)
            except Exception:
                self.native.reset()
                with contextlib.suppress(Exception):
                    self._write(self._others)
                raise
        return {name: self._translation(name).ours(found[name]) for name in outputs}

    def _translation(self, name: str) -> Translation:
        if name not in self._translations:
            self._translations[name] = translated(self._variables[name], self._units.get(name, ""))
        return self._translations[name]

    def _write(self, values: Mapping[str, Any]) -> None:
        own = self.native.supported_variables
        for name in values:
            if name not in own:  # the bunch of a stage, which is an attribute
                setattr(self.native, name, values[name])
        self.native.set({name: value for name, value in values.items() if name in own})

    def _read(self, names: Sequence[str]) -> dict[str, Any]:
        own = self.native.supported_variables
        found = dict(self.native.get([name for name in names if name in own]))
        return found | {name: getattr(self.native, name) for name in names if name not in own}

    def _inputs(self) -> dict[str, Any]:
        """Return the inputs as they stand on the model now, plain."""
        with lock_of(self.native):
            values = {name: current(self.native, name, self._variables[name]) for name in self._controls}
        return {n: None if value is None else self._translation(n).ours(value) for n, value in values.items()}

    def changes(self) -> dict[str, Any]:
        """Return the inputs that somebody has changed on the model since the last run."""
        now, before = self._inputs(), self._written
        return {n: value for n, value in now.items() if value is not None and _text(value) != _text(before.get(n))}

    def look_anew(self) -> None:
        """Let what was changed by hand count in the identity, and outlive a failed run where it is a variable."""
        self._state = _digest(self.native)
        with lock_of(self.native):
            self._others = {name: value for name, value in self._rest().items() if value is not None}

    def _rest(self) -> dict[str, Any]:
        """Return the variables that could be inputs and are not, as LUME has them."""
        names = [n for n, variable in self._variables.items() if not variable.read_only and n not in self._controls]
        return {name: current(self.native, name, self._variables[name]) for name in sorted(names)}

    def reset(self) -> None:
        """Reset the model."""
        with lock_of(self.native):
            self.native.reset()

    def identity(self) -> str:
        """Return class, version and a hash of the class's text, of the variables and of the model as it was given.

        What was changed by hand counts after ``look_anew``.
        """
        own = type(self.native)
        with lock_of(self.native):
            rest = {name: _text(value) for name, value in self._rest().items()}
        described = sorted(repr(variable) for variable in self._variables.values())
        parts = [_source(own), described, rest, self._state]
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
        return f"{own.__module__}.{own.__qualname__} {_version(own)}:{digest}"


def _digest(native: Any) -> str:
    """Return a hash of all that a model holds, and of the files that it names."""
    found = hashlib.sha256()
    for name, value in sorted(getattr(native, "__dict__", {}).items()):
        found.update(name.encode())
        if isinstance(value, (str, os.PathLike)) and os.path.isfile(value):
            with open(value, "rb") as file:
                found.update(file.read())
            continue
        try:
            found.update(pickle.dumps(value))
        except Exception:  # open files, locks, functions
            found.update(type(value).__qualname__.encode())
    return found.hexdigest()


def _text(value: Any) -> str:
    """Return a value in full, so that another value has another text."""
    if hasattr(value, "data") and isinstance(value.data, dict):  # a ParticleGroup
        return repr({name: np.asarray(array).tobytes().hex() for name, array in sorted(value.data.items())})
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return value.tobytes().hex() if isinstance(value, np.ndarray) else repr(value)


def _source(own: type) -> str:
    try:
        return inspect.getsource(own)
    except (OSError, TypeError):
        return own.__qualname__


def _version(own: type) -> str:
    package = own.__module__.partition(".")[0]
    try:
        return version(package)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(package), "__version__", ""))


def model_from(source: Any) -> Any:
    """Return one of LUME's models, made if it was given as a function.

    Raises:
        ValidationError: for anything else.
    """
    base = lume("model").LUMEModel
    native = source() if callable(source) and not isinstance(source, base) else source
    if not isinstance(native, base):
        raise ValidationError(
            f"LumeModel was given a {type(native).__module__}.{type(native).__qualname__}; expected a "
            "lume.model.LUMEModel or a function that makes one"
        )
    return native


def variables_of(native: Any) -> dict[str, Any]:
    """Return a LUME model's variables, and the bunches that a stage has as attributes."""
    found = dict(native.supported_variables)
    stages, classes = lume("staged_model"), lume("variables")
    if isinstance(native, stages.InitialParticlesMixIn):
        found.setdefault(INCOMING, classes.ParticleGroupVariable(name=INCOMING))
    if isinstance(native, stages.FinalParticlesMixIn):
        found.setdefault(OUTGOING, classes.ParticleGroupVariable(name=OUTGOING, read_only=True))
    return found


def current(native: Any, name: str, variable: Any) -> Any:
    """Return the value of an input now, its default where it has none yet."""
    if name not in native.supported_variables:
        return getattr(native, name, None)
    try:
        return native.get([name])[name]
    except Exception:  # a model that has not run, or holds None, refuses in its own way
        return getattr(variable, "default_value", None)
