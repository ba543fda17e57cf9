"""WriteLog: what clients have written, and what was refused them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import numpy as np

from lume_diff.control.readings import sendable
from lume_diff.ioc.json_lines import FACTS, JSONLines

LOG = logging.getLogger("lume_diff.ioc.writes")
_MOST_SHOWN = 16  # elements of an array, beyond which only its shape is told
_MOST_LETTERS = 200


class WriteLog:
    """Tell who wrote what: to the logger ``lume_diff.ioc.writes``, and to a file of JSON lines.

    A line has ``outcome`` (accepted, refused or failed), ``client``, ``name``, ``old``, ``new``, and ``cycle`` or
    ``reason``; see ``JSONLines`` for the rest. The client is who it claims to be.

    Args:
        path: of the file; None for the logger only.
        prefix: of the names.
        max_bytes: of one file, which is then renamed to ``.1``, and so on.
        keep: how many renamed ones there are at most.
    """

    def __init__(self, path: Path | None = None, prefix: str = "", max_bytes: int = 10_000_000, keep: int = 5) -> None:
        self._prefix = prefix
        self._file: logging.Handler | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RotatingFileHandler(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8")
            self._file.setFormatter(JSONLines())

    def accepted(self, client: str, name: str, old: Any, new: Any, cycle: int) -> None:
        """Note a write that has been published."""
        self._note(logging.INFO, "accepted", client=client, name=name, old=old, new=new, cycle=cycle)

    def refused(self, client: str, values: Mapping[str, Any], shown: Mapping[str, Any], reason: object) -> None:
        """Note what was refused on arrival; ``shown`` are the values that stay."""
        self._notes("refused", client, values, shown, reason)

    def failed(self, client: str, values: Mapping[str, Any], shown: Mapping[str, Any], reason: object) -> None:
        """Note what the model could not do; ``shown`` are the values that stay."""
        self._notes("failed", client, values, shown, reason)

    def asked(self, client: str, what: str, cycle: int) -> None:
        """Note a reset or a restored snapshot."""
        self._note(logging.INFO, "accepted", client=client, name=what, cycle=cycle)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _notes(
        self, outcome: str, client: str, values: Mapping[str, Any], shown: Mapping[str, Any], reason: object
    ) -> None:
        for name, value in values.items():
            facts = {"client": client, "name": name, "old": shown.get(name), "new": value, "reason": str(reason)}
            self._note(logging.WARNING, outcome, **facts)

    def _note(self, level: int, outcome: str, **facts: Any) -> None:
        plain = {"outcome": outcome, **{key: _short(value) for key, value in facts.items()}}
        plain["name"] = self._prefix + str(plain["name"])
        message = "%(outcome)s %(client)s %(name)s" + (": %(old)s -> %(new)s" if "new" in plain else "")
        if "reason" in plain:
            message += " (%(reason)s)"
        record = LOG.makeRecord(LOG.name, level, __file__, 0, message, (plain,), None, extra={FACTS: plain})
        if LOG.isEnabledFor(level):
            LOG.handle(record)
        if self._file is not None:
            self._file.handle(record)


def _short(value: Any) -> Any:
    """Return a value as a log shows it."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= _MOST_SHOWN else f"array of shape {value.shape}"
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float):
        return value
    text = sendable(str(value))
    return text if len(text) <= _MOST_LETTERS else text[:_MOST_LETTERS] + "..."
