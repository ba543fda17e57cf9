"""ModelHost: a served model where it lives, and what has changed on it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lume_diff.errors import OutOfRangeWarning
from lume_diff.ioc.engine import Evaluated
from lume_diff.ioc.plain import same, to_plain
from lume_diff.models import LUMEModel


class ModelHost:
    """Evaluate a model and tell what has changed; lives where the model does.

    Args:
        model: any model.
        names: the variables that are wanted.
    """

    def __init__(self, model: LUMEModel, names: Sequence[str]) -> None:
        self.model = model
        self._names = list(names)
        self._shown: dict[str, Any] = {}

    def forget(self) -> None:
        """Take everything as changed at the next evaluation."""
        self._shown = {}

    def evaluate(self, values: Mapping[str, Any]) -> Evaluated:
        """Write inputs and read everything; where an output cannot be read, the inputs go back."""
        model = self.model
        before = model.get(list(values))
        return self._evaluated(lambda: model.set(values) if values else None, lambda: model.set(before))

    def reset(self) -> Evaluated:
        """Bring the inputs back to their baseline and read everything."""
        before = self.model.snapshot()
        return self._evaluated(self.model.reset, lambda: self.model.restore(before))

    def restore(self, snapshot: Mapping[str, Any]) -> Evaluated:
        """Write back a snapshot and read everything."""
        before = self.model.snapshot()
        return self._evaluated(lambda: self.model.restore(snapshot), lambda: self.model.restore(before))

    def snapshot(self) -> dict[str, Any]:
        """Return the set-points as plain data."""
        return self.model.snapshot()

    def jacobian(self, outputs: Sequence[str], inputs: Sequence[str], at: Mapping[str, Any]) -> dict[str, Any]:
        """Return derivatives at plain inputs, errors of estimates, NaN where not known, and the runs of black boxes."""
        model = self.model
        runs, _ = model._spent()
        found = model.jacobian(outputs, inputs, at)
        values = {
            output: {name: block.detach().cpu().numpy() for name, block in row.items()} for output, row in found.items()
        }
        errors = {
            (entry.output, entry.input): math.nan if entry.error is None else entry.error
            for entry in model.gradient_report().entries
            if entry.output in outputs and entry.kind != "exact"
        }
        return {"values": values, "errors": errors, "runs": model._spent()[0] - runs}

    def _evaluated(self, write: Callable[[], None], undo: Callable[[], None]) -> Evaluated:
        model = self.model
        runs, begun = model.runs, time.perf_counter()
        with torch.no_grad(), warnings.catch_warnings():
            # What is out of range shows as an alarm.
            warnings.simplefilter("ignore", OutOfRangeWarning)
            write()
            try:
                found = model.get(self._names)
                variables = model.supported_variables
                plain = {name: to_plain(variables[name], value) for name, value in found.items()}
            except BaseException:
                undo()
                raise
        changed = {name: value for name, value in plain.items() if not self._is_shown(name, value)}
        self._shown.update(changed)
        return Evaluated(changed, time.perf_counter() - begun, model.runs - runs)

    def _is_shown(self, name: str, value: Any) -> bool:
        return name in self._shown and same(self._shown[name], value)
