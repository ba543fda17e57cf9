"""What a value and its derivatives take of a model's black boxes: simulator runs by mode, foretold without a run."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_diff.models.evaluation import Evaluation

#: Ways to a Jacobian, of equally cheap ones the preferred one first: a backward per row; a jvp per column, with the
#: derivatives that black boxes remember of a point; a jvp per column that pushes whole perturbed bunches through them.
MODES = ("reverse", "forward", "collective")

#: One component of an input that derivatives are taken with respect to: its name and its place.
Component = tuple[str, int]

#: Whether black boxes shall push whole bunches, so that forces between the particles are in the derivative.
whole_bunches: ContextVar[bool] = ContextVar("whole_bunches", default=False)


@dataclass(frozen=True)
class Question:
    """What derivatives a model is asked for.

    Attributes:
        values: the inputs that are known; what another model hands over is not.
        reach: for an input, the components that it depends on, if any.
        outputs: names of what is differentiated.
        batch: shape of the batch.
        earlier: an evaluation that holds where nothing has changed.
    """

    values: Mapping[str, Any]
    reach: Mapping[str, frozenset[Component]]
    outputs: Sequence[str]
    batch: tuple[int, ...]
    earlier: Evaluation | None = None

    def within(self, names: Container[str]) -> Question:
        """Return the same for a model that has only some of the variables."""
        values, reach = ({n: v for n, v in table.items() if n in names} for table in (self.values, self.reach))
        outputs = [name for name in self.outputs if name in names]
        return Question(values, reach, outputs, self.batch)

    @property
    def components(self) -> frozenset[Component]:
        """All components that reach the model."""
        return frozenset().union(*self.reach.values())

    @property
    def points(self) -> int:
        """How many points the batch has."""
        return math.prod(self.batch)


@dataclass(frozen=True)
class DerivativeCost:
    """Simulator runs of a value and its derivatives, at a point where nothing is known but the noise, by mode.

    Attributes:
        runs: by mode; None where a mode does not work.
        has_blocks: whether a bunch's Jacobian is taken as a block a particle in the modes other than ``collective``.
        flaw: why those are not correct then; empty if they are.
    """

    runs: Mapping[str, int | None] = field(default_factory=lambda: dict.fromkeys(MODES, 0))
    has_blocks: bool = False
    flaw: str = ""

    def __add__(self, other: DerivativeCost) -> DerivativeCost:
        runs = {
            mode: None if ours is None or (theirs := other.runs[mode]) is None else ours + theirs
            for mode, ours in self.runs.items()
        }
        return DerivativeCost(runs, self.has_blocks or other.has_blocks, self.flaw or other.flaw)

    @property
    def is_free(self) -> bool:
        """Whether no simulator runs in any mode."""
        return all(runs == 0 for runs in self.runs.values())
