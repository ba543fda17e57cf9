"""Derivatives of outputs by knobs, of simulators too, where they cost runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lume_diff.blackbox import BlackBoxModel
from lume_diff.errors import LumeDiffError
from lume_diff.ioc.model_host import ModelHost
from lume_diff.models import LUMEModel

#: What one matrix of a simulator may cost; nothing further is begun then.
MOST_RUNS, MOST_SECONDS = 2000, 60.0


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of outputs by knobs.

    Attributes:
        outputs, knobs: names of rows and columns.
        values: ``(rows, columns)`` in output unit per knob unit; NaN where there is none.
        refused: why there is none, by the name of the output.
        errors: estimated errors of ``values``, 0 where they are exact and NaN where nothing is known; None if all are
            exact.
        runs: of simulators, that they took.
        seconds: that a simulator's took.
        left: knobs that were left out, because the others had taken all that is allowed.
    """

    outputs: tuple[str, ...]
    knobs: tuple[str, ...]
    values: np.ndarray
    refused: Mapping[str, str]
    errors: np.ndarray | None = None
    runs: int = 0
    seconds: float = 0.0
    left: Sequence[str] = field(default=())

    def effects(self, scales: Sequence[float]) -> np.ndarray:
        """Return what a typical change of each knob does to each output, to first order [output unit]."""
        return self.values * np.asarray(scales)

    @property
    def cost(self) -> list[str]:
        """What is to be said of derivatives that took runs: how many, how good they are, and what is missing."""
        if self.errors is None:
            return []
        strongest = np.nan_to_num(np.abs(self.values)).max(axis=1, initial=0.0)[:, None]
        known = (self.errors / np.where(strongest > 0.0, strongest, np.inf))[np.isfinite(self.errors)]
        text = f"{self.runs} runs of a simulator in {self.seconds:.1f} s"
        if known.size:
            text += (
                f"; estimated errors up to {100.0 * known.max():.1g} % of the strongest derivative of the same output"
            )
        if not self.left:
            return [text]
        allowed = f"{MOST_RUNS} runs or {MOST_SECONDS:g} s"
        return [text, f"not more than {allowed} are spent on a matrix: {len(self.left)} knobs are left out"]


def takes_runs(model: LUMEModel) -> bool:
    """Tell whether derivatives of a model cost runs of a simulator."""
    return any(isinstance(part, BlackBoxModel) for part in model.modules())


def differentiate(model: LUMEModel, outputs: Sequence[str], knobs: Sequence[str], at: dict[str, Any]) -> Derivatives:
    """Return the derivatives at inputs; where a row has none, the others are there all the same.

    Of a simulator, knob after knob, until the runs or the time that are allowed have been spent.

    Args:
        model: of what.
        outputs, knobs: names of scalars.
        at: values of inputs that are not to be those of the set-points.
    """
    if takes_runs(model):
        return _by_runs(model, outputs, knobs, at)
    # There are often more knobs than outputs here, and a pass backward takes half of one forward.
    refused: dict[str, str] = {}
    try:
        found = model.jacobian(list(outputs), list(knobs), at=at, mode="reverse")
    except LumeDiffError:
        found = {}
        for output in outputs:
            try:
                found |= model.jacobian([output], list(knobs), at=at, mode="reverse")
            except LumeDiffError as error:
                refused[output] = str(error)
    rows = [[float(found[o][k]) if o in found else np.nan for k in knobs] for o in outputs]
    return Derivatives(tuple(outputs), tuple(knobs), np.array(rows).reshape(len(outputs), len(knobs)), refused)


def _by_runs(model: LUMEModel, outputs: Sequence[str], knobs: Sequence[str], at: dict[str, Any]) -> Derivatives:
    host, begun, runs = ModelHost(model, outputs), time.monotonic(), 0
    values, errors = (np.full((len(outputs), len(knobs)), np.nan) for _ in range(2))
    refused: dict[str, str] = {}
    left: Sequence[str] = ()
    for column, knob in enumerate(knobs):
        if runs >= MOST_RUNS or time.monotonic() - begun >= MOST_SECONDS:
            left = knobs[column:]
            break
        found, spent = _column(host, [output for output in outputs if output not in refused], knob, at, refused)
        runs += spent
        for row, output in enumerate(outputs):
            if output in found:
                values[row, column], errors[row, column] = found[output]
    return Derivatives(
        tuple(outputs), tuple(knobs), values, refused, errors, runs, time.monotonic() - begun, tuple(left)
    )


def _column(
    host: ModelHost, outputs: Sequence[str], knob: str, at: dict[str, Any], refused: dict[str, str]
) -> tuple[dict[str, tuple[float, float]], int]:
    """Return derivatives and their errors by the name of the output, and the runs that they took."""
    try:
        found = host.jacobian(outputs, [knob], at)
    except LumeDiffError as error:
        if len(outputs) == 1:
            refused[outputs[0]] = str(error)
            return {}, 0
        each = [_column(host, [output], knob, at, refused) for output in outputs]
        return {name: one for column, _ in each for name, one in column.items()}, sum(spent for _, spent in each)
    unknown = np.nan if found["runs"] else 0.0
    errors = {output: found["errors"].get((output, knob), unknown) for output in outputs}
    return {output: (float(found["values"][output][knob]), errors[output]) for output in outputs}, found["runs"]
