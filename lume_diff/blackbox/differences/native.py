"""Derivatives that a simulator computes itself: laid out as differences are, and each checked once against one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lume_diff.errors import PhysicsWarning, ShapeError
from lume_diff.models.report import counted

Array = np.ndarray
Shape = tuple[int, ...]

#: Relative discrepancy of a number's derivative that is not worth a word, whatever the difference says of itself.
NEGLIGIBLE = 1e-6
#: Discrepancy, as a share of the derivative or of the value over the scale, at which a first look does not do.
VAGUE = 1e-4
#: Step of the difference that checks, as a share of the scale, where noise and curvature are not known.
SHARE = 1e-3


@dataclass
class NativeUse:
    """What came of asking a simulator for derivatives of its own.

    Attributes:
        asked: points at which it was asked.
        given: derivatives that it gave, entries of Jacobians.
        saved: runs that differences would have taken at these points, noise and curvature not counted.
        failure: what it said when it failed last.
        off: for input and output labels, how far the derivatives are off by a difference: NaN before that was
            measured, infinite where it could not be.
    """

    asked: int = 0
    given: int = 0
    saved: int = 0
    failure: str = ""
    off: dict[Any, Array] = field(default_factory=dict)

    def notes(self, checks: int) -> list[str]:
        """Return for people what it was good for."""
        if not self.asked:
            return []
        if self.given:
            saved, spent = counted(self.saved, "run"), counted(checks, "run")
            found = [f"the code's own derivatives saved {saved}; {spent} went into checks"]
        else:
            found = ["gradient='native': the code gave no derivatives of its own, differences took their place"]
        return [*found, f"its own derivatives failed: {self.failure}"] if self.failure else found


def number_block(
    found: Mapping[str, Mapping[str, Array]], outputs: Mapping[str, Shape], inputs: Mapping[str, Shape]
) -> Array:
    """Return derivatives of numbers as one Jacobian, ``(n_out, n_in)``, NaN for what is not covered.

    Args:
        found: what the simulator gave.
        outputs, inputs: names and shapes, in order.

    Raises:
        ShapeError: for an array of another shape than the variables say.
    """
    rows = []
    for output, out_shape in outputs.items():
        row = []
        for name, in_shape in inputs.items():
            wanted = (*out_shape, *in_shape)
            array = _of_shape(found.get(output, {}).get(name), (wanted,), output, name)
            row.append(array.reshape(math.prod(out_shape), math.prod(in_shape)))
        rows.append(np.concatenate(row, axis=1))
    block = np.concatenate(rows)
    return np.where(np.isfinite(block), block, np.nan)


def bunch_block(
    found: Mapping[str, Array], output: str, bunch: str, sides: tuple[int, int, int], inputs: Mapping[str, Shape]
) -> Array:
    """Return derivatives of a bunch as one Jacobian, ``(n, n_out, n_in + p)``, NaN for what is not covered.

    Args:
        found: what the simulator gave for it, by input.
        output, bunch: names of the bunch that comes out and of the one that goes in.
        sides: ``(n, n_out, n_in)``: particles, and their coordinates on both sides.
        inputs: names and shapes of the machine's numbers, in order.

    Raises:
        ShapeError: for an array of another shape.
    """
    n, n_out, n_in = sides
    own = _of_shape(found.get(bunch), (sides, (n_out, n_in)), output, bunch)
    columns = [np.broadcast_to(own, sides)]
    for name, shape in inputs.items():
        array = _of_shape(found.get(name), ((n, n_out, *shape),), output, name)
        columns.append(array.reshape(n, n_out, math.prod(shape)))
    block = np.concatenate(columns, axis=2)
    return np.where(np.isfinite(block), block, np.nan)


def _of_shape(array: Array | None, shapes: Sequence[Shape], output: str, name: str) -> Array:
    if array is None:
        return np.full(shapes[0], np.nan)
    if array.shape not in shapes:
        raise ShapeError(
            f"jacobian() returned the derivative of {output!r} with respect to {name!r} with shape {array.shape}; "
            f"expected {' or '.join(map(str, shapes))}"
        )
    return array


def warn_of(output: str, name: str, off: float, size: float, doubt: float | None = None) -> None:
    """Warn that a derivative of the code's own and a difference do not agree.

    Args:
        output, name: of what with respect to what.
        off: by how much.
        size: of the derivative.
        doubt: estimated error of the difference.
    """
    share = f" ({off / size:.2g} of it)" if size > 0 else ""
    own = "" if doubt is None else f", which is sure to {doubt:.2g}"
    warnings.warn(
        f"the code's own derivative of {output!r} with respect to {name!r} is off by {off:.2g}{share} from a "
        f"difference{own}; use FiniteDifference() if the difference is to be trusted",
        PhysicsWarning,
        stacklevel=2,
    )
