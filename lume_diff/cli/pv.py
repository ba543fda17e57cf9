"""``lume-diff pv``: read, write and follow process variables, on every protocol."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from lume_diff.cli.terminal import CHECK_FAILED, say
from lume_diff.errors import ControlError, ValidationError

if TYPE_CHECKING:
    from lume_diff.control import Reading
    from lume_diff.control.client import ControlClient

app = typer.Typer(
    help="Read, write and follow process variables. The exit code is 1 if one did not answer or was refused.",
    no_args_is_help=True,
)

NAMES = typer.Argument(metavar="NAME...", help="Of process variables, with the prefix.", show_default=False)
PROTOCOL = typer.Option("pva", "--protocol", "-p", help="'pva' or 'ca'.")
TIMEOUT = typer.Option(5.0, "--timeout", "-t", min=0.0, help="How long to wait for an answer [s].")
JSON = typer.Option(False, "--json", help="Print JSON, one object a line.")
_FIELDS = ("DESC", "EGU", "PREC", "DRVL", "DRVH", "LOPR", "HOPR", "LOLO", "LOW", "HIGH", "HIHI")
_MOST_SHOWN = 8  # elements of an array
_TRUE, _FALSE = ("true", "on", "yes", "1"), ("false", "off", "no", "0")


@app.command("get")
def get(names: list[str] = NAMES, protocol: str = PROTOCOL, timeout: float = TIMEOUT, as_json: bool = JSON) -> None:
    """Print values, with time and alarm."""
    with _client(protocol) as client:
        found = client.get(names, timeout)
    for name in names:
        typer.echo(_line(name, found[name], as_json))
    _fail_if(not _has_answered(found[name]) for name in names)


@app.command("put", context_settings={"ignore_unknown_options": True})  # such as -0.8
def put(
    name: str = typer.Argument(help="Of the process variable.", show_default=False),
    value: str = typer.Argument(help="A number, word or JSON list.", show_default=False),
    protocol: str = PROTOCOL,
    timeout: float = TIMEOUT,
) -> None:
    """Write a value and wait until it is published: lume-diff pv put QUAD:1:BCTRL -0.8"""
    with _client(protocol) as client:
        old = client.get([name], timeout)[name]
        if not _has_answered(old):
            say(f"error: {name} did not answer within {timeout:g} s", "red")
            raise typer.Exit(CHECK_FAILED)
        wanted = _parsed(name, value, old.value)
        try:
            client.put({name: wanted}, timeout)
        except ControlError as error:
            say(f"error: {error}", "red")
            raise typer.Exit(CHECK_FAILED) from None
        new = client.get([name], timeout)[name]
    typer.echo(f"{name} {_short(old.value)} -> {_short(new.value)}")


@app.command("monitor")
def monitor(
    names: list[str] = NAMES,
    protocol: str = PROTOCOL,
    count: int = typer.Option(0, "--count", "-n", min=0, help="End after so many lines; 0: never."),
    seconds: float | None = typer.Option(None, "--seconds", min=0.0, help="End after so long [s]."),
    as_json: bool = JSON,
) -> None:
    """Print every change until Ctrl-C."""
    ended, lock, seen = threading.Event(), threading.Lock(), 0
    known: set[str] = set()

    def show(name: str, reading: Reading) -> None:
        nonlocal seen
        with lock:
            if _has_answered(reading):
                known.add(name)
            if not ended.is_set() and name in known:
                typer.echo(_line(name, reading, as_json))
                seen += 1
                if seen == count:
                    ended.set()

    with _client(protocol) as client:
        following = client.monitor(names, show)
        try:
            ended.wait(seconds)
        except KeyboardInterrupt:
            ended.set()
        following.close()
    _fail_if([seen < count])


@app.command("info")
def info(
    name: str = typer.Argument(help="Of the process variable.", show_default=False),
    protocol: str = PROTOCOL,
    timeout: float = TIMEOUT,
) -> None:
    """Print what is known of a variable: type, description, unit, limits, alarm."""
    fields = {field: f"{name}.{field}" for field in _FIELDS}
    with _client(protocol) as client:
        found = client.get([name], timeout)[name]
        if _has_answered(found):
            limits = client.get(list(fields.values()), min(timeout, 1.0))
    typer.echo(_line(name, found, False))
    if not _has_answered(found):
        raise typer.Exit(CHECK_FAILED)
    typer.echo(f"  type {_kind(found.value)}")
    is_float = isinstance(found.value, float)
    for field, full in fields.items():
        if field == "PREC" and not is_float:
            continue
        if _has_answered(limits[full]) and limits[full].value not in ("", None, math.inf, -math.inf):
            typer.echo(f"  {field} {_short(limits[full].value)}")


@app.command("list")
def list_(
    prefix: str = typer.Argument("", help="Of the served model.", show_default=False),
    protocol: str = PROTOCOL,
    timeout: float = TIMEOUT,
) -> None:
    """Print the names that a server of lume-diff has under a prefix."""
    name = f"{prefix}SERVER:PVS"
    with _client(protocol) as client:
        found = client.get([name], timeout)[name]
    if not isinstance(found.value, str):
        say(f"error: {name} did not answer within {timeout:g} s: no model of lume-diff is served there", "red")
        raise typer.Exit(CHECK_FAILED)
    for one in found.value.split("\n"):
        typer.echo(prefix + one)


def _client(protocol: str) -> ControlClient:
    from lume_diff.control import client_of

    return client_of(protocol)


def _has_answered(reading: Reading) -> bool:
    from lume_diff.control import Condition

    return reading.condition is not Condition.DISCONNECTED


def _fail_if(mistakes: Any) -> None:
    if any(mistakes):
        raise typer.Exit(CHECK_FAILED)


def _line(name: str, reading: Reading, as_json: bool) -> str:
    """Return a reading as one line."""
    when = datetime.fromtimestamp(reading.time, UTC).isoformat(timespec="milliseconds")
    if as_json:
        facts = {"name": name, "value": _listed(reading.value), "time": when, "cycle": reading.cycle}
        return json.dumps({**facts, "severity": reading.severity.name, "message": reading.message})
    alarm = "" if not reading.severity else f" {reading.severity.name} {reading.message}".rstrip()
    return f"{name} {when} {_short(reading.value)}{alarm}"


def _listed(value: Any) -> Any:
    """Return a value as JSON has it, which knows no number that is not finite: null stands for it."""
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, list):
        return [_listed(one) for one in plain]
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _short(value: Any) -> str:
    """Return a value as a word, or the beginning of an array."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_short(column)}" for key, column in value.items()) + "}"
    if hasattr(value, "shape") and value.shape:
        is_text = value.dtype.kind in "UO"  # such as a column of names
        head = " ".join(str(one) if is_text else f"{one:.9g}" for one in value.reshape(-1)[:_MOST_SHOWN])
        shape = "x".join(map(str, value.shape))
        return f"[{head}{' ...' if value.size > _MOST_SHOWN else ''}] ({shape})"
    return str(value)


def _kind(value: Any) -> str:
    if hasattr(value, "shape") and value.shape:
        return f"array of {'x'.join(map(str, value.shape))}"
    return "table" if isinstance(value, dict) else type(value).__name__


def _parsed(name: str, text: str, now: Any) -> Any:
    """Return what was typed as the type of the value that there is now.

    Raises:
        ValidationError: if it cannot be.
    """
    try:
        if isinstance(now, bool):
            return _truth(text)
        if isinstance(now, int | float):
            return type(now)(text) if not text.lstrip("+-").isdigit() else int(text)
        if isinstance(now, str):
            return text
        return _numbers(json.loads(text))
    except ValueError:
        raise ValidationError(f"{name} takes {_kind(now)}; {text!r} is none") from None


def _truth(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text.lower() in _TRUE


def _numbers(found: Any) -> Sequence[Any]:
    if not isinstance(found, list):
        raise ValueError(found)
    import numpy as np

    return np.asarray(found, dtype=np.float64)  # type: ignore[return-value]
