"""States from an archiver: a small HTTP server answers as the EPICS Archiver Appliance does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from lume_diff.control import Condition, Severity, archived_state
from lume_diff.errors import ControlError, ValidationError

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SAMPLES = {  # seconds from noon, value, severity
    "Q1": [(-3600.0, 1.0, 0), (-0.25, 1.5, 0), (60.0, 2.0, 0)],
    "QUAD:A:BCTRL": [(-86400.0, -0.8, 0)],
    "LOST": [(-10.0, 3.0, 3904)],
    "LATE": [(10.0, 1.0, 0)],
    "RAMP": [(-1.0, [1.0, 2.0], 1)],
}


class Appliance(BaseHTTPRequestHandler):
    """Answers with the last sample before ``from`` and those up to ``to``."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if parts.path != "/retrieval/data/getData.json" or query["pv"] == "BROKEN":
            self.send_error(500)
            return
        if query["pv"] == "STRANGE":
            self._answer([{"data": [{"secs": 0}]}])
            return
        if query["pv"] not in SAMPLES:
            self.send_error(404)
            return
        begin, end = (datetime.fromisoformat(query[key]).timestamp() - NOON.timestamp() for key in ("from", "to"))
        rows = SAMPLES[query["pv"]]
        before = [row for row in rows if row[0] <= begin][-1:]
        chosen = before + [row for row in rows if begin < row[0] <= end]
        data = [self._sample(*row) for row in chosen]
        self._answer([{"meta": {"name": query["pv"], "PREC": "3"}, "data": data}] if data else [])

    def _answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    @staticmethod
    def _sample(offset: float, value: Any, severity: int) -> dict[str, Any]:
        moment = NOON.timestamp() + offset
        return {
            "secs": int(moment),
            "nanos": round((moment % 1) * 1e9),
            "val": value,
            "severity": severity,
            "status": 0,
        }

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture(scope="module")
def appliance() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Appliance) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/retrieval"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("at", [NOON, NOON.isoformat(), NOON.timestamp(), NOON.astimezone().isoformat()], ids=repr)
def test_the_last_sample_at_a_time_is_taken(appliance, at):
    found = archived_state(appliance, ["Q1", "QUAD:A:BCTRL", "RAMP"], at)
    assert {name: reading.value for name, reading in found.items()} == {
        "Q1": 1.5,
        "QUAD:A:BCTRL": -0.8,
        "RAMP": [1.0, 2.0],
    }
    assert found["Q1"].time == pytest.approx(NOON.timestamp() - 0.25, abs=1e-6)
    assert (found["Q1"].severity, found["RAMP"].severity) == (Severity.NO_ALARM, Severity.MINOR)


def test_earlier_is_earlier(appliance):
    assert archived_state(appliance, ["Q1"], NOON - timedelta(minutes=5))["Q1"].value == 1.0


@pytest.mark.parametrize("name", ["LOST", "LATE", "UNKNOWN"])
def test_what_was_away_or_is_not_archived_is_invalid(appliance, name):
    reading = archived_state(appliance, [name], NOON)[name]
    assert reading.severity is Severity.INVALID
    assert reading.condition in (Condition.UNTRUSTED, Condition.FAILED)
    assert name in reading.message


def test_an_archiver_that_fails_is_an_error_with_its_address(appliance):
    with pytest.raises(ControlError, match=r"BROKEN.*500"):
        archived_state(appliance, ["Q1", "BROKEN"], NOON)
    with pytest.raises(ControlError, match=r"STRANGE.*not the JSON.*'val'"):
        archived_state(appliance, ["STRANGE"], NOON)


@pytest.mark.parametrize(
    "url, at, phrase",
    [
        ("file:///etc/passwd", NOON, "expected http"),
        ("http://127.0.0.1:1/retrieval", "noon", "expected a time"),
        ("http://127.0.0.1:1/retrieval", "2026-11-22T12:00:00", "no time zone"),
        ("http://127.0.0.1:1/retrieval", 1e30, "expected a time"),
        ("http://127.0.0.1:1/retrieval", float("nan"), "expected a time"),
    ],
    ids=["file", "word", "zone", "far", "NaN"],
)
def test_what_cannot_be_asked_is_refused(url, at, phrase):
    with pytest.raises(ValidationError, match=phrase):
        archived_state(url, ["Q1"], at)
