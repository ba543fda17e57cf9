"""``lume-diff view``: a model or a server in the browser, until told to stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lume_diff.cli.loading import CHANGES, MACHINE_TRUST, load_machine, split_commas
from lume_diff.cli.stopping import until_stopped
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from lume_diff.view.source import Source


def view(
    machine: Path = typer.Argument(None, metavar="[MACHINE.yaml]", help="The machine file.", show_default=False),
    pv: str | None = typer.Option(None, "--pv", metavar="PREFIX", help="Of a server; with a file: what it follows."),
    protocol: str = typer.Option("pva", "--protocol", help="To reach the server: pva or ca."),
    write: bool = typer.Option(False, "--write", help="Let pages write, with the token that is printed."),
    token_file: Path | None = typer.Option(None, "--token-file", metavar="FILE", help="Holds the token for --write."),
    address: str = typer.Option("127.0.0.1", "--address", help="To listen on."),
    port: int = typer.Option(5006, "--port", help="To listen on; 0 for any that is free."),
    origin: list[str] = typer.Option(
        [], "--origin", metavar="HOST:PORT,...", help="Under which browsers reach the page, such as that of a proxy."
    ),
    rate: float = typer.Option(10.0, "--rate", help="Updates of a page per second, at most [Hz]."),
    isolation: str = typer.Option("process", "--isolation", help="Where the model runs: process or thread."),
    timeout: float | None = typer.Option(None, "--timeout", metavar="S", help="Longest evaluation, in a process."),
    sensitivity: bool = typer.Option(
        False, "--sensitivity", help="Work out derivatives also where they take runs of a simulator."
    ),
    change: list[str] = CHANGES,
    trust: bool | None = MACHINE_TRUST,
) -> None:
    """Show a model, a served model, or a model that follows it, in the browser, until Ctrl-C."""
    if machine is None and pv is None:
        raise ValidationError("name a machine file, or a server by --pv PREFIX, or both to compare them")
    if token_file is not None and not write:
        raise ValidationError("--token-file needs --write: without it nothing can be written")
    if write and machine is not None and pv is not None:
        raise ValidationError("--write: a model that follows a machine cannot be written to; view one of the two")
    from lume_diff.view.extension import check_extension

    check_extension()
    from lume_diff.view.live_view import LiveView

    token = None if token_file is None else _token(token_file)
    source = _source(machine, pv, protocol, write, isolation, timeout, sensitivity, change, trust)
    with until_stopped() as stopped:
        try:
            source.start()
            shown = LiveView(source, token=token, rate=rate).start(address, port, split_commas(origin))
        except BaseException:
            source.close()
            raise
        try:
            _tell(shown.url, source.title, shown.token if write and token is None else None, write)
            stopped.wait()
            typer.echo("stopping")
        finally:
            shown.stop()
            source.close()


def _source(
    machine: Path | None,
    pv: str | None,
    protocol: str,
    write: bool,
    isolation: str,
    timeout: float | None,
    sensitivity: bool,
    change: list[str],
    trust: bool | None,
) -> Source:
    if machine is None:
        from lume_diff.view.pv_source import PVSource

        return PVSource(pv or "", protocol, write)
    from lume_diff.view.model_source import ModelSource

    model = load_machine(machine, change, trust)
    if pv is None:
        return ModelSource(model, write, isolation, timeout, machine.name, sensitivity)  # type: ignore[arg-type]
    from lume_diff.view.twin_source import TwinSource

    return TwinSource(model, pv, protocol, isolation, timeout, machine.name, sensitivity)


def _token(path: Path) -> str:
    try:
        found = path.read_text().strip()
    except OSError as error:
        raise ValidationError(f"--token-file {path} cannot be read: {error.strerror}") from None
    if not found:
        raise ValidationError(f"--token-file {path} is empty")
    return found


def _tell(url: str, title: str, token: str | None, write: bool) -> None:
    typer.echo(f"{title}: {url} ({'writable with the token' if write else 'read-only'})")
    if token is not None:
        typer.echo(f"token: {token}")
    typer.echo("ready")
