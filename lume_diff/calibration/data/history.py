"""What was done to data, step by step, with everything that is needed to do it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lume_diff.calibration.data.metadata import plain_value


@dataclass(frozen=True)
class Step:
    """One step that made a dataset from another one.

    Attributes:
        name: of the method.
        parameters: its arguments: numbers, strings, lists of them.
        note: what it did, in words.
        arrays: what it took away or worked out for each image, by name, so that nothing is lost silently.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __str__(self) -> str:
        arguments = ", ".join(f"{key}={_short(value)}" for key, value in self.parameters.items())
        return f"{self.name}({arguments})" + (f": {self.note}" if self.note else "")


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and len(value) > 6:
        return f"[{', '.join(map(_short, value[:3]))}, ... {len(value)} in all]"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    return repr(value)


def plain_history(history: Iterable[Step]) -> list[dict[str, Any]]:
    """Return steps as JSON has them, without their arrays."""
    return [
        {
            "name": step.name,
            "parameters": plain_value(f"parameters of {step.name}", step.parameters),
            "note": step.note,
            "arrays": list(step.arrays),
        }
        for step in history
    ]


def other_histories(histories: Sequence[tuple[Step, ...]]) -> str:
    """Return in words which steps led to each of several datasets where they differ from those of the first."""
    shown = ["; ".join(map(str, history)) or "no steps" for history in histories]
    return "\n".join(f"number {i} was made by: {steps}" for i, steps in enumerate(shown[1:], 2) if steps != shown[0])


def share(part: float) -> str:
    """Return a share in words, such as ``"3.2 %"``."""
    return f"{100.0 * part:.3g} %"
