"""JacobianJob: a Jacobian that is computed piece by piece while nobody waits for the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.errors import GradientError
from lume_diff.ioc.engine import Engine

if TYPE_CHECKING:
    from lume_diff.ioc.runtime import Runtime


@dataclass(frozen=True, slots=True)
class JacobianResult:
    """A Jacobian, where it was taken and what it took.

    Attributes:
        outputs, inputs: labels of the rows and columns; components of arrays as ``name[3]``, in C order.
        values: derivatives ``(rows, columns)`` in output unit per input unit.
        errors: estimated errors of them, zero where they are exact, NaN where nothing is known.
        cycle: number of the cycle that published the point.
        point: inputs of that cycle by name.
        runs: simulator runs that it took; none for a differentiable model.
        seconds: time that the model worked on it [s].
    """

    outputs: Sequence[str]
    inputs: Sequence[str]
    values: np.ndarray
    errors: np.ndarray
    cycle: int
    point: Mapping[str, Any]
    runs: int
    seconds: float


#: Told of the result, or of what went wrong.
Answer = Callable[[JacobianResult | Exception], None]


class JacobianJob:
    """Differentiate at the point of one cycle, one input or one output at a time, so that writes need not wait long.

    Writes that come in between are evaluated at once and do not move the point.

    Args:
        runtime: does the pieces, when it is idle.
        outputs, inputs: names of scalar or array variables.
        max_runs: simulator runs, after which no further piece is begun.
        max_seconds: time since the job was made, after which no further piece is begun [s].
        answer: told once, in the runtime's thread.
    """

    def __init__(
        self,
        runtime: Runtime,
        outputs: Sequence[str],
        inputs: Sequence[str],
        max_runs: int,
        max_seconds: float,
        answer: Answer,
    ) -> None:
        self._runtime, self._answer = runtime, answer
        self._outputs, self._inputs = list(outputs), list(inputs)
        self._max_runs, self._max_seconds = max_runs, max_seconds
        self._begun = time.monotonic()
        self._pieces: list[tuple[list[str], list[str]]] = [(self._outputs, self._inputs[:1])]
        self._blocks: dict[tuple[str, str], np.ndarray] = {}
        self._errors: dict[tuple[str, str], float] = {}  # by output, and input or component of one
        self._rest: dict[tuple[str, str], float] = {}  # of those of which nothing was told
        self._point: dict[str, Any] = {}
        self._cycle, self._runs, self._seconds, self._done = -1, 0, 0.0, 0

    def __call__(self, engine: Engine) -> bool:
        """Do a piece; returns whether that was the last."""
        try:
            self._piece(engine)
        except Exception as error:
            self._answer(error)
            return True
        if self._pieces:
            return False
        self._answer(self._result())
        return True

    def _piece(self, engine: Engine) -> None:
        self._check_limits()
        if self._cycle < 0:
            self._cycle, self._point = self._runtime.cycle, self._runtime.point()
        outputs, inputs = self._pieces.pop(0)
        begun = time.perf_counter()
        found = engine.jacobian(outputs, inputs, self._point)
        self._seconds += time.perf_counter() - begun
        self._runs += found["runs"]
        for output, row in found["values"].items():
            for name, block in row.items():
                self._blocks[output, name] = block
                self._rest[output, name] = 0.0 if not found["runs"] else np.nan
        self._errors |= found["errors"]
        self._done += 1
        if self._done == 1:
            self._plan(self._inputs[1:], is_free=not found["runs"])

    def _plan(self, rest: list[str], is_free: bool) -> None:
        """Plan what is left: by outputs where a backward pass costs no run and there are fewer of them."""
        if rest and is_free and len(self._outputs) < len(rest):
            self._pieces = [([output], rest) for output in self._outputs]
        else:
            self._pieces = [(self._outputs, [name]) for name in rest]

    def _check_limits(self) -> None:
        seconds = time.monotonic() - self._begun
        if self._runs >= self._max_runs or seconds >= self._max_seconds:
            raise GradientError(
                f"the Jacobian was given up after {self._runs} runs and {seconds:.1f} s, with {self._done} of "
                f"{self._done + len(self._pieces)} pieces done: ask for fewer inputs, or allow more than "
                f"max_runs={self._max_runs} and max_seconds={self._max_seconds:g}"
            )

    def _result(self) -> JacobianResult:
        variables = self._runtime.variables
        shapes = {name: tuple(getattr(variables[name], "shape", ())) for name in (*self._outputs, *self._inputs)}
        values = [
            [self._blocks[o, i].reshape(_size(shapes[o]), _size(shapes[i])) for i in self._inputs]
            for o in self._outputs
        ]
        errors = [
            [np.tile(self._errors_of(o, i, shapes[i]), (_size(shapes[o]), 1)) for i in self._inputs]
            for o in self._outputs
        ]
        return JacobianResult(
            [label for name in self._outputs for label in _labels(name, shapes[name])],
            [label for name in self._inputs for label in _labels(name, shapes[name])],
            np.block(values),
            np.block(errors),
            self._cycle,
            self._point,
            self._runs,
            self._seconds,
        )

    def _errors_of(self, output: str, name: str, shape: tuple[int, ...]) -> list[float]:
        """Return the errors of the derivatives of an output with respect to the components of an input."""
        rest = self._errors.get((output, name), self._rest[output, name])
        return [self._errors.get((output, label), rest) for label in _labels(name, shape)]


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _labels(name: str, shape: tuple[int, ...]) -> list[str]:
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(shape)] if shape else [name]
