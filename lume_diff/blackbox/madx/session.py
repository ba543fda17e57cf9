"""A MAD-X process with a deck loaded: watched, silenced, and replaced when it has died."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lume_diff.blackbox.codes.missing import require
from lume_diff.errors import LatticeError, SimulatorError, nearest_names

_IMPLICIT = re.compile(r"drift_\d+(\[\d+\])?|.*\$(start|end)")
_CALL = re.compile(r"\b(?:call|readtable|readmytable)\b[^;]*?\bfile\s*=\s*[\"']?([^\"';,\s]+)", re.I)
_COMPLAINT = re.compile(r"[+*=]{3,}.*\b(error|fatal|warning)\b", re.I)
_PATIENCE = 5.0
_TAIL = 12


class MADXSession:
    """Keep MAD-X running in a child process, with a deck loaded and a sequence in use.

    What it prints goes to a file, of which errors show the end. Commands that others give to ``madx`` are remembered,
    so that a new session can be brought to the same state.

    Args:
        files: the deck, called in this order, each from its own folder.
        sequence: name of the sequence; None for the one in use, or the only one.
        commands: given once the deck is loaded.

    Raises:
        MissingExtraError: if cpymad is not installed.
        LatticeError: for a deck that MAD-X does not take, or a sequence that is not there.
    """

    def __init__(self, files: Sequence[Path], sequence: str | None, commands: Sequence[str] = ()) -> None:
        madx = require("cpymad.madx", "MAD-X", 'pip install "lume_diff[madx]"')
        self._folder = tempfile.mkdtemp(prefix="madx-")
        self._log = open(os.path.join(self._folder, "madx.log"), "ab")  # noqa: SIM115 - closed by close()
        self._history: list[str] = []
        try:
            self.madx: Any = madx.Madx(stdout=self._log, stderr=self._log, history=self._history, cwd=self._folder)
        except BaseException:
            self._log.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._finalizer = weakref.finalize(self, _close, self.madx, self._log, self._folder)
        try:
            self.sequence = self._load(files, sequence)
            for command in commands:
                self.madx.input(command)
            self._history.clear()
        except BaseException:
            self.close()
            raise

    def _load(self, files: Sequence[Path], sequence: str | None) -> str:
        for file in files:
            try:
                self.madx.call(str(file), chdir=True)
            except RuntimeError as error:
                raise LatticeError(f"MAD-X does not take {str(file)!r}: {self.tail()}") from error
        known = list(self.madx.sequence)
        active = self.madx.sequence()
        if sequence is None:
            if active is None and len(known) != 1:
                raise LatticeError(f"sequence is not given and the deck has {len(known)}: {', '.join(known)}; name one")
            sequence = known[0] if active is None else active.name
        sequence = sequence.lower()
        if sequence not in known:
            nearest = nearest_names(sequence, known)
            raise LatticeError(f"sequence {sequence!r} is not in the deck{nearest}; MAD-X said: {self.tail()}")
        try:
            if active is None or active.name != sequence or not self.madx.sequence[sequence].is_expanded:
                self.madx.use(sequence)
            expanded = self.madx.sequence[sequence].is_expanded
        except RuntimeError as error:
            raise LatticeError(f"sequence {sequence!r} cannot be used: {self.tail()}") from error
        if not expanded:
            raise LatticeError(f"sequence {sequence!r} cannot be used: {self.tail()}")
        return sequence

    @property
    def commands(self) -> list[str]:
        """What others have commanded since this session began."""
        return list(self._history)

    @contextlib.contextmanager
    def own_work(self) -> Iterator[None]:
        """Keep what is commanded in a block out of ``commands``, and start a new log.

        Raises:
            SimulatorError: if MAD-X dies on it.
        """
        before = len(self._history)
        os.ftruncate(self._log.fileno(), 0)
        try:
            yield
        except RuntimeError as error:
            if bool(self.madx):
                raise
            raise SimulatorError(f"MAD-X died{self._exit_code()}: {self.tail()}") from error
        finally:
            del self._history[before:]

    def command(self, *commands: str) -> None:
        """Give commands, all in one go.

        Raises:
            SimulatorError: if MAD-X reports an error.
        """
        text = "\n".join(command.rstrip(";") + ";" for command in commands)
        if text and not self.madx.input(text):
            raise SimulatorError(f"MAD-X failed at {commands[-1].split(',')[0]!r}: {self.tail()}")

    @property
    def beam(self) -> Any:
        """The beam of the sequence."""
        return self.madx.sequence[self.sequence].beam

    def node_names(self) -> list[str]:
        """Return the nodes of the sequence in order; an element that stands there twice has one name."""
        return [name.partition("[")[0] for name in self.madx.sequence[self.sequence].expanded_element_names()]

    def element_names(self) -> list[str]:
        """Return the names of the elements, without the drifts and markers that MAD-X puts in."""
        names = self.madx.sequence[self.sequence].expanded_element_names()
        return list(dict.fromkeys(name.partition("[")[0] for name in names if not _IMPLICIT.fullmatch(name)))

    def tail(self) -> str:
        """Return the end of what MAD-X has printed, its errors if there are any."""
        self._log.flush()
        text = Path(self._log.name).read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip(" *+=-\t")]
        bad = [line for line in lines if _COMPLAINT.match(line)]
        return " | ".join(line.strip(" *+=") for line in (bad or lines)[-_TAIL:]) or "it printed nothing"

    def _exit_code(self) -> str:
        with contextlib.suppress(Exception):
            return f" with exit code {self.madx._process.wait(_PATIENCE)}"
        return ""

    def close(self) -> None:
        """End the child process."""
        self._finalizer()


def deck_files(files: Sequence[Path]) -> list[Path]:
    """Return the files of a deck and those that they call, as far as they are there."""
    found: dict[Path, None] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop(0)
        if file in found or not file.is_file():
            continue
        found[file] = None
        waiting += [file.parent / name for name in _CALL.findall(file.read_text(errors="replace"))]
    return list(found)


def _close(madx: Any, log: Any, folder: str) -> None:
    process = madx._process
    try:
        if process.poll() is None:
            with contextlib.suppress(Exception):
                madx._service.close()
            try:
                process.wait(_PATIENCE)
            except Exception:
                process.kill()
                process.wait()
        else:
            with contextlib.suppress(Exception):
                madx._service.close()
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)
