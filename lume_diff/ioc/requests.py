"""Requests: what clients ask of a served model, and how they are put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: Told when a request is done: what went wrong, or None, and the number of the cycle that published it.
Done = Callable[[Exception | None, int], None]


_TOGETHER = ("write", "refresh", "shot")


def ignore(error: Exception | None, cycle: int) -> None:
    """Be told, and do nothing."""


@dataclass(eq=False, slots=True)
class Request:
    """Something to do with the model.

    Attributes:
        kind: ``"write"`` values as one; ``"refresh"`` after a write elsewhere; ``"shot"``: publish every output;
            ``"reset"``; ``"restore"`` a snapshot.
        values: plain values by name, or the snapshot.
        client: who asks, as the client says.
        done: told once.
    """

    kind: Literal["write", "refresh", "shot", "reset", "restore"]
    values: Mapping[str, Any] = field(default_factory=dict)
    client: str = ""
    done: Done = ignore


def batches(waiting: Sequence[Request], ordered: bool) -> list[list[Request]]:
    """Return requests in groups that one evaluation can serve, in the order of arrival.

    Writes, refreshes and shots go together, unless they are to be ``ordered``; a reset or a restore goes alone.
    """
    found: list[list[Request]] = []
    for request in waiting:
        joins = request.kind in _TOGETHER and not ordered
        if joins and found and found[-1][-1].kind in _TOGETHER:
            found[-1].append(request)
        else:
            found.append([request])
    return found


def merged(requests: Sequence[Request]) -> dict[str, Any]:
    """Return all values of a group, the latest of each."""
    values: dict[str, Any] = {}
    for request in requests:
        values.update(request.values)
    return values


def written(requests: Sequence[Request]) -> dict[str, Any]:
    """Return what a group writes: nothing where it is a reset or a snapshot."""
    return merged(requests) if requests[0].kind in _TOGETHER else {}


def with_successors(requests: Sequence[Request]) -> list[list[Request]]:
    """Return a group that failed as parts to be tried alone: each request with those that it overtook wholly.

    The last of a part is what is written; the others share its fate.
    """
    latest = {name: index for index, request in enumerate(requests) for name in request.values}
    parts: dict[int, list[Request]] = {}
    for index, request in enumerate(requests):
        heirs = {latest[name] for name in request.values} or {index}
        parts.setdefault(heirs.pop() if len(heirs) == 1 else index, []).append(request)
    return [parts[index] for index in sorted(parts)]
