"""Procedures: what clients can have done in one call, beside reading and writing single variables."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lume_diff.errors import ReadOnlyError, ValidationError
from lume_diff.ioc.jacobian_job import JacobianJob, JacobianResult

if TYPE_CHECKING:
    from lume_diff.ioc.served import Served

#: Told of what a call gives, or of what went wrong.
Answer = Callable[[Exception | JacobianResult | dict[str, Any]], None]

_MOST_RUNS, _MOST_SECONDS = 10_000, 600.0


class Procedures:
    """Do what a call asks for, without holding anything up; the answer comes later.

    ``SET``
        Write several inputs as one. Arguments: names of inputs with their values; or, for names that a protocol cannot
        carry so, ``names`` and ``values``. Gives ``cycle``.
    ``JACOBIAN``
        Derivatives at the present point, computed between writes. Arguments: ``outputs``, ``inputs``, and if wanted
        ``max_runs`` (1000) and ``max_seconds`` (60). Gives a `JacobianResult`.
    ``SAVE``
        The set-points of the last cycle. Gives ``cycle`` and ``snapshot``, which is JSON.
    ``RESTORE``
        Write back a ``snapshot``. Gives ``cycle``.

    Args:
        served: what is served.
    """

    #: What there is, with a line of help.
    NAMES: Mapping[str, str] = {
        "SET": "write several inputs as one: names, values",
        "JACOBIAN": "derivatives at the present point: outputs, inputs, max_runs, max_seconds",
        "SAVE": "the set-points as JSON",
        "RESTORE": "write back a snapshot",
    }

    def __init__(self, served: Served) -> None:
        self._served, self._runtime = served, served.runtime

    def call(self, name: str, arguments: Mapping[str, Any], client: str, answer: Answer) -> None:
        """Begin a procedure.

        Args:
            name: of it.
            arguments: by name.
            client: who asks.
            answer: told once, from any thread.

        Raises:
            LumeDiffError: for what is refused at once; ``answer`` is not told then.
        """
        procedure: Callable[[Mapping[str, Any], str, Answer], None] = getattr(self, f"_{name.lower()}")
        procedure(arguments, client, answer)

    def _set(self, arguments: Mapping[str, Any], client: str, answer: Answer) -> None:
        self._check_writable("SET")
        given = dict(arguments)
        names, values = list(given.pop("names", ())), list(given.pop("values", ()))
        if len(names) != len(values) or not (names or given):
            raise ValidationError(
                f"SET takes as many values as names, received {len(names)} names and {len(values)} values"
            )
        self._runtime.write({**given, **dict(zip(names, values, strict=True))}, client, _finished(answer))

    def _jacobian(self, arguments: Mapping[str, Any], client: str, answer: Answer) -> None:
        given = {"outputs": (), "inputs": (), "max_runs": 1000, "max_seconds": 60.0, **arguments}
        unknown = set(given) - {"outputs", "inputs", "max_runs", "max_seconds"}
        outputs, inputs = _texts(given["outputs"]), _texts(given["inputs"])
        if unknown or not outputs or not inputs:
            raise ValidationError(
                f"JACOBIAN takes outputs and inputs, at least one of each, max_runs and max_seconds; received "
                f"{', '.join(arguments) or 'nothing'}"
            )
        self._runtime.check_names((*outputs, *inputs))
        most_runs = min(int(given["max_runs"]), _MOST_RUNS)
        most_seconds = min(float(given["max_seconds"]), _MOST_SECONDS)
        self._runtime.when_idle(JacobianJob(self._runtime, outputs, inputs, most_runs, most_seconds, answer))

    def _save(self, arguments: Mapping[str, Any], client: str, answer: Answer) -> None:
        cycle, snapshot = self._runtime.snapshot()
        answer({"cycle": cycle, "snapshot": json.dumps(snapshot)})

    def _restore(self, arguments: Mapping[str, Any], client: str, answer: Answer) -> None:
        self._check_writable("RESTORE")
        try:
            snapshot = json.loads(arguments["snapshot"])
        except (KeyError, TypeError, ValueError):
            raise ValidationError("RESTORE takes a snapshot as SAVE gives it: JSON") from None
        if not isinstance(snapshot, dict):
            raise ValidationError(f"a snapshot is a JSON object of values by name, received {type(snapshot).__name__}")
        self._runtime.restore(snapshot, client, _finished(answer))

    def _check_writable(self, name: str) -> None:
        if self._served.read_only:
            raise ReadOnlyError(f"{name} is refused: this server is read-only")


def _finished(answer: Answer) -> Callable[[Exception | None, int], None]:
    return lambda error, cycle: answer({"cycle": cycle} if error is None else error)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]
