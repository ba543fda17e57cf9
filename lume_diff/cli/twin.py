"""``lume-diff twin``: a model that follows a machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lume_diff.cli.loading import CHANGES, MACHINE_TRUST, changes, split_commas
from lume_diff.cli.stopping import until_stopped
from lume_diff.cli.terminal import CHECK_FAILED, Column, console, say, table
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from threading import Event

    from lume_diff.ioc import LiveTwin

_LOOK = 0.5  # [s] between looks at what is followed
_FIRST = 3.0  # [s] that the machine has to answer before it is called away


def twin(
    machine: Path = typer.Argument(metavar="MACHINE.yaml", help="The machine file.", show_default=False),
    remote: list[str] = typer.Option(
        ..., "--remote", metavar="INPUT[=PV],...", help="What follows what; 'same' for all inputs.", show_default=False
    ),
    client: str = typer.Option("pva", "--client", metavar="PROTOCOL", help="To follow with: pva or ca."),
    once: bool = typer.Option(False, "--once", help="Read everything once, print the outputs and end."),
    on_request: bool = typer.Option(
        False, "--on-request", help="With --prefix: read everything when a client writes true to TWIN:UPDATE."
    ),
    state: Path | None = typer.Option(None, "--state", metavar="FILE", help="--once, from a saved state (YAML, CSV)."),
    archiver: str | None = typer.Option(None, "--archiver", metavar="URL", help="--once, from an archiver, with --at."),
    at: str | None = typer.Option(None, "--at", metavar="TIME", help="With --archiver: 2026-11-22T08:00:00Z."),
    write_back: list[str] = typer.Option([], "--write-back", metavar="OUTPUT=PV", help="Results that are written."),
    max_age: float | None = typer.Option(None, "--max-age", metavar="S", help="Oldest time stamp that is trusted."),
    prefix: str | None = typer.Option(None, "--prefix", help="Serve the twin, with this before every name."),
    protocol: list[str] = typer.Option(["pva,ca"], "--protocol", help="To serve it by, with --prefix."),
    interface: str = typer.Option("127.0.0.1", "--interface", help="To serve it on, with --prefix."),
    isolation: str = typer.Option("process", "--isolation", help="Where the model runs: process or thread."),
    timeout: float | None = typer.Option(None, "--timeout", metavar="S", help="Longest evaluation, in a process."),
    change: list[str] = CHANGES,
    trust: bool | None = MACHINE_TRUST,
) -> None:
    """Follow a machine with a model, until Ctrl-C, and serve it where asked."""
    if (archiver is None) != (at is None):
        raise ValidationError("--archiver and --at belong together")
    if state is not None and archiver is not None:
        raise ValidationError("--state and --archiver are two sources; give one")
    if on_request and (prefix is None or once or state is not None or archiver is not None):
        raise ValidationError("--on-request is for a twin that is served and goes on: it needs --prefix, and no --once")
    from lume_diff.ioc import LiveTwin
    from lume_diff.machine import load_model

    is_once = once or state is not None or archiver is not None
    model = load_model(machine, trust=trust, changes=changes(change))
    following = LiveTwin(
        model,
        _links(remote),
        "snapshot" if is_once or on_request else "monitor",
        client,
        write_back=dict(_pair(text, "--write-back") for text in write_back),
        max_age=max_age,
        prefix=prefix or "",
        protocols=() if prefix is None else split_commas(protocol),
        interface=interface,
        isolation=isolation,
        timeout=timeout,
    )
    if is_once:
        with following:
            _once(following, state, archiver, at)
        return
    with until_stopped() as stopped, following:
        if prefix is not None:
            served = following.server.served
            typer.echo(
                f"{machine}: served under {prefix} by {' and '.join(split_commas(protocol))} on {served.interface}"
            )
        _follow(following, stopped)


def _links(given: Iterable[str]) -> dict[str, str] | str:
    """Return what ``--remote`` says; a name alone is that of both."""
    parts = split_commas(given)
    if parts == ["same"]:
        return "same"
    links: dict[str, str] = {}
    for text in parts:
        name, remote = _pair(text, "--remote") if "=" in text else (text, text)
        if name in links:
            raise ValidationError(f"--remote: {name!r} follows both {links[name]!r} and {remote!r}")
        links[name] = remote
    return links


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, remote = (part.strip() for part in text.partition("="))
    if not (name and equals and remote):
        raise ValidationError(f"{option} {text!r}: expected NAME=PV")
    return name, remote


def _once(following: LiveTwin, state: Path | None, archiver: str | None, at: str | None) -> None:
    """Evaluate one state of the machine and print the numbers that come out."""
    from lume_diff.control import Severity, archived_state

    if state is not None:
        report = following.load(state)
    elif archiver is not None and at is not None:
        report = following.load(archived_state(archiver, following.remotes, at))
    else:
        report = following.update()
    variables = following.model.supported_variables
    rows = []
    for name, variable in variables.items():
        reading = following.get(name)
        if variable.read_only and isinstance(reading.value, float | int | str):
            alarm = "" if reading.severity is Severity.NO_ALARM else f"{reading.severity.name} {reading.message}"
            rows.append([name, str(reading.value), variable.unit, alarm])
    printer = console()
    columns = [Column("output", style="cyan"), Column("value", is_number=True), Column("unit"), Column("alarm")]
    printer.print(table(printer, columns, rows))
    printer.print(str(report))
    if report.untrusted:
        say(f"failed: {len(report.untrusted)} inputs cannot be trusted, and so no output can", "red")
        raise typer.Exit(CHECK_FAILED)


def _follow(following: LiveTwin, stopped: Event) -> None:
    """Follow until a signal ends it; tell when inputs go into alarm and when they come back."""
    printer = console()
    shown: dict[str, str] | None = None
    patience = time.monotonic() + _FIRST
    while not stopped.is_set():
        report = following.report()
        is_news = report.untrusted != shown and (report.settled or report.untrusted)
        if is_news and (report.settled or time.monotonic() > patience):
            shown = report.untrusted
            printer.print(str(report))
        stopped.wait(_LOOK)
    printer.print(str(following.report()))
