"""What the model of a source tells of its line at a frame, worked out once for all who look."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lume_diff.errors import LumeDiffError
from lume_diff.models.survey import survey_of
from lume_diff.variables import TorchScalarVariable
from lume_diff.view.background import Result
from lume_diff.view.derivatives import Derivatives, differentiate, takes_runs
from lume_diff.view.frame import Frame
from lume_diff.view.source import Source

#: How long the work on derivatives pauses, in times that it took.
_REST = 3.0
#: How often a server is asked for what it has worked out [s].
_EVERY = 2.0


def survey(source: Source, frame: Frame) -> Result:
    """Return the ``Survey`` of a source's model at the inputs of a frame; its value is None where there is no line."""
    model = source.model
    if model is None:
        return Result(frame.cycle)
    return tried(frame, "survey", lambda: survey_of(model, source.setpoints(frame)))


def along(source: Source, frame: Frame) -> Result:
    """Return the ``BeamAlong`` of a frame; its value is None where it is not known."""
    found = survey(source, frame)
    if found.value is None:
        return found
    return tried(frame, "along", found.value.along)


def beam(source: Source, frame: Frame, element: str) -> Result:
    """Return the bunch or the moments behind an element; its value is None where they are not known."""
    found = survey(source, frame)
    if found.value is None:
        return found
    return tried(frame, ("beam", element), lambda: found.value.beam(element))


def tried(frame: Frame, key: Any, make: Callable[[], Any]) -> Result:
    """Return what is worked out from a frame, once for all who look, or what went wrong with it."""

    def work() -> Result:
        try:
            return Result(frame.cycle, make())
        except LumeDiffError as error:
            return Result(frame.cycle, error=str(error))

    return frame.once(key, work)


def derivatives(source: Source, frame: Frame, outputs: Sequence[str], knobs: Sequence[str]) -> Result | None:
    """Return the newest ``Derivatives`` that there are, which may be of an earlier frame, and have new ones made."""
    model = source.model
    if model is None or not outputs or not knobs or why_not(source):
        return None
    rows, columns, at = tuple(outputs), tuple(knobs), source.setpoints(frame)
    key = ("derivatives", rows, columns)
    return source.background.ask(key, frame.cycle, lambda: differentiate(model, rows, columns, at), _REST)


def why_not(source: Source) -> str:
    """Return why derivatives are not worked out, though they could be; nothing if they are."""
    if source.sensitivity or source.model is None or not takes_runs(source.model):
        return ""
    return (
        "not worked out, because it takes runs of a simulator after every change: ask for it by --sensitivity, or "
        "sensitivity=True"
    )


def served(source: Source) -> Result | None:
    """Return the newest ``Derivatives`` that a server works out by itself, of some seconds ago at most."""
    return source.background.ask("served derivatives", int(time.time() / _EVERY), lambda: _served(source))


def _served(source: Source) -> Derivatives | None:
    table, knobs = source.served_derivatives(), scalars(source, read_only=False)
    if table is None or len(table) != len(knobs) + 1:
        return None
    values = np.column_stack([np.asarray(table[f"d{index}"], dtype=float) for index in range(len(knobs))])
    return Derivatives(tuple(map(str, table["output"])), tuple(knobs), values, {})


def scalars(source: Source, read_only: bool) -> list[str]:
    """Return the names of the numbers among the outputs, or the inputs, of a source."""
    found = source.variables.items()
    return [name for name, v in found if isinstance(v, TorchScalarVariable) and v.read_only is read_only]


def has_value(frame: Frame, name: str) -> bool:
    """Tell whether a number is known in a frame, as it is or as it was last: one that is not finite is not."""
    value = frame.value(name)
    return isinstance(value, int | float) and math.isfinite(value)


def scales(source: Source, names: Sequence[str]) -> list[float]:
    """Return the size of a typical change of numbers, each in its unit."""
    return [source.variables[name].scale for name in names]  # type: ignore[attr-defined]
