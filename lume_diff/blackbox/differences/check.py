"""One look at whether derivatives of a code's own agree with a difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.blackbox.differences.native import NEGLIGIBLE, SHARE, VAGUE, warn_of
from lume_diff.blackbox.differences.stencil import exact_step, fitted
from lume_diff.blackbox.differences.steps import StepClass
from lume_diff.errors import SimulatorError

if TYPE_CHECKING:
    from lume_diff.blackbox.differences.engine import DifferenceBox

Array = np.ndarray


def check_numbers(box: DifferenceBox, row: Array, value: Array, index: int, block: Array) -> None:
    """Compare derivatives of a code's own with central differences, 2 runs an input, once for each derivative.

    Where noise and curvature are known they give the step and the error of the difference. Where they are not, the step
    is a thousandth of the scale and the error what the two sides differ by; derivatives that seem to be off then, by
    whatever cause, are looked at again after noise and curvature have been measured, so that none is blamed for a
    noisy code.

    Warns:
        PhysicsWarning: for a derivative that is off by more than 3 times the estimated error of the difference and more
            than 1e-6 of itself.
    """
    pending = []
    for c, column in enumerate(box.columns):
        off = box.memory.native.off.setdefault((column.label, tuple(box.outputs)), np.full(box.n_out, np.nan))
        outputs = np.flatnonzero(~np.isnan(block[:, c]) & np.isnan(off))
        if len(outputs):
            pending.append((c, outputs))
    with box.memory.spending("check"):
        parts = [_first_look(box, row, c, outputs) for c, outputs in pending]
        seen = _look(box, row, value, index, [(c, [part]) for (c, _), part in zip(pending, parts, strict=True)])
        for (c, outputs), (slope, error) in zip(pending, seen, strict=True):
            own, column = block[:, c], box.columns[c]
            size = np.maximum(np.abs(own), np.abs(value) / column.scale)
            with np.errstate(invalid="ignore"):
                doubtful = _disagree(own, slope, error) | (np.abs(own - slope) > VAGUE * size)
            if doubtful.any() and box.method.fixed_step(column.name, column.scale) is None:
                again = box.parts(row, index, c, np.flatnonzero(doubtful))
                ((second, bound),) = _look(box, row, value, index, [(c, again)])
                slope, error = np.where(doubtful, second, slope), np.where(doubtful, bound, error)
            doubtful = _disagree(own, slope, error)
            found = np.nan_to_num(np.abs(own - slope), nan=np.inf)
            box.memory.native.off[column.label, tuple(box.outputs)][outputs] = found[outputs]
            for name in dict.fromkeys(box.outputs[m] for m in np.flatnonzero(doubtful)):
                worst = max((m for m in np.flatnonzero(doubtful) if box.outputs[m] == name), key=lambda m: found[m])
                warn_of(name, column.label, float(found[worst]), float(abs(own[worst])), float(error[worst]))


def _disagree(own: Array, slope: Array, error: Array) -> Array:
    with np.errstate(invalid="ignore"):
        return np.abs(own - slope) > 3.0 * error + NEGLIGIBLE * np.abs(own)


def _first_look(box: DifferenceBox, row: Array, column: int, outputs: Array) -> StepClass:
    """Return one central difference for some outputs, of a given step, a known one or a guess."""
    c, here = box.columns[column], float(row[column])
    known = box.memory.known(c, box.outputs)
    step = box.method.fixed_step(c.name, c.scale)
    if step is None and known is not None:
        step = float(np.exp(np.median(np.log(known.only(outputs).steps(c.scale)))))
    with box.named(column, here):
        scheme, step = fitted("central", SHARE * c.scale if step is None else step, c.room(here))
        error = np.full(len(outputs), np.nan) if known is None else known.error(step, scheme)[outputs]
        return StepClass(scheme, exact_step(here, step), outputs, error)


def _look(
    box: DifferenceBox, row: Array, value: Array, index: int, wanted: Sequence[tuple[int, Sequence[StepClass]]]
) -> list[tuple[Array, Array]]:
    """Return derivatives and their errors for each input, ``(n_out,)`` each, NaN where there are none."""
    moved = [box.shifted(row, c, part.offsets) for c, parts in wanted for part in parts]
    found: Any = iter(box.evaluate(np.concatenate(moved), [index] * sum(map(len, moved))) if moved else [])
    results = []
    for _, parts in wanted:
        slope, error = np.full((2, box.n_out), np.nan)
        for part in parts:
            values = [next(found) for _ in part.offsets]
            if any(isinstance(v, SimulatorError) for v in values):
                continue
            slope[part.outputs] = part.derivative(value, values)[part.outputs]
            ordered = [value, *values] if part.scheme == "one_sided" else [values[0], value, values[-1]]
            sides = np.abs(np.diff(ordered, n=2, axis=0)[0])[part.outputs] / (2.0 * abs(part.step))
            error[part.outputs] = np.where(np.isnan(part.error), sides, part.error)
        results.append((slope, error))
    return results
