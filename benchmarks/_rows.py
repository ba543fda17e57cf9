"""Rows: what a benchmark measures, besides its printed table, for the page that `report.py` writes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

#: Names the file that rows are added to, one JSON object a line; without it they are only printed.
FILE = "LUME_DIFF_BENCHMARK_ROWS"


@dataclass(frozen=True)
class Row:
    """One figure, or two that are compared.

    Attributes:
        table: what it belongs to.
        what: was measured.
        value: of ours.
        unit: of the values; empty for a plain number.
        peer: what it is compared with, measured in the same run; empty for nothing.
        peer_value: of the peer.
        wanted: bound of the ratio to the peer, or of the value where there is no peer; None for no goal.
        more: whether more is better.
    """

    table: str
    what: str
    value: float
    unit: str = ""
    peer: str = ""
    peer_value: float | None = None
    wanted: float | None = None
    more: bool = False

    @property
    def ratio(self) -> float | None:
        """The value over the peer's, None where there is none."""
        return self.value / self.peer_value if self.peer and self.peer_value else None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met, None where there is none."""
        measured = self.ratio if self.peer else self.value
        if self.wanted is None or measured is None:
            return None
        return measured >= self.wanted if self.more else measured <= self.wanted


def note(row: Row) -> None:
    """Keep a row for the page, where one is being written."""
    file = os.environ.get(FILE)
    if file:
        with Path(file).open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(asdict(row)) + "\n")
