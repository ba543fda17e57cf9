"""Decisions of trust, as they are kept and shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict


class LearnedValue(BaseModel):
    """A parameter of a mean as it stood.

    Attributes:
        name: of the parameter.
        value, expected: as learned, and the middle of its prior [unit].
        unit: of both.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    value: float
    expected: float
    unit: str = ""


class Decision(BaseModel):
    """Which mean an objective's GP got at one build, and why.

    Attributes:
        objective: its name in the VOCS.
        points: how many data there were.
        trusted: whether the model was the mean; else a constant was.
        advantage: log density of the data, each left out in turn, with the model less that with a constant [nats].
        correlation: of model and data: for show.
        reason: in words.
        learned: trainable parameters as they stood.
        emulation: what the mean's emulator had cost and how good it was, in words; empty without one.
    """

    model_config = ConfigDict(extra="forbid")

    objective: str
    points: int
    trusted: bool
    advantage: float = math.nan
    correlation: float = math.nan
    reason: str = ""
    learned: list[LearnedValue] = []
    emulation: str = ""

    def line(self) -> str:
        """Return the decision in one line."""
        taken = "the model" if self.trusted else "a constant"
        return f"{self.objective}: {taken} at {self.points} points: {self.reason}"


class History(list[Decision]):
    """Decisions that all copies of a constructor write down together: Xopt works with a copy of what it is given."""

    def __deepcopy__(self, memo: dict[int, Any]) -> History:
        return self


def report(decisions: Sequence[Decision]) -> str:
    """Return what was decided and learned, as a text."""
    if not decisions:
        return "no Gaussian process has been built yet"
    lines = []
    for objective in dict.fromkeys(decision.objective for decision in decisions):
        own = [decision for decision in decisions if decision.objective == objective]
        last = own[-1]
        taken = "the model" if last.trusted else "a constant: the model has lost against the data"
        lines += [
            f"{objective}: prior mean is {taken} ({last.reason})",
            f"  trusted in {sum(d.trusted for d in own)} of {len(own)} builds; correlation {last.correlation:.2f} over "
            f"{last.points} points",
        ]
        lines += [f"  {v.name}: {f'{v.value:.4g} {v.unit}'.strip()}, expected {v.expected:.4g}" for v in last.learned]
        lines += [f"  {last.emulation}"] if last.emulation else []
    return "\n".join(lines)
