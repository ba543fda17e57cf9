"""What an EPICS Archiver Appliance has kept of process variables."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from lume_diff.control.readings import Condition, Reading, Severity
from lume_diff.errors import ControlError, ValidationError

_AT_ONCE = 8  # requests


def archived_state(
    url: str, names: Sequence[str], at: datetime | str | float, timeout: float = 30.0
) -> dict[str, Reading]:
    """Return what process variables showed at some time, from an EPICS Archiver Appliance.

    Args:
        url: of the retrieval service, such as ``http://archiver:17668/retrieval``.
        names: of the process variables.
        at: when; ISO 8601, seconds since 1970, or a time with its zone.
        timeout: for each variable [s].

    Returns:
        Readings by name; one that the appliance does not have, or had not at that time, is INVALID without a value.

    Raises:
        ValidationError: for a time that is none, or has no zone, or an address that is not HTTP.
        ControlError: if the appliance does not answer, or with something else than samples.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValidationError(f"archiver {url!r}; expected http://host:port/retrieval")
    when = _moment(at)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda name: _one(url.rstrip("/"), name, when, timeout), names)
        return dict(zip(names, found, strict=True))


def _moment(at: datetime | str | float) -> datetime:
    try:
        if isinstance(at, int | float):
            return datetime.fromtimestamp(at, UTC)
        when = datetime.fromisoformat(at) if isinstance(at, str) else at
    except (ValueError, OverflowError, OSError):
        raise ValidationError(f"at={at!r}; expected a time such as '2026-11-22T08:00:00Z'") from None
    if when.tzinfo is None:
        raise ValidationError(f"at={at!r} has no time zone; write '...Z' for UTC")
    return when.astimezone(UTC)


def _one(url: str, name: str, when: datetime, timeout: float) -> Reading:
    stamp = when.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    query = urllib.parse.urlencode({"pv": name, "from": stamp, "to": stamp})
    address = f"{url}/data/getData.json?{query}"
    try:
        with urllib.request.urlopen(address, timeout=timeout) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 404:  # it has never archived that
            return _none(name, "the archiver does not have it")
        raise ControlError(f"{address}: the archiver answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise ControlError(f"{address}: no samples: {error}") from None
    try:
        samples = [
            (one["secs"] + 1e-9 * one.get("nanos", 0), one["val"], int(one.get("severity", 0)))
            for entry in content
            for one in entry["data"]
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise ControlError(f"{address}: this is not the JSON of an archiver appliance ({error!r})") from None
    # The appliance begins with the last sample before the time that is asked for.
    samples = [sample for sample in samples if sample[0] <= when.timestamp() + 1e-3]
    if not samples:
        return _none(name, f"the archiver has no sample at {stamp} or before")
    return _reading(name, *max(samples, key=lambda sample: sample[0]))


def _reading(name: str, moment: float, value: Any, alarm: int) -> Reading:
    # Beyond INVALID the appliance has numbers for a variable that was disconnected or not archived.
    severity = Severity(min(alarm, Severity.INVALID))
    if severity is Severity.INVALID:
        return Reading(value, moment, 0, severity, Condition.FAILED, f"{name} was INVALID when it was archived")
    condition = Condition.FINE if severity is Severity.NO_ALARM else Condition.FAILED
    return Reading(value, moment, 0, severity, condition)


def _none(name: str, why: str) -> Reading:
    return Reading(None, time.time(), 0, Severity.INVALID, Condition.UNTRUSTED, f"{name}: {why}")
