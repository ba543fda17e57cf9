"""Restoring: saved set-points on the way back into a model that may have changed since."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.ioc.autosave import saved_setpoints
from lume_diff.ioc.runtime import Runtime

LOG = logging.getLogger("lume_diff.ioc")
_CLIENT = "autosave"


def saved(path: Path, setpoints: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved set-points of inputs that are served.

    A file that cannot be read is logged and moved aside, so that a server that is started by a supervisor comes up.

    Args:
        path: of the file.
        setpoints: those that there are now, by name.
    """
    try:
        found = saved_setpoints(path)
    except ValidationError as error:
        aside = path.with_name(path.name + ".bad")
        path.replace(aside)
        LOG.error("nothing is restored: %s; it is %s now", error, aside)
        return {}
    for name in found.keys() - setpoints.keys():
        LOG.warning("saved set-point %s is not restored: no such input is served", name)
    return {name: value for name, value in found.items() if name in setpoints}


def write_each(runtime: Runtime, values: Mapping[str, Any], finished: Callable[[], None]) -> None:
    """Write set-points, leaving out those that are refused; what is left out is logged.

    All that are accepted on arrival are written as one; if the model fails, each is tried by itself.

    Args:
        runtime: that has not been started yet.
        values: by name.
        finished: called when it is done, in the runtime's thread or at once.
    """
    accepted = {name: value for name, value in values.items() if _is_accepted(runtime, name, value)}
    if not accepted:
        finished()
        return
    left = set(accepted)

    def one_is_done(name: str) -> None:
        left.discard(name)
        if not left:
            finished()

    def all_are_done(error: Exception | None, cycle: int) -> None:
        if error is None or len(accepted) == 1:
            finished()
            return
        for name, value in accepted.items():
            runtime.write({name: value}, _CLIENT, lambda error, cycle, name=name: one_is_done(name))  # type: ignore[misc]

    runtime.write(accepted, _CLIENT, all_are_done)


def _is_accepted(runtime: Runtime, name: str, value: Any) -> bool:
    try:
        runtime.check_reserved([name], _CLIENT)
        runtime.accepted({name: value})
    except LumeDiffError as error:
        LOG.warning("saved set-point %s is not restored: %s", name, error)
        return False
    return True
