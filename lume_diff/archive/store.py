"""RunArchive: a durable store of simulator runs in one SQLite file that several processes can share."""

from __future__ import annotations

import importlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lume_diff.archive.values import pack, run_key, summary, unpack
from lume_diff.errors import MissingExtraError, ValidationError

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY, identity TEXT NOT NULL, status TEXT NOT NULL, message TEXT NOT NULL,
    inputs BLOB NOT NULL, outputs BLOB, finished REAL NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Run:
    """One run as it is kept.

    Attributes:
        key: of code, deck, seed and inputs.
        identity: what the simulator was.
        status: ``"done"`` or ``"failed"``.
        message: why it failed.
        inputs, outputs: plain values; a failed run has no outputs.
        finished: when [s since 1970].
        seconds: how long it took.
    """

    key: str
    identity: str
    status: str
    message: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    finished: float
    seconds: float


class RunArchive:
    """Keep every finished run, so that none is made twice, not even after a kill.

    A run is on disk when ``put`` returns. Failed runs are kept for people to see, and never given back by ``get``.
    Several processes may use one file on a local disk; network file systems do not lock well enough.

    Args:
        path: of the SQLite file, made if it is not there.

    Raises:
        ValidationError: for a file that is something else.

    Example:
        >>> import tempfile, os
        >>> archive = RunArchive(os.path.join(tempfile.mkdtemp(), "runs.db"))
        >>> archive.put("code 1.0", {"a": 1.0}, {"y": 2.0})
        >>> archive.get("code 1.0", {"a": 1.0}, ["y"])
        {'y': 2.0}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._local = threading.local()
        self._connect()

    def _connect(self) -> sqlite3.Connection:
        """Return this thread's connection in this process."""
        kept = getattr(self._local, "connection", None)
        if kept is not None and self._local.process == os.getpid():
            return kept
        try:
            connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, _VERSION):
                raise ValidationError(
                    f"archive {str(self.path)!r} has format {version}, expected {_VERSION}: use another file"
                )
            connection.executescript(_SCHEMA)
            connection.execute(f"PRAGMA user_version={_VERSION}")
        except sqlite3.Error as error:
            raise ValidationError(
                f"archive {str(self.path)!r} cannot be opened as an SQLite file ({error}): check the path, or name a "
                "file that does not exist yet"
            ) from error
        self._local.connection, self._local.process = connection, os.getpid()
        return connection

    # -- runs ------------------------------------------------------------------------------------------------

    def get(self, identity: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any] | None:
        """Return the named outputs of a finished run, or None if it was not made, failed, or lacks one of them.

        Args:
            identity: what the simulator is, see ``Simulator.identity``.
            inputs: plain values of the run.
            outputs: names of what is wanted; what else the run gave is returned too.
        """
        row = (
            self._connect()
            .execute("SELECT outputs FROM runs WHERE key = ? AND status = 'done'", (run_key(identity, inputs),))
            .fetchone()
        )
        if row is None:
            return None
        found = unpack(row[0])
        return found if all(name in found for name in outputs) else None

    def put(self, identity: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any], seconds: float = 0.0) -> None:
        """Keep a finished run; outputs that the same run gave before are kept too.

        Args:
            identity, inputs: of the run, see ``get``.
            outputs: plain values that it gave.
            seconds: how long it took.

        Raises:
            ValidationError: for a value that cannot be kept.
        """
        key = run_key(identity, inputs)
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute("SELECT outputs FROM runs WHERE key = ? AND status = 'done'", (key,)).fetchone()
            merged = {**(unpack(row[0]) if row else {}), **outputs}
            self._write(connection, key, identity, "done", "", inputs, pack(merged), seconds)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    def put_failure(self, identity: str, inputs: Mapping[str, Any], message: str, seconds: float = 0.0) -> None:
        """Keep a failed run, unless the same run has succeeded.

        Args:
            identity, inputs: of the run, see ``get``.
            message: why it failed.
            seconds: how long it took.
        """
        key = run_key(identity, inputs)
        connection = self._connect()
        connection.execute("BEGIN IMMEDIATE")
        try:
            done = connection.execute("SELECT 1 FROM runs WHERE key = ? AND status = 'done'", (key,)).fetchone()
            if done is None:
                self._write(connection, key, identity, "failed", message, inputs, None, seconds)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    @staticmethod
    def _write(
        connection: sqlite3.Connection,
        key: str,
        identity: str,
        status: str,
        message: str,
        inputs: Mapping[str, Any],
        outputs: bytes | None,
        seconds: float,
    ) -> None:
        connection.execute(
            "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (key, identity, status, message, pack(inputs), outputs, time.time(), seconds),
        )

    def inputs_of(self, identity: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give key and inputs of the finished runs of one simulator, the oldest first."""
        query = "SELECT key, inputs FROM runs WHERE identity = ? AND status = 'done' ORDER BY finished"
        for key, inputs in self._connect().execute(query, (identity,)):
            yield key, unpack(inputs)

    def __iter__(self) -> Iterator[Run]:
        """Give all runs, the oldest first."""
        rows = self._connect().execute(
            "SELECT key, identity, status, message, inputs, outputs, finished, seconds FROM runs ORDER BY finished"
        )
        for key, identity, status, message, inputs, outputs, finished, seconds in rows:
            plain = {} if outputs is None else unpack(outputs)
            yield Run(key, identity, status, message, unpack(inputs), plain, finished, seconds)

    def __len__(self) -> int:
        (count,) = self._connect().execute("SELECT COUNT(*) FROM runs").fetchone()
        return int(count)

    # -- what was learned ------------------------------------------------------------------------------------

    def remember(self, key: str, content: Any) -> None:
        """Keep a fact, such as a measured noise level; ``key`` finds it again, ``content`` is what JSON can hold."""
        self._connect().execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(content)))

    def recall(self, key: str) -> Any:
        """Return a fact, or None."""
        row = self._connect().execute("SELECT content FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    # -- for people ------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Return all runs as flat rows: time, status, seconds, inputs, outputs, message."""
        return [
            {
                "finished": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(run.finished)),
                "status": run.status,
                "seconds": run.seconds,
                **summary(run.inputs),
                **summary(run.outputs),
                "message": run.message,
                "identity": run.identity,
            }
            for run in self
        ]

    def frame(self) -> Any:
        """Return all runs as a ``pandas.DataFrame``.

        Raises:
            MissingExtraError: without pandas.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise MissingExtraError("a data frame needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.rows())

    def close(self) -> None:
        """Close this thread's connection."""
        kept = getattr(self._local, "connection", None)
        if kept is not None:
            kept.close()
            self._local.connection = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]
