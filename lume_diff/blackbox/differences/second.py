"""Second derivatives of numbers by differences, with their errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.blackbox.differences.memory import Column
from lume_diff.blackbox.differences.steps import mixed_error
from lume_diff.errors import GradientError, SimulatorError

if TYPE_CHECKING:
    from lume_diff.blackbox.differences.engine import DifferenceBox

Array = np.ndarray


def hessian(box: DifferenceBox, row: Array, value: Array, index: int) -> Array:
    """Return all second derivatives at a point, ``(n_out, n_in, n_in)``, from ``n_in (n_in + 1)`` runs around it.

    That of a single input has a step for every class of outputs, and looks to one side at a bound.

    Raises:
        GradientError: where a run fails, and at a bound if there are several inputs.
    """
    if box.n_in == 1:
        return _of_one(box, row, value, index)
    n_in, unit = box.n_in, np.eye(box.n_in)
    steps = np.array([_step(box, row, index, c) for c in range(n_in)])
    shifts = [sign * steps[c] * unit[c] for c in range(n_in) for sign in (1, -1)]
    pairs = [(a, b) for a in range(n_in) for b in range(a)]
    for a, b in pairs:
        both = steps[a] * unit[a] + steps[b] * unit[b]
        shifts += [both, -both]
    numbers = _good(box.evaluate(row + np.array(shifts), [index] * len(shifts)))
    single = [(numbers[2 * c], numbers[2 * c + 1]) for c in range(n_in)]
    curve = np.zeros((box.n_out, n_in, n_in))
    for c, (up, down) in enumerate(single):
        curve[:, c, c] = (up - 2 * value + down) / steps[c] ** 2
    for k, (a, b) in enumerate(pairs):
        up, down = numbers[2 * n_in + 2 * k], numbers[2 * n_in + 2 * k + 1]
        mixed = up + down + 2 * value - sum(single[a]) - sum(single[b])
        curve[:, a, b] = curve[:, b, a] = mixed / (2 * steps[a] * steps[b])
    curve = np.where(np.isnan(curve), 0.0, curve)  # of particles that are lost on the way
    for a, b in [*((c, c) for c in range(n_in)), *pairs]:
        _tell(box, a, b, steps, curve[:, a, b])
    return curve


def _of_one(box: DifferenceBox, row: Array, value: Array, index: int) -> Array:
    """Return the second derivatives with respect to the only input, ``(n_out, 1, 1)``."""
    curve, column = np.zeros((box.n_out, 1, 1)), box.columns[0]
    parts = box.parts(row, index, 0, np.arange(box.n_out), "second")
    if not parts:
        return curve
    moved = [box.shifted(row, 0, part.offsets) for part in parts]
    found = box.evaluate(np.concatenate(moved), [index] * sum(map(len, moved)))
    numbers: Any = iter(_good(found))
    for part in parts:
        slope = part.derivative(value, [next(numbers) for _ in part.offsets])
        slope = np.where(np.isnan(slope), 0.0, slope)
        curve[part.outputs, 0, 0] = slope[part.outputs]
        box.tell(part, slope, f"{column.label}, {column.label}", column)
    return curve


def _good(found: Sequence[Any]) -> list[Any]:
    for result in found:
        if isinstance(result, SimulatorError):
            raise GradientError(f"no second derivative at this point: {result}") from result
    return list(found)


def _step(box: DifferenceBox, row: Array, index: int, column: int) -> float:
    """Return a step for second derivatives that suits most outputs."""
    c, here = box.columns[column], float(row[column])
    step = box.method.fixed_step(c.name, c.scale)
    if step is None:
        best = box.calibration(row, index, column).steps(c.scale, scheme="mixed")
        step = float(np.exp(np.median(np.log(best))))
    return within_limits(c, here, step)


def within_limits(column: Column, here: float, step: float) -> float:
    """Return a step for second derivatives that stays within an input's limits on both sides.

    Raises:
        GradientError: if these leave less than a tenth of it.
    """
    room = min(column.room(here))
    if room < 0.1 * step:
        raise GradientError(
            f"no second derivative with respect to {column.label!r} at {here:.10g}, which is at its limit: move it "
            f"inwards by {0.1 * step:.3g} or more"
        )
    return min(step, room)


def _tell(box: DifferenceBox, a: int, b: int, steps: Array, curve: Array) -> None:
    """Report a pure or a mixed second derivative of every output, the largest of its numbers."""
    first, second = (box.memory.known(box.columns[c], box.outputs) for c in (a, b))
    error = None
    if first is not None and second is not None:
        error = first.error(steps[a], "second") if a == b else mixed_error(first, second, steps[a], steps[b], curve)
    for name in dict.fromkeys(box.outputs):
        own = [m for m, output in enumerate(box.outputs) if output == name]
        largest = max(own, key=lambda m: abs(curve[m]))
        box.report(
            name,
            f"{box.columns[b].label}, {box.columns[a].label}",
            derivative=float(curve[largest]),
            step=float(steps[a]) if a == b else None,
            noise=None if first is None else float(first.noise[largest]),
            error=None if error is None else float(max(error[m] for m in own)),
            runs=2,
        )
