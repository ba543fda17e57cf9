"""Logs as JSON, one object a line, for programs that read them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

#: Attribute of a log record that holds its facts by name.
FACTS = "facts"


class JSONLines(logging.Formatter):
    """Format a log record as one line of JSON.

    Every line has ``time`` (ISO 8601, UTC), ``level``, ``logger`` and ``message``, ``traceback`` where there is one,
    and what the record was given as ``extra={"facts": {...}}``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        found = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)
