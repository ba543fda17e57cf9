"""Procedures as remote procedure calls, and the response matrix as a table."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from p4p import Type, Value
from p4p.nt import NTScalar, NTTable
from p4p.nt.common import timeStamp
from p4p.server.raw import SharedPV

from lume_diff.control.readings import Severity, sendable
from lume_diff.errors import LumeDiffError
from lume_diff.ioc.jacobian_job import JacobianResult
from lume_diff.ioc.procedures import Procedures
from lume_diff.ioc.pva.client_name import client_name
from lume_diff.ioc.pva.values import DRIVER, NO_ALARM, UNDEFINED
from lume_diff.ioc.served import Served

_POINT = ("S", None, [("names", "as"), ("values", "av")])
_EXTRA = [("cycle", "l"), ("runs", "l"), ("seconds", "d"), ("point", _POINT), ("errors", "ad")]
_CYCLE = Type([("cycle", "l"), ("snapshot", "s"), ("timeStamp", timeStamp)])


class Call:
    """A channel that runs one procedure; reading it tells what it takes.

    Args:
        served: what is served.
        name: of the procedure.
    """

    def __init__(self, served: Served, name: str) -> None:
        self._procedures, self._name = Procedures(served), name
        self.pv = SharedPV(handler=self, nt=NTScalar("s"), initial=Procedures.NAMES[name], timestamp=time.time())

    def put(self, pv: SharedPV, op: Any) -> None:
        """Refuse a put."""
        op.done(error=f"{self._name} is called, not written: {Procedures.NAMES[self._name]}")

    def rpc(self, pv: SharedPV, op: Any) -> None:
        """Hand a call on."""

        def answer(result: Any) -> None:
            if isinstance(result, Exception):
                op.done(error=sendable(str(result)))
            elif isinstance(result, JacobianResult):
                op.done(JacobianTable(result.inputs).value(result))
            else:
                op.done(Value(_CYCLE, {**result, "timeStamp": _now()}))

        try:
            self._procedures.call(self._name, _arguments(op.value()), client_name(op), answer)
        except (LumeDiffError, ValueError, TypeError) as error:
            op.done(error=sendable(str(error)))


class JacobianTable:
    """Jacobians as NTTable: a row an output, a column an input; ``errors`` row after row.

    Args:
        inputs: labels of the columns.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self._labels = ["output", *inputs]
        self._columns = [f"d{number}" for number in range(len(inputs))]
        self._type = NTTable.buildType([("output", "as"), *((name, "ad") for name in self._columns)], extra=_EXTRA)

    def value(self, result: JacobianResult | Exception | None = None) -> Value:
        """Return a Jacobian, as INVALID where it is not finite.

        If there is none: why, as INVALID; and for before the first, a table without rows.
        """
        if not isinstance(result, JacobianResult):
            status, why = (UNDEFINED, "not computed yet") if result is None else (DRIVER, str(result))
            alarm = {"severity": int(Severity.INVALID), "status": status, "message": sendable(why)}
            labels = {"labels": self._labels} if result is None else {}
            return Value(self._type, {**labels, "alarm": alarm, "timeStamp": _now()})
        content: dict[str, Any] = {name: np.array(result.values[:, i]) for i, name in enumerate(self._columns)}
        return Value(
            self._type,
            {
                "labels": self._labels,
                "value": {"output": list(result.outputs), **content},
                "cycle": result.cycle,
                "runs": result.runs,
                "seconds": result.seconds,
                "point": {"names": list(result.point), "values": list(result.point.values())},
                "errors": result.errors.reshape(-1),
                "alarm": _alarm(result),
                "timeStamp": _now(),
            },
        )


def _alarm(result: JacobianResult) -> Mapping[str, Any]:
    """Return the alarm of a Jacobian: derivatives that are not finite, such as at a kink, hold for nothing."""
    places = np.argwhere(~np.isfinite(result.values))
    if not len(places):
        return NO_ALARM
    row, column = places[0]
    more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
    text = f"the derivative of {result.outputs[row]} by {result.inputs[column]} is not finite{more}"
    return {"severity": int(Severity.INVALID), "status": UNDEFINED, "message": sendable(text)}


def _arguments(sent: Value) -> dict[str, Any]:
    """Return what was sent by name: the query of an NTURI, or the fields of any other structure."""
    return dict(sent.get("query", sent).items())


def _now() -> dict[str, int]:
    now = time.time_ns()
    return {"secondsPastEpoch": now // 10**9, "nanoseconds": now % 10**9}
