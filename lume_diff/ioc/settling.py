"""Settling: set-points that a machine reaches after a while."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from lume_diff.errors import ValidationError, unknown_variable
from lume_diff.ioc.engine import Engine, Evaluated
from lume_diff.variables import BoolVariable, TorchScalarVariable, Variable

READBACK, MOVING = "_RBV", "_MOVN"
_PERIOD = 0.1  # [s] between two evaluations on the way


@dataclass(frozen=True, slots=True)
class Settling:
    """How the machine follows a set-point.

    The set-point shows what was written, at once, and the write completes. The machine starts to follow after ``delay``
    and changes by no more than ``rate``; ``<name>_RBV`` tells where it is and ``<name>_MOVN`` whether it moves.

    Attributes:
        rate: fastest change [unit of the set-point/s]; at once if None.
        delay: before it begins to change [s].
    """

    rate: float | None = None
    delay: float = 0.0

    def __post_init__(self) -> None:
        if (self.rate is not None and not self.rate > 0.0) or not self.delay >= 0.0:
            raise ValidationError(f"{self}: expected a positive rate [unit/s] or None, and a delay of at least 0 s")


@dataclass(slots=True)
class _Way:
    """Where one set-point is, and where it is going."""

    settling: Settling
    at: float
    goal: float
    begins: float
    seen: float  # when ``at`` held

    def position(self, now: float) -> float:
        """Return where it is."""
        if now < self.begins:
            return self.at
        if self.settling.rate is None:
            return self.goal
        most = self.settling.rate * (now - max(self.seen, self.begins))
        return self.at + max(-most, min(most, self.goal - self.at))


@final
class SettlingEngine(Engine):
    """Lead set-points to where they are to go, by evaluations on the way.

    An evaluation that fails on the way ends it: the set-point then shows where the machine is.

    Args:
        engine: where the model runs.
        settling: how set-points are followed, by name.

    Raises:
        UnknownVariableError: for a name that the model does not have.
        ValidationError: for one that is no floating-point input, or whose readback is there already.
    """

    def __init__(self, engine: Engine, settling: Mapping[str, Settling]) -> None:
        self._engine = engine
        self._settling = dict(settling)
        self._ways: dict[str, _Way] = {}
        self._last: dict[str, Any] = {}  # what was shown
        self._notice: Callable[[], None] | None = None
        self._timer: threading.Timer | None = None
        self._variables = dict(engine.variables)
        for name in settling:
            for made in _made(name, engine.variables):
                if made.name in self._variables:
                    raise ValidationError(f"{made.name!r} is a variable of the model: {name!r} cannot settle with it")
                self._variables[made.name] = made

    @property
    def variables(self) -> Mapping[str, Variable]:
        """What the model takes and gives, with readbacks and flags."""
        return self._variables

    def start(self) -> None:
        """Bring the model up."""
        self._engine.start()

    def evaluate(self, values: Mapping[str, Any]) -> Evaluated:
        """Take goals, write inputs as far as they have come, and read everything."""
        now = time.monotonic()
        goals = {name: value for name, value in values.items() if name in self._ways}
        ways = {name: self._towards(way, now, goals.get(name)) for name, way in self._ways.items()}
        moved = {name: way.at for name, way in ways.items() if way.at != self._ways[name].at}
        try:
            found = self._engine.evaluate({**{n: v for n, v in values.items() if n not in goals}, **moved})
        except Exception:
            if self._is_moving():
                self._tick()
            if not values:  # what was written has failed otherwise, and the way may still be free
                self._rest(self._ways)
            raise
        self._ways |= ways
        return self._shown(found, [name for name in found.values if name not in moved])

    def reset(self) -> Evaluated:
        """Bring the inputs back to their baseline, at once, and read everything."""
        found = self._engine.reset()
        self._rest(self._ways)
        return self._shown(found, found.values)

    def restore(self, snapshot: Mapping[str, Any]) -> Evaluated:
        """Write back a snapshot, at once, and read everything."""
        found = self._engine.restore(snapshot)
        self._rest(self._ways)
        return self._shown(found, found.values)

    def snapshot(self) -> dict[str, Any]:
        """Return where the machine is, as plain data."""
        return self._engine.snapshot()

    def jacobian(self, outputs: Sequence[str], inputs: Sequence[str], at: Mapping[str, Any]) -> dict[str, Any]:
        """Return derivatives at set-points that have been reached: a readback is its set-point there."""
        followed = {name + READBACK: name for name in self._settling}
        rest = [output for output in outputs if output not in followed]
        found: dict[str, Any] = {"values": {}, "errors": {}, "runs": 0}
        if rest:
            found = self._engine.jacobian(rest, inputs, at)
        for output in followed.keys() & set(outputs):
            blocks = {name: np.zeros(getattr(self._variables[name], "shape", ())) for name in inputs}
            if followed[output] in blocks:
                blocks[followed[output]] = np.ones(())
            found["values"][output] = blocks
            found["errors"] |= {(output, name): 0.0 for name in inputs}
        return found

    def stop(self) -> None:
        """End what `start` began."""
        if self._timer is not None:
            self._timer.cancel()
        self._engine.stop()

    def interrupt(self) -> None:
        """Make an evaluation that hangs in another thread fail, where that can be done."""
        self._engine.interrupt()

    def on_write_elsewhere(self, notice: Callable[[], None]) -> None:
        """Be told of what is written to the model past the engine, and when a set-point is on its way."""
        self._notice = notice
        self._engine.on_write_elsewhere(notice)

    def _towards(self, way: _Way, now: float, goal: float | None) -> _Way:
        at = way.position(now)
        if goal is None or goal == way.goal:
            return _Way(way.settling, at, way.goal, way.begins, now)
        return _Way(way.settling, at, goal, now + way.settling.delay, now)

    def _rest(self, names: Iterable[str]) -> None:
        """Let set-points stay where they are."""
        for name in names:
            self._ways[name].goal = self._ways[name].at

    def _shown(self, found: Evaluated, jumped: Iterable[str]) -> Evaluated:
        """Return what an evaluation shows; what was set past us has arrived."""
        now, values = time.monotonic(), dict(found.values)
        for name in set(jumped) & set(self._settling):
            way = self._ways.setdefault(name, _Way(self._settling[name], math.nan, math.nan, now, now))
            if way.at != values[name]:
                way.at = way.goal = values[name]
        for name, way in self._ways.items():
            values.pop(name, None)
            shown = {name: way.goal, name + READBACK: way.at, name + MOVING: way.at != way.goal}
            values |= {key: value for key, value in shown.items() if self._last.get(key) != value}
            self._last |= shown
        if self._is_moving():
            self._tick()
        return Evaluated(values, found.seconds, found.runs)

    def _is_moving(self) -> bool:
        return any(way.at != way.goal for way in self._ways.values())

    def _tick(self) -> None:
        """Have another evaluation made soon, however many there are until then."""
        if self._timer is None:
            self._timer = threading.Timer(_PERIOD, self._tell)
            self._timer.daemon = True
            self._timer.start()

    def _tell(self) -> None:
        self._timer = None
        if self._notice is not None:
            self._notice()


def _made(name: str, variables: Mapping[str, Variable]) -> tuple[Variable, Variable]:
    """Return the readback and the flag of a set-point."""
    if name not in variables:
        raise unknown_variable(name, variables, "the set-points that settle")
    variable = variables[name]
    if not isinstance(variable, TorchScalarVariable) or variable.read_only:
        raise ValidationError(f"{name!r} cannot settle: that takes an input that is a floating-point number")
    readback = variable.replace(name=name + READBACK, read_only=True, description=f"where {name} is")
    return readback, BoolVariable(name=name + MOVING, read_only=True, description=f"whether {name} is on its way")
