"""``lume-diff serve``: models on the control system, until told to stop."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lume_diff.cli.loading import CHANGES, MACHINE_TRUST, load_machine, split_commas
from lume_diff.cli.stopping import until_stopped
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from lume_diff.ioc import Server, Servers
    from lume_diff.models import LUMEModel

_MOST_NAMED = 20  # variables of a model that are printed


def serve(
    machines: list[Path] = typer.Argument(None, metavar="MACHINE.yaml...", help="What to serve.", show_default=False),
    entry: list[str] = typer.Option(
        [], "--entry", metavar="FILE.py:FUNCTION", help="A function that returns a model; or MODULE:FUNCTION."
    ),
    prefix: list[str] = typer.Option(
        [], "--prefix", help="Before every name; once for each model, in their order, or once for all."
    ),
    protocol: str | None = typer.Option(None, "--protocol", metavar="pva,ca", help="What is spoken."),
    isolation: str | None = typer.Option(None, "--isolation", help="'process' (default), or 'thread'."),
    timeout: float | None = typer.Option(None, "--timeout", help="Longest time of an evaluation [s]."),
    ordered: bool | None = typer.Option(None, "--ordered/--merged", help="Evaluate every put in turn."),
    interface: str | None = typer.Option(None, "--interface", help="Address to listen on; 127.0.0.1 if not given."),
    read_only: bool | None = typer.Option(None, "--read-only/--writable", help="Refuse all writes."),
    allow_host: list[str] = typer.Option([], "--allow-host", help="That may write; a guard against mistakes only."),
    allow_user: list[str] = typer.Option([], "--allow-user", help="That may write; a guard against mistakes only."),
    autosave: Path | None = typer.Option(None, "--autosave", metavar="FILE", help="Keep the set-points here."),
    restore: str | None = typer.Option(None, "--restore", help="'last': begin with those of the file; 'default'."),
    write_log: Path | None = typer.Option(None, "--write-log", metavar="FILE", help="All writes, as JSON lines."),
    rate_hz: float | None = typer.Option(None, "--rate", help="Shots a second, each with new noise [Hz]."),
    health_port: int | None = typer.Option(None, "--health-port", help="Answer GET /live and /health here."),
    search: float = typer.Option(0.5, "--search", help="Look for servers with these names so long [s]; 0: do not."),
    log: str = typer.Option("text", "--log", help="How messages are printed: 'text' or 'json'."),
    change: list[str] = CHANGES,
    trust: bool | None = MACHINE_TRUST,
) -> None:
    """Serve models as process variables, until Ctrl-C or SIGTERM."""
    _print_messages(log)
    given = {
        "protocols": split_commas([protocol]) if protocol is not None else None,
        "isolation": isolation,
        "timeout": timeout,
        "ordered": ordered,
        "interface": interface,
        "read_only": read_only,
        "allow": {"hosts": allow_host or None, "users": allow_user or None} if allow_host or allow_user else None,
        "autosave": autosave,
        "restore": restore,
        "write_log": write_log,
        "rate_hz": rate_hz,
        "health_port": health_port,
    }
    count = len(machines or []) + len(entry)
    if not count:
        raise ValidationError("name a machine file, or a function by --entry, to serve")
    if count > 1 and (doubled := [key for key in ("autosave", "health_port") if given[key] is not None]):
        raise ValidationError(f"{', '.join(doubled)} cannot be shared by {count} models: say it in their machine files")
    prefixes: list[str | None] = list(prefix) or [None]
    if len(prefixes) not in (1, count):
        raise ValidationError(f"{len(prefixes)} prefixes were given for {count} models; expected one, or one for each")
    prefixes *= count if len(prefixes) == 1 else 1
    models = [(str(path), load_machine(path, change, trust)) for path in machines or []]
    models += [(one, _called(one)) for one in entry]
    from lume_diff.ioc import Server, Servers

    servers = []
    for (name, model), before in zip(models, prefixes, strict=True):
        of_file = _of_file(model)
        if isolation == "thread" and timeout is None and "timeout" in of_file:
            raise ValidationError(
                f"--isolation thread: a model in the server's own process cannot be ended after the "
                f"{of_file['timeout']:g} s that ioc.timeout in {name} allows; add --set ioc.timeout=null"
            )
        options = of_file | {key: value for key, value in given.items() if value is not None}
        options |= {} if before is None else {"prefix": before}
        servers.append(Server(model, **{"isolation": "process", "search": search, **options}))
    _run(Servers(*servers), [name for name, _ in models])


def _run(servers: Servers, names: list[str]) -> None:
    """Serve until a signal comes."""
    with until_stopped() as stopped:
        with servers:
            for name, server in zip(names, servers.servers, strict=True):
                _tell(name, server)
            for server in servers.servers:
                while not stopped.is_set() and not server.runtime.first_cycle.wait(0.1):
                    pass
            if not stopped.is_set():
                typer.echo("ready")
            stopped.wait()
            typer.echo("stopping")
        typer.echo("stopped")


def _of_file(model: LUMEModel) -> dict[str, Any]:
    """Return what the machine file of a model says about its server."""
    section = getattr(model.origin, "ioc", None)
    if section is None:
        return {}
    from lume_diff.ioc import Settling

    site = model.origin.site
    found = section.model_dump(exclude_none=True)
    for key in ("autosave", "write_log"):
        if key in found:
            found[key] = site.path(found[key])
    if found.pop("writable_limits"):
        found["changeable_limits"] = list(model.input_names)
    if "settling" in found:
        found["settling"] = {name: Settling(**how) for name, how in found["settling"].items()}
    found["response_matrix"] = found.pop("sensitivity")
    if model.origin.mapping is not None:
        found["shot_counter"] = model.origin.facility()[0].shot
    return dict(found)


def _called(entry: str) -> LUMEModel:
    from lume_diff.calibration.fit.configuration import ModelSection

    return ModelSection(entry=entry).build(Path())


def _print_messages(kind: str) -> None:
    """Print log messages on stderr."""
    from lume_diff.ioc.json_lines import JSONLines

    if kind not in ("text", "json"):
        raise ValidationError(f"--log is {kind!r}; expected 'text' or 'json'")
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines() if kind == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("lume_diff")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


def _tell(name: str, server: Server) -> None:
    """Print what is served."""
    served = server.served
    of_model = server.model_names
    inputs = [name for name in of_model if not served.variables[name].read_only]
    counts = f"{len(inputs)} inputs, {len(of_model) - len(inputs)} outputs"
    how = "read-only" if served.read_only else "writable"
    typer.echo(f"{name}: {counts} by {' and '.join(server.protocols)} on {served.interface}, {how}")
    for one in of_model[:_MOST_NAMED]:
        variable = served.variables[one]
        unit = f" [{variable.unit}]" if variable.unit else ""
        typer.echo(f"  {served.prefix}{one}{unit} {'output' if variable.read_only else 'input'}")
    if len(of_model) > _MOST_NAMED:
        typer.echo(f"  ... and {len(of_model) - _MOST_NAMED} more")
    if server.health is not None:
        typer.echo(f"  health: http://{served.interface}:{server.health.port}/health")
