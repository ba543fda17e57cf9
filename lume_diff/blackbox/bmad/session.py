"""The one Tao of a process, with a deck loaded: commands that raise, and numbers in binary."""

from __future__ import annotations

import ctypes.util
import functools
import importlib.util
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.blackbox.bmad.deck import is_initialisation
from lume_diff.blackbox.codes.missing import require
from lume_diff.errors import LatticeError, MissingExtraError, SimulatorError, ValidationError

_INSTALL = (
    'pip install "lume_diff[bmad]" for its Python package and "conda install -c conda-forge bmad" for Bmad itself, or '
    '"conda install -c conda-forge bmad pytao" for both'
)
_TAIL = 12
_READS = ("pipe ", "python ", "show ")
#: What Tao prints where it leaves off tracking a bunch, and keeps old bunches behind that place.
_GAVE_UP = re.compile(r"WILL STOP TRACKING|NO BEAM TRACKING|NO TRACKING DONE", re.I)
#: Tao is one per process: who has it, and whether it was started here.
_LOCK = threading.RLock()
_HOLDER: list[weakref.ReferenceType[TaoSession]] = []
_STARTED: list[bool] = []


def number(value: float) -> str:
    """Return a number as Tao reads it, all digits kept."""
    return format(float(value), ".17g")


def check_installed() -> None:
    """Raise unless Tao's Python package and its library are here; loads neither.

    Raises:
        MissingExtraError: with the way to get them.
    """
    if importlib.util.find_spec("pytao") is None:
        require("pytao", "Bmad", _INSTALL)
    given = os.environ.get("PYTAO_LIB_PATH", "")
    root = os.environ.get("ACC_ROOT_DIR", "")
    places = [given] if given else [os.path.join(root, "production", "lib")] if root else []
    for place in places:
        names = [place, *(os.path.join(place, f"libtao.{ending}") for ending in ("so", "dylib", "dll"))]
        if any(map(os.path.isfile, names)):
            return
    if given or ctypes.util.find_library("tao") is None:
        raise MissingExtraError(_no_library("it was not found"))


def _no_library(why: str) -> str:
    return (
        f"Bmad is not installed: Python's pytao is there, Tao's shared library libtao is not ({why}); {_INSTALL}, or "
        "set PYTAO_LIB_PATH to where libtao is"
    )


class TaoSession:
    """Hold Tao with a deck loaded.

    What others command through ``tao`` is remembered.

    Args:
        deck: an initialisation file of Tao or a lattice.

    Raises:
        MissingExtraError: if pytao or Tao's library is not there.
        ValidationError: if this process has a Tao already.
        LatticeError: for a deck that Tao does not take.
    """

    def __init__(self, deck: Path) -> None:
        pytao = require("pytao", "Bmad", _INSTALL)
        self._said: deque[str] = deque(maxlen=_TAIL)
        self._history: list[str] = []
        with _LOCK:
            _check_free(pytao)
            self.tao: Any = self._start(pytao, deck)
            _HOLDER[:] = [weakref.ref(self)]
        self.folder = Path(tempfile.mkdtemp(prefix="tao-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, str(self.folder), True)
        self._error = pytao.TaoCommandError
        self._cmd, self._cmd_real, self._cmd_integer = self.tao.cmd, self.tao.cmd_real, self.tao.cmd_integer
        for name in ("cmd", "cmd_real", "cmd_integer"):
            setattr(self.tao, name, self._recorded(getattr(self.tao, name)))

    def _start(self, pytao: Any, deck: Path) -> Any:
        options: dict[str, Any] = {"init_file" if is_initialisation(deck) else "lattice_file": str(deck)}
        if "lattice_file" in options:
            options |= {"noinit": True, "nostartup": True}
        try:
            tao = pytao.Tao(noplot=True, **options)
        except pytao.TaoSharedLibraryNotFoundError as error:
            raise MissingExtraError(_no_library(str(error))) from error
        except OSError as error:
            raise MissingExtraError(_no_library(f"it does not load: {error}")) from error
        except pytao.TaoException as error:
            _STARTED[:] = [True]
            raise LatticeError(f"Tao does not take {str(deck)!r}: {_short(str(error).splitlines())}") from error
        _STARTED[:] = [True]
        self._said.extend(tao.init_output)
        return tao

    def _recorded(self, function: Any) -> Any:
        @functools.wraps(function)
        def recorded(cmd: str, *args: Any, **kwargs: Any) -> Any:
            if not cmd.lstrip().lower().startswith(_READS):
                self._history.append(cmd)
            return function(cmd, *args, **kwargs)

        return recorded

    @property
    def history(self) -> list[str]:
        """What others have commanded since the deck was loaded."""
        return self._history

    @property
    def alive(self) -> bool:
        """Whether Tao is still this session's."""
        return bool(_HOLDER) and _HOLDER[0]() is self

    # -- commands and reads ----------------------------------------------------------------------------------

    def command(self, *commands: str) -> None:
        """Give commands, one after the other.

        Raises:
            SimulatorError: if Tao reports an error, or leaves off tracking a bunch.
        """
        for command in commands:
            lines = self._ask(self._cmd, command)
            if any(_GAVE_UP.search(line) for line in lines):
                raise SimulatorError(f"Tao stopped tracking at {command!r}: {_short(lines)}")

    def text(self, query: str) -> list[str]:
        """Return what Tao answers as lines; its numbers are rounded."""
        return self._ask(self._cmd, query)

    def reals(self, query: str, count: int | None = None, *, finite: bool = True) -> np.ndarray:
        """Return numbers that Tao answers, in binary.

        Args:
            query: what to ask.
            count: how many are due; None for any number.
            finite: whether all must be finite.

        Raises:
            SimulatorError: for another number of them, or for NaN and infinity.
        """
        found = np.asarray(self._ask(self._cmd_real, query), dtype=float)
        self._check(query, found, count)
        if finite and not np.isfinite(found).all():
            raise SimulatorError(f"Tao gave numbers for {query!r} that are not finite: {self.tail()}")
        return found

    def integers(self, query: str, count: int | None = None) -> np.ndarray:
        """Return whole numbers that Tao answers, in binary.

        Raises:
            SimulatorError: unless there are ``count``.
        """
        found = np.asarray(self._ask(self._cmd_integer, query), dtype=int)
        self._check(query, found, count)
        return found

    def _ask(self, function: Any, command: str) -> Any:
        if not self.alive:
            raise SimulatorError("Tao, of which a process has one only, was closed or taken by another model")
        try:
            answer = function(command)
        except self._error as error:
            said = str(getattr(error, "tao_output", "") or error).splitlines()
            self._said.extend(said)
            raise SimulatorError(f"Tao failed at {command!r}: {_short(said)}") from error
        if isinstance(answer, list):
            self._said.extend(answer)
        return answer

    def _check(self, query: str, found: np.ndarray, count: int | None) -> None:
        if count is not None and found.size != count:
            raise SimulatorError(f"Tao gave {found.size} numbers for {query!r} and {count} were due: {self.tail()}")

    def tail(self) -> str:
        """Return the end of what Tao has said."""
        return _short(list(self._said))

    def close(self) -> None:
        """Let another session have Tao."""
        with _LOCK:
            if self.alive:
                _HOLDER.clear()
        self._finalizer()


def _check_free(pytao: Any) -> None:
    """Raise if this process has a Tao that somebody uses."""
    holder = _HOLDER[0]() if _HOLDER else None
    foreign = bool(getattr(pytao.Tao, "_ctypes_initialized_", False)) and not _STARTED
    if holder is not None or foreign:
        whose = "another model" if holder is not None else "code that is not lume_diff's"
        raise ValidationError(
            f"this process has a Tao already, of {whose}, and a second one would take its place: build this model with "
            "workers=1, or close the other one"
        )


def _short(lines: Sequence[str]) -> str:
    kept = [line.strip() for line in lines if line.strip()]
    return " | ".join(kept[-_TAIL:]) or "it said nothing"
